"""Wiring: a learner, its controls and probing prompts in; scores, selectivity, causality and
progress out.
"""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines import data_generation
from incontext_linear.pipelines.probing.nodes import (
    average_attention,
    calibrate_interventions,
    calibrate_progress,
    collect_hidden_states,
    construct_learner,
    draw_attention,
    draw_calibration,
    draw_causality,
    draw_controls,
    draw_probe_attention,
    draw_probe_scores,
    draw_progress,
    draw_selectivity,
    measure_causality,
    measure_overlap,
    measure_progress,
    measure_selectivity,
    report_calibration_metrics,
    report_causality_metrics,
    report_probing_metrics,
    report_progress_metrics,
    report_selectivity_metrics,
    score_calibration,
    score_probes,
    train_calibration_probes,
    train_control_learner,
    train_control_probes,
    train_probes,
)

_STATES = ["probing_prompts", "params:probing", "params:device", "params:seed"]
_BOOTSTRAP = ["params:probing", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Probes, their controls, interventions and the layers' progress; each part has a tag of its
    own.

    The prompts are drawn anew, which takes a moment, so that a learner is all that a run needs.
    """
    prompts = data_generation.create_pipeline().to_outputs("probing_prompts")
    states = node(
        collect_hidden_states,
        ["learner", "probing_prompts", "params:probing", "params:device"],
        "hidden_states",
        name="collect_hidden_states",
        tags=["probes", "controls", "layerwise"],
    )
    parts = prompts + pipeline([states]) + _probes() + _controls() + _causality() + _layerwise()
    parts += _calibration()
    return pipeline(parts, tags="probing")


def _probes() -> Pipeline:
    return pipeline(
        [
            node(
                train_probes,
                ["hidden_states", "learner", *_STATES],
                ["probe_errors", "probe_attention", "probe_readouts"],
                name="train_probes",
            ),
            node(score_probes, ["probe_errors", *_BOOTSTRAP], "probe_scores", name="score_probes"),
            node(
                report_probing_metrics,
                "probe_scores",
                "probing_metrics",
                name="report_probing_metrics",
            ),
            node(draw_probe_scores, "probe_scores", "probe_score_figure", name="draw_probe_scores"),
            node(
                draw_probe_attention,
                "probe_attention",
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
                draw_attention,
                "learner_attention",
                "learner_attention_figure",
                name="draw_attention",
            ),
        ],
        tags="probes",
    )


def _controls() -> Pipeline:
    training = ["learner", "params:training", "params:probing", "params:seed", "params:device"]
    return pipeline(
        [
            node(
                train_control_learner,
                [*training, "pretrained_control"],
                "control_learner",
                name="train_control_learner",
            ),
            node(
                train_control_probes,
                ["hidden_states", "learner", "control_learner", *_STATES],
                "control_errors",
                name="train_control_probes",
            ),
            node(
                score_probes,
                ["control_errors", *_BOOTSTRAP],
                "control_scores",
                name="score_controls",
            ),
            node(
                measure_selectivity,
                ["probe_errors", "control_errors", *_BOOTSTRAP],
                ["selectivity", "target_appearances", "target_order"],
                name="measure_selectivity",
            ),
            node(measure_overlap, _STATES, "target_overlap", name="measure_overlap"),
            node(
                report_selectivity_metrics,
                "selectivity",
                "selectivity_metrics",
                name="report_selectivity_metrics",
            ),
            node(
                draw_controls,
                ["probe_scores", "control_scores", "probe_attention"],
                "probe_control_figure",
                name="draw_controls",
            ),
            node(
                draw_selectivity,
                ["selectivity", "target_appearances"],
                "selectivity_figure",
                name="draw_selectivity",
            ),
        ],
        tags="controls",
    )


def _causality() -> Pipeline:
    inputs = [
        "learner",
        "probing_prompts",
        "probe_readouts",
        "params:probing",
        "params:device",
        "params:seed",
    ]
    return pipeline(
        [
            node(measure_causality, inputs, "causality", name="measure_causality"),
            node(
                report_causality_metrics,
                "causality",
                "causality_metrics",
                name="report_causality_metrics",
            ),
            node(draw_causality, "causality", "causality_figure", name="draw_causality"),
        ],
        tags="causality",
    )


def _calibration() -> Pipeline:
    network = ["constructed_learner", "probing_prompts"]
    settings = ["params:probing", "params:device", "params:seed"]
    return pipeline(
        [
            node(
                construct_learner,
                ["params:task", "params:probing"],
                "constructed_learner",
                name="construct_learner",
            ),
            node(
                train_calibration_probes,
                [*network, *settings],
                ["calibration_errors", "calibration_readouts"],
                name="train_calibration_probes",
            ),
            node(
                score_calibration,
                ["calibration_errors", "constructed_learner", *_BOOTSTRAP],
                "calibration_scores",
                name="score_calibration",
            ),
            node(
                calibrate_interventions,
                [*network, "calibration_readouts", *settings],
                "calibration_causality",
                name="calibrate_interventions",
            ),
            node(
                calibrate_progress,
                [*network, *settings],
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
                draw_calibration,
                ["calibration_scores", "calibration_causality"],
                "calibration_figure",
                name="draw_calibration",
            ),
        ],
        tags="calibration",
    )


def _layerwise() -> Pipeline:
    return pipeline(
        [
            node(
                measure_progress,
                ["hidden_states", "learner", *_STATES],
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
                draw_progress,
                ["layer_progress", "nearest_steps"],
                "progress_figure",
                name="draw_progress",
            ),
        ],
        tags="layerwise",
    )
