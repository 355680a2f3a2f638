"""Wiring: a learner, its controls and probing prompts in; scores, selectivity, causality and
progress out.
"""

from kedro.pipeline import Pipeline, node

from incontext_linear.figures.probing import (
    plot_attention,
    plot_calibration,
    plot_controls,
    plot_movements,
    plot_probe_attention,
    plot_probe_scores,
    plot_progress,
    plot_selectivity,
)
from incontext_linear.learner.attention_maps import average_attention
from incontext_linear.pipelines import box, data_generation
from incontext_linear.pipelines.probing.nodes import (
    construct_for_prompts,
    report_calibration_metrics,
    report_causality_metrics,
    report_probing_metrics,
    report_progress_metrics,
    report_selectivity_metrics,
    select_for_shape,
    train_control_learner,
)
from incontext_linear.probing.calibration import (
    fit_calibration,
    nearest_calibration_steps,
    score_calibration,
    select_for_calibration,
)
from incontext_linear.probing.controls import (
    fit_controls,
    fit_learner,
    fit_random_targets,
    join_controls,
)
from incontext_linear.probing.interventions import measure_causality
from incontext_linear.probing.layerwise import measure_progress
from incontext_linear.probing.selectivity import overlap_table, score_table, selectivity_tables
from incontext_linear.probing.states import collect_hidden_states

