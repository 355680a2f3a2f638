"""Wiring: evaluation prompts, drawn anew, in; the textbook predictions and implicit weights out."""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines import data_generation
from incontext_linear.pipelines.baseline_estimation.nodes import (
    estimate_predictions,
    estimate_weights,
)


def create_pipeline(**kwargs) -> Pipeline:
    """Estimate what every baseline predicts, and the linear map behind its predictions.

    The prompts are drawn anew, which takes a moment, so that they are always those of the
    parameters.
    """
    prompts = data_generation.create_pipeline().to_outputs(
        "evaluation_prompts", "evaluation_queries"
    )
    return prompts + pipeline(
        [
            node(
                estimate_predictions,
                ["evaluation_prompts", "params:baselines", "params:task"],
                "baseline_predictions",
                name="estimate_baseline_predictions",
            ),
            node(
                estimate_weights,
                ["evaluation_prompts", "evaluation_queries", "params:baselines", "params:task"],
                "baseline_weights",
                name="estimate_baseline_weights",
            ),
        ],
        tags=["baseline_estimation", "behavioral_comparison"],  # a part of the other too
    )
