"""Wiring: evaluation prompts, drawn anew, in; the textbook predictions and implicit weights out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.comparison.curves import estimate_baseline_weights, predict_with_baselines
from incontext_linear.pipelines import box, data_generation

_SETTINGS = ["params:baselines", "params:task"]


def create_pipeline(**kwargs) -> Pipeline:
    """Estimate what every baseline predicts, and the linear map behind its predictions.

    The prompts are drawn anew, which takes a moment, so that they are always those of the
    parameters.
    """
    prompts = data_generation.create_pipeline().to_outputs(
        "evaluation_prompts", "evaluation_queries"
    )
    nodes = [
        node(
            predict_with_baselines,
            ["evaluation_prompts", *_SETTINGS],
            "baseline_predictions",
            name="estimate_baseline_predictions",
        ),
        node(
            estimate_baseline_weights,
            ["evaluation_prompts", "evaluation_queries", *_SETTINGS],
            "baseline_weights",
            name="estimate_baseline_weights",
        ),
    ]
    return Pipeline([prompts, box("baseline_estimation", nodes)], tags="baseline_estimation")
