"""Wiring: a finished sweep in; its curves over seeds, figures and metrics out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.figures.across_seeds import plot_curves, plot_layers
from incontext_linear.pipelines import box
from incontext_linear.pipelines.across_seeds.nodes import average_seeds, report_seeds_metrics

_TABLES = ["across_seeds_means", "across_seeds_singles"]


def create_pipeline(**kwargs) -> Pipeline:
    """What holds over the trainings of a sweep."""
    nodes = [
        node(
            average_seeds,
            [
                "seeds_variants",
                "seeds_tables",
                "seeds_tensors",
                "params:across_seeds",
                "params:seed",
            ],
            _TABLES,
            name="average_seeds",
        ),
        node(
            report_seeds_metrics,
            "across_seeds_means",
            "across_seeds_metrics",
            name="report_seeds_metrics",
        ),
        node(
            plot_curves,
            [*_TABLES, "params:across_seeds.sweep"],
            "across_seeds_curves_figure",
            name="draw_curves_over_seeds",
        ),
        node(
            plot_layers,
            [*_TABLES, "params:across_seeds.sweep"],
            "across_seeds_layers_figure",
            name="draw_layers_over_seeds",
        ),
    ]
    return box("across_seeds", nodes)