_PARTS = ["probes", "controls", "causality", "layerwise", "calibration"]
_SETTINGS = ["params:probing", "params:seed"]
_SHAPE = ["params:task", "params:model"]
_RUN = ["params:task", "params:model", "params:seed"]
_SELECT = ["probing_prompts", "params:probing", "params:device", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Probes, their controls, interventions and the layers' progress; each part has a tag of its
    own.

    The prompts are drawn anew, which takes a moment, so that a learner is all that a run needs.
    """
    prompts = data_generation.create_pipeline().to_outputs("probing_prompts")
    parts = [_selection(), _probes(), _controls(), _causality(), _layerwise(), _calibration()]
    return Pipeline([Pipeline(prompts, tags=_PARTS), box("probing", parts)], tags="probing")


def _selection() -> Pipeline:
    """What every part needs, of which a run of one part makes no more than that."""
    return Pipeline(
        [
            node(
                select_for_shape,
                [*_SHAPE, *_SELECT],
                "probed",
                name="select",
                tags=["probes", "controls", "causality", "layerwise"],
            ),
            node(
                collect_hidden_states,
                ["learner", "probed"],
                "hidden_states",
                name="collect_hidden_states",
                tags=["probes", "controls", "layerwise"],
            ),
        ]
    )


def _probes() -> Pipeline:
    return Pipeline(
        [
            node(
                fit_learner,
                ["hidden_states", "learner", "probed", *_SETTINGS],
                ["probe_errors", "probe_attention", "probe_readouts"],
                name="train_probes",
            ),
            node(score_table, ["probe_errors", *_SETTINGS], "probe_scores", name="score_probes"),
            node(
                report_probing_metrics,
                "probe_scores",
                "probing_metrics",
                name="report_probing_metrics",
            ),
            node(
                plot_probe_scores,
                ["probe_scores", *_RUN],
                "probe_score_figure",
                name="draw_probe_scores",
            ),
            node(
                plot_probe_attention,
                ["probe_attention", *_RUN],
                "probe_attention_figure",
                name="draw_probe_attention",
            ),
            node(
                average_attention,
                ["learner", "probing_prompts", "params:device"],
                "learner_attention",
                name="average_attention",
            ),
            node(
                plot_attention,
                ["learner_attention", *_RUN],
                "learner_attention_figure",
                name="draw_attention",
            ),
        ],
        tags="probes",
    )


def _controls() -> Pipeline:
    recipe = [*_SHAPE, "params:training"]
    return Pipeline(
        [
            node(
                train_control_learner,
                [*recipe, "params:probing", "params:seed", "params:device", "pretrained_control"],
                "control_learner",
                name="train_control_learner",
            ),
            node(
                fit_controls,
                ["control_learner", *_SHAPE, "probed", *_SETTINGS],
                "network_control_errors",
                name="train_control_probes",
            ),
            node(
                fit_random_targets,
                ["hidden_states", "probed", *_SETTINGS],
                "random_target_errors",
                name="train_random_probes",
            ),
            node(
                join_controls,
                ["network_control_errors", "random_target_errors"],
                "control_errors",
                name="join_controls",
            ),
            node(
                score_table, ["control_errors", *_SETTINGS], "control_scores", name="score_controls"
            ),
            node(
                selectivity_tables,
                ["probe_errors", "control_errors", *_SETTINGS],
                ["selectivity", "target_appearances", "target_order"],
                name="measure_selectivity",
            ),
            node(overlap_table, ["probed", *_SETTINGS], "target_overlap", name="measure_overlap"),
            node(
                report_selectivity_metrics,
                "selectivity",
                "selectivity_metrics",
                name="report_selectivity_metrics",
            ),
            node(
                plot_controls,
                ["probe_scores", "control_scores", "probe_attention", *_RUN],
                "probe_control_figure",
                name="draw_controls",
            ),
            node(
                plot_selectivity,
                ["selectivity", "target_appearances", *_RUN],
                "selectivity_figure",
                name="draw_selectivity",
            ),
        ],
        tags="controls",
    )


def _causality() -> Pipeline:
    return Pipeline(
        [
            node(
                measure_causality,
                ["learner", "probed", "probe_readouts", *_SETTINGS],
                "causality",
                name="measure_causality",
            ),
            node(
                report_causality_metrics,
                "causality",
                "causality_metrics",
                name="report_causality_metrics",
            ),
            node(plot_movements, ["causality", *_RUN], "causality_figure", name="draw_causality"),
        ],
        tags="causality",
    )


def _layerwise() -> Pipeline:
    return Pipeline(
        [
            node(
                measure_progress,
                ["hidden_states", "learner", "probed", *_SETTINGS],
                ["layer_progress", "nearest_steps"],
                name="measure_progress",
            ),
            node(
                report_progress_metrics,
                "nearest_steps",
                "progress_metrics",
                name="report_progress_metrics",
            ),
            node(
                plot_progress,
                ["layer_progress", "nearest_steps", *_RUN],
                "progress_figure",
                name="draw_progress",
            ),
        ],
        tags="layerwise",
    )


def _calibration() -> Pipeline:
    network = ["constructed_states", "constructed_learner", "calibration_probed"]
    return Pipeline(
        [
            node(
                construct_for_prompts,
                ["params:task", "params:evaluation", "params:probing"],
                "constructed_learner",
                name="construct_learner",
            ),
            node(
                select_for_calibration,
                ["constructed_learner", *_SELECT],
                "calibration_probed",
                name="select_for_calibration",
            ),
            node(
                collect_hidden_states,
                ["constructed_learner", "calibration_probed"],
                "constructed_states",
                name="collect_constructed_states",
            ),
            node(
                fit_calibration,
                [*network, *_SETTINGS],
                ["calibration_errors", "calibration_readouts"],
                name="train_calibration_probes",
            ),
            node(
                score_calibration,
                ["calibration_errors", "constructed_learner", *_SETTINGS],
                "calibration_scores",
                name="score_calibration",
            ),
            node(
                measure_causality,
                ["constructed_learner", "calibration_probed", "calibration_readouts", *_SETTINGS],
                "calibration_causality",
                name="calibrate_interventions",
            ),
            node(
                nearest_calibration_steps,
                [*network, *_SETTINGS],
                "calibration_steps",
                name="calibrate_progress",
            ),
            node(
                report_calibration_metrics,
                ["calibration_scores", "calibration_causality"],
                "calibration_metrics",
                name="report_calibration_metrics",
            ),
            node(
                plot_calibration,
                ["calibration_scores", "calibration_causality", "params:task", "params:seed"],
                "calibration_figure",
                name="draw_calibration",
            ),
        ],
        tags="calibration",
    )
