"""Wiring: learner and probing prompts in; probe scores, attention maps and figures out."""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines.probing.nodes import (
    average_attention,
    draw_attention,
    draw_probe_attention,
    draw_probe_scores,
    report_probing_metrics,
    train_probes,
)


def create_pipeline(**kwargs) -> Pipeline:
    """Probe every layer, and average the learner's attention."""
    return pipeline(
        [
            node(
                train_probes,
                [
                    "learner",
                    "probing_prompts",
                    "params:probing",
                    "params:device",
                    "params:seed",
                ],
                ["probe_scores", "probe_attention"],
                name="train_probes",
            ),
            node(
                average_attention,
                ["learner", "probing_prompts", "params:device"],
                "learner_attention",
                name="average_attention",
            ),
            node(report_probing_metrics, "probe_scores", "probing_metrics", name="report_probing_metrics"),
            node(draw_probe_scores, "probe_scores", "probe_score_figure", name="draw_probe_scores"),
            node(
                draw_probe_attention, "probe_attention", "probe_attention_figure", name="draw_probe_attention"
            ),
            node(draw_attention, "learner_attention", "learner_attention_figure", name="draw_attention"),
        ],
        tags="probing",
    )
