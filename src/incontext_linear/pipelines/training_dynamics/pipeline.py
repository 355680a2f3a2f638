"""Wiring: parameters in; trainings with snapshots, and what they are nearest to step by step,
out.
"""

from kedro.pipeline import Pipeline, node

from incontext_linear.pipelines import box
from incontext_linear.pipelines.training_dynamics import nodes

_MEASURED = ["trajectories", "dynamics_prompts"]
_PREDICTED = [*_MEASURED, "dynamics_predictions"]
_SETTINGS = ["params:dynamics", "params:seed"]
_RUN = ["params:task", "params:model", "params:dynamics"]


def create_pipeline(**kwargs) -> Pipeline:
    """Train several seeds with snapshots; follow their behaviour, heads and layers."""
    return box("training_dynamics", [_train(), _measure(), _report()])


def _train() -> Pipeline:
    return Pipeline(
        [
            node(
                nodes.train_seeds,
                [
                    "params:task",
                    "params:model",
                    "params:training",
                    "params:dynamics",
                    "training_snapshots",
                    "training_checkpoints",
                    "params:device",
                ],
                "trajectories",
                name="train_seeds",
            ),
            node(
                nodes.draw_prompts,
                ["params:task", "params:evaluation", *_SETTINGS],
                "dynamics_prompts",
                name="draw_prompts",
            ),
            node(
                nodes.predict,
                [*_MEASURED, "params:device"],
                "dynamics_predictions",
                name="predict",
            ),
        ]
    )


def _measure() -> Pipeline:
    return Pipeline(
        [
            node(
                nodes.measure_distances,
                [*_PREDICTED, "params:task", "params:baselines", *_SETTINGS],
                [
                    "dynamics_spd",
                    "dynamics_seeds",
                    "dynamics_nearest",
                    "dynamics_visits",
                    "dynamics_passages",
                ],
                name="measure_distances",
            ),
            node(
                nodes.measure_linearity,
                [*_MEASURED, "params:task", *_SETTINGS, "params:device"],
                "dynamics_linearity",
                name="measure_linearity",
            ),
            node(
                nodes.fit_families,
                [*_PREDICTED, "params:task", *_SETTINGS],
                ["dynamics_families", "dynamics_comparison", "dynamics_power"],
                name="fit_families",
            ),
            node(
                nodes.measure_heads,
                [*_MEASURED, "params:dynamics", "params:device"],
                ["dynamics_heads", "dynamics_appearances"],
                name="measure_heads",
            ),
            node(
                nodes.measure_states,
                [*_MEASURED, *_SETTINGS, "params:device"],
                ["dynamics_probes", "dynamics_readouts"],
                name="measure_states",
            ),
        ]
    )


def _report() -> Pipeline:
    return Pipeline(
        [
            node(
                nodes.report_dynamics_metrics,
                ["dynamics_spd", "dynamics_passages", "dynamics_appearances"],
                "dynamics_metrics",
                name="report_metrics",
            ),
            node(
                nodes.draw_distances,
                ["dynamics_spd", *_RUN],
                "dynamics_distances_figure",
                name="draw_distances",
            ),
            node(
                nodes.draw_nearest,
                ["dynamics_nearest", *_RUN],
                "dynamics_nearest_figure",
                name="draw_nearest",
            ),
            node(
                nodes.draw_plane,
                ["dynamics_seeds", *_RUN],
                "dynamics_plane_figure",
                name="draw_plane",
            ),
            node(
                nodes.draw_families,
                ["dynamics_families", "dynamics_comparison", "dynamics_power", *_RUN],
                "dynamics_families_figure",
                name="draw_families",
            ),
            node(
                nodes.draw_heads,
                ["dynamics_heads", "dynamics_appearances", *_RUN],
                "dynamics_heads_figure",
                name="draw_heads",
            ),
            node(
                nodes.draw_states,
                ["dynamics_probes", "dynamics_readouts", *_RUN],
                "dynamics_states_figure",
                name="draw_states",
            ),
        ]
    )
