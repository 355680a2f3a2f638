"""Wiring: learner, prompts and baselines in; divergences, figures and metrics out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.comparison.curves import (
    estimate_learner_weights,
    ilwd_curves,
    linearity_curve,
    predict_with_learner,
    risk_curves,
    spd_curves,
)
from incontext_linear.figures.behavioral_comparison import plot_divergences, plot_risks
from incontext_linear.pipelines import baseline_estimation, box
from incontext_linear.pipelines.behavioral_comparison.nodes import report_comparison_metrics

_PREDICTIONS = ["learner_predictions", "baseline_predictions", "evaluation_prompts"]
_SETTINGS = ["params:comparison", "params:seed"]
_RUN = ["params:task", "params:model", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Compare the learner with the baselines by predictions and by implicit weights.

    What the baselines predict is estimated anew, which takes seconds: everyone answers the same
    prompts.
    """
    nodes = [
        node(
            predict_with_learner,
            ["learner", "evaluation_prompts", "params:device"],
            "learner_predictions",
            name="predict_with_learner",
        ),
        node(
            estimate_learner_weights,
            ["learner", "evaluation_prompts", "evaluation_queries", "params:device"],
            "learner_weights",
            name="estimate_learner_weights",
        ),
        node(spd_curves, [*_PREDICTIONS, *_SETTINGS], "spd_curves", name="measure_spd"),
        node(
            ilwd_curves,
            [
                "learner_weights",
                "baseline_weights",
                "params:baselines",
                "evaluation_prompts",
                *_SETTINGS,
            ],
            "ilwd_curves",
            name="measure_ilwd",
        ),
        node(
            linearity_curve,
            ["learner_weights", *_SETTINGS],
            "linearity_curve",
            name="measure_linearity",
        ),
        node(risk_curves, [*_PREDICTIONS, *_SETTINGS], "risk_curves", name="measure_risk"),
        node(
            report_comparison_metrics,
            ["spd_curves", "ilwd_curves", "linearity_curve", "evaluation_prompts"],
            ["comparison_metrics", "comparison_tags"],
            name="report_comparison_metrics",
        ),
        node(
            plot_divergences,
            ["spd_curves", "ilwd_curves", *_RUN],
            "divergence_figure",
            name="draw_divergences",
        ),
        node(
            plot_risks,
            ["risk_curves", "linearity_curve", *_RUN],
            "risk_figure",
            name="draw_risks",
        ),
    ]
    parts = [baseline_estimation.create_pipeline(), box("behavioral_comparison", nodes)]
    return Pipeline(parts, tags="behavioral_comparison")
