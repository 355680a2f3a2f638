"""Wiring: a finished sweep in; which algorithm its learners are nearest to, figures and metrics
out.
"""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines.phase_diagram.nodes import (
    draw_divergences_along_axis,
    draw_heat_map,
    draw_nearest,
    find_nearest,
    find_transitions,
    measure_divergences,
    measure_heat_map,
    report_phase_metrics,
    resample_divergences,
    select_variants,
)

_PREDICTIONS = ["sweep_learner_predictions", "sweep_baseline_predictions"]
_SETTINGS = "params:phase_diagram"


def create_pipeline(**kwargs) -> Pipeline:
    """Which algorithm, when: a phase diagram of a finished sweep."""
    return pipeline(_measure() + _report(), tags="phase_diagram")


def _measure() -> Pipeline:
    return pipeline(
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
            node(
                measure_divergences,
                ["sweep_resamples", _SETTINGS],
                "phase_divergences",
                name="measure_divergences",
            ),
            node(
                find_nearest, ["sweep_resamples", _SETTINGS], "phase_nearest", name="find_nearest"
            ),
            node(
                measure_heat_map,
                ["sweep_resamples", "sweep_variants", "phase_variants", _SETTINGS],
                "phase_heat_map",
                name="measure_heat_map",
            ),
            node(
                find_transitions,
                ["sweep_resamples", _SETTINGS],
                "phase_transitions",
                name="find_transitions",
            ),
        ]
    )


def _report() -> Pipeline:
    return pipeline(
        [
            node(
                report_phase_metrics,
                ["phase_divergences", "phase_nearest", "phase_heat_map", "phase_transitions"],
                "phase_metrics",
                name="report_phase_metrics",
            ),
            node(
                draw_divergences_along_axis,
                ["phase_divergences", "phase_nearest", "phase_transitions"],
                "phase_divergence_figure",
                name="draw_divergences_along_axis",
            ),
            node(
                draw_nearest,
                ["phase_nearest", "phase_divergences"],
                "phase_nearest_figure",
                name="draw_nearest",
            ),
            node(draw_heat_map, "phase_heat_map", "phase_heat_map_figure", name="draw_heat_map"),
        ]
    )
