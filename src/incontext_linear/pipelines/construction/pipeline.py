"""Wiring: parameters in; sizes, errors, the worked hidden matrix, their figures and metrics out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.construction.measurements import (
    constants_table,
    error_table,
    growth_table,
    size_table,
    trace_gradient_step,
)
from incontext_linear.figures.construction import (
    plot_constants,
    plot_errors,
    plot_hidden_matrix,
    plot_sizes,
)
from incontext_linear.pipelines import box
from incontext_linear.pipelines.construction.nodes import report_construction_metrics

_SETTINGS = ["params:construction", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Build the constructed transformers and measure them."""
    sizes, errors, constants, trace = (
        f"construction_{table}" for table in ("sizes", "errors", "constants", "trace")
    )
    nodes = [
        node(size_table, "params:construction", sizes, name="measure_sizes"),
        node(growth_table, sizes, "construction_growth", name="measure_growth"),
        node(error_table, _SETTINGS, errors, name="measure_errors"),
        node(constants_table, _SETTINGS, constants, name="measure_constants"),
        node(trace_gradient_step, "params:seed", trace, name="trace_gradient_step"),
        node(
            report_construction_metrics,
            errors,
            "construction_metrics",
            name="report_construction_metrics",
        ),
        node(
            plot_sizes,
            [sizes, "params:construction"],
            "construction_size_figure",
            name="draw_sizes",
        ),
        node(
            plot_errors,
            [errors, "params:construction"],
            "construction_error_figure",
            name="draw_errors",
        ),
        node(
            plot_constants,
            [constants, "params:construction"],
            "construction_constant_figure",
            name="draw_constants",
        ),
        node(
            plot_hidden_matrix,
            trace,
            "construction_hidden_matrix_figure",
            name="draw_hidden_matrix",
        ),
    ]
    return box("construction", nodes)
