"""Wiring: learner, prompts and baselines in; divergences, figures and metrics out."""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines import baseline_estimation
from incontext_linear.pipelines.behavioral_comparison.nodes import (
    draw_divergences,
    draw_risks,
    estimate_learner_weights,
    measure_ilwd,
    measure_linearity,
    measure_risk,
    measure_spd,
    predict_with_learner,
    report_comparison_metrics,
)

_SETTINGS = ["params:comparison", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Compare the learner with the baselines by predictions and by implicit weights.

    What the baselines predict is estimated anew, which takes seconds: everyone answers the same
        prompts.
    """
    return baseline_estimation.create_pipeline() + pipeline(
        [
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
            node(
                measure_spd,
                ["learner_predictions", "baseline_predictions", *_SETTINGS],
                "spd_curves",
                name="measure_spd",
            ),
            node(
                measure_ilwd,
                ["learner_weights", "baseline_weights", "params:baselines", *_SETTINGS],
                "ilwd_curves",
                name="measure_ilwd",
            ),
            node(
                measure_linearity,
                ["learner_weights", *_SETTINGS],
                "linearity_curve",
                name="measure_linearity",
            ),
            node(
                measure_risk,
                ["learner_predictions", "baseline_predictions", "evaluation_prompts", *_SETTINGS],
                "risk_curves",
                name="measure_risk",
            ),
            node(
                report_comparison_metrics,
                ["spd_curves", "ilwd_curves", "linearity_curve"],
                "comparison_metrics",
                name="report_comparison_metrics",
            ),
            node(
                draw_divergences,
                ["spd_curves", "ilwd_curves", "evaluation_prompts"],
                "divergence_figure",
                name="draw_divergences",
            ),
            node(
                draw_risks,
                ["risk_curves", "linearity_curve", "evaluation_prompts"],
                "risk_figure",
                name="draw_risks",
            ),
        ],
        tags="behavioral_comparison",
    )
