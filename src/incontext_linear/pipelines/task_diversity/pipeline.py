"""Wiring: a finished sweep over the pool's size in; distances and thresholds out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.figures.diversity import plot_diversity
from incontext_linear.pipelines import box
from incontext_linear.pipelines.task_diversity.nodes import (
    measure_diversity,
    report_diversity_metrics,
    tabulate_diversity,
)

_SETTINGS = ["params:diversity", "params:seed"]
_TABLES = ["diversity_curves", "diversity_thresholds"]


def create_pipeline(**kwargs) -> Pipeline:
    """From how many tasks on learners forget their pool (Raventós et al. 2023)."""
    nodes = [
        node(
            measure_diversity,
            ["swept_variants", "swept_learners", *_SETTINGS, "params:device"],
            "diversity_measured",
            name="measure_diversity",
        ),
        node(tabulate_diversity, ["diversity_measured", *_SETTINGS], _TABLES, name="tabulate"),
        node(report_diversity_metrics, _TABLES, "diversity_metrics", name="report_metrics"),
        node(plot_diversity, _TABLES, "diversity_figure", name="draw_diversity"),
    ]
    return box("task_diversity", nodes)
