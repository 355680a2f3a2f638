"""Wiring: parameters in; sizes, errors, the worked hidden matrix, their figures and metrics out."""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines.construction.nodes import (
    draw_constants,
    draw_errors,
    draw_hidden_matrix,
    draw_sizes,
    measure_constants,
    measure_errors,
    measure_sizes,
    report_construction_metrics,
    trace_gradient_step,
)


def create_pipeline(**kwargs) -> Pipeline:
    """Build the constructed transformers and measure them."""
    return pipeline(
        [
            node(
                measure_sizes,
                "params:construction",
                ["construction_sizes", "construction_growth"],
                name="measure_sizes",
            ),
            node(
                measure_errors,
                ["params:construction", "params:seed"],
                "construction_errors",
                name="measure_errors",
            ),
            node(
                measure_constants,
                ["params:construction", "params:seed"],
                "construction_constants",
                name="measure_constants",
            ),
            node(
                trace_gradient_step, "params:seed", "construction_trace", name="trace_gradient_step"
            ),
            node(
                report_construction_metrics,
                ["construction_sizes", "construction_errors"],
                "construction_metrics",
                name="report_construction_metrics",
            ),
            node(draw_sizes, "construction_sizes", "construction_size_figure", name="draw_sizes"),
            node(
                draw_errors, "construction_errors", "construction_error_figure", name="draw_errors"
            ),
            node(
                draw_constants,
                "construction_constants",
                "construction_constant_figure",
                name="draw_constants",
            ),
            node(
                draw_hidden_matrix,
                "construction_trace",
                "construction_hidden_matrix_figure",
                name="draw_hidden_matrix",
            ),
        ],
        tags="construction",
    )
