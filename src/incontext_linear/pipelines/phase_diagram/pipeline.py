"""Wiring: a finished sweep in; which algorithm its learners are nearest to, figures and metrics
out.
"""

from kedro.pipeline import Pipeline, node

from incontext_linear.figures.phase_diagram import (
    plot_axis_divergences,
    plot_heat_map,
    plot_nearest,
)
from incontext_linear.phase_diagram.nearest import divergence_table, nearest_table
from incontext_linear.phase_diagram.transitions import transition_table
from incontext_linear.pipelines import box
from incontext_linear.pipelines.phase_diagram.nodes import (
    measure_heat_map,
    report_phase_metrics,
    resample_divergences,
    select_variants,
)

_PREDICTIONS = ["sweep_learner_predictions", "sweep_baseline_predictions"]
_SETTINGS = "params:phase_diagram"
_MEASURE = ["sweep_resamples", "params:phase_diagram.bootstrap.confidence"]
_SWEEP = "params:phase_diagram.sweep"


def create_pipeline(**kwargs) -> Pipeline:
    """Which algorithm, when: a phase diagram of a finished sweep."""
    return box("phase_diagram", [_measure(), _report()])


def _measure() -> Pipeline:
    return Pipeline(
        [
            node(
                select_variants,
                ["sweep_variants", *_PREDICTIONS, _SETTINGS],
                "phase_variants",
                name="select_variants",
            ),
            node(
                resample_divergences,
                ["phase_variants", *_PREDICTIONS, _SETTINGS, "params:seed"],
                "sweep_resamples",
                name="resample_divergences",
            ),
            node(divergence_table, _MEASURE, "phase_divergences", name="measure_divergences"),
            node(nearest_table, _MEASURE, "phase_nearest", name="find_nearest"),
            node(
                measure_heat_map,
                ["sweep_resamples", "sweep_variants", "phase_variants", _SETTINGS],
                "phase_heat_map",
                name="measure_heat_map",
            ),
            node(transition_table, _MEASURE, "phase_transitions", name="find_transitions"),
        ]
    )


def _report() -> Pipeline:
    return Pipeline(
        [
            node(
                report_phase_metrics,
                ["phase_divergences", "phase_nearest", "phase_heat_map", "phase_transitions"],
                "phase_metrics",
                name="report_phase_metrics",
            ),
            node(
                plot_axis_divergences,
                ["phase_divergences", "phase_nearest", "phase_transitions", _SWEEP],
                "phase_divergence_figure",
                name="draw_divergences_along_axis",
            ),
            node(
                plot_nearest,
                ["phase_nearest", _SWEEP],
                "phase_nearest_figure",
                name="draw_nearest",
            ),
            node(
                plot_heat_map,
                ["phase_heat_map", _SWEEP],
                "phase_heat_map_figure",
                name="draw_heat_map",
            ),
        ]
    )
