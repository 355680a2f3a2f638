"""Wiring: a learner and its control in; evidence, a verdict, figures and metrics out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.pipelines import box, probing
from incontext_linear.pipelines.identification.nodes import (
    TABLES,
    draw_filters,
    draw_identification,
    draw_shift_curves,
    identify_controls,
    identify_learner,
    measure_filters,
    tabulate,
    tell_verdict,
)

_SETTINGS = ["params:identification", "params:seed", "params:device"]
_BOTH = ["learner_identification", "control_identifications"]
_RUN = ["params:task", "params:model", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Which algorithm the learner follows, how far from home, and which filter each layer is.

    The control learner is the one of the probing pipeline, made here where that has not run.
    """
    nodes = [
        node(
            identify_learner,
            ["learner", *_SETTINGS],
            "learner_identification",
            name="identify",
            tags="long",
        ),
        node(
            identify_controls,
            ["control_learner", "params:task", "params:model", *_SETTINGS],
            "control_identifications",
            name="identify_controls",
        ),
        node(
            tabulate,
            _BOTH,
            [f"identification_{table}" for table in TABLES],
            name="tabulate",
        ),
        node(
            tell_verdict,
            _BOTH,
            ["verdict_text", "verdict_tags", "verdict_metrics"],
            name="tell_verdict",
        ),
        node(
            draw_identification,
            ["learner_identification", *_RUN],
            "identification_figure",
            name="draw_identification",
        ),
        node(
            draw_shift_curves,
            ["learner_identification", *_RUN],
            "shift_figure",
            name="draw_shift_curves",
        ),
        node(
            measure_filters,
            ["learner", *_SETTINGS],
            ["layer_filters", "filter_bins", "filter_scores", "filter_shares"],
            name="measure_filters",
        ),
        node(draw_filters, ["layer_filters", *_RUN], "filter_figure", name="draw_filters"),
    ]
    control = probing.create_pipeline().to_outputs("control_learner")
    return Pipeline(
        [Pipeline(control, tags="identification"), box("identification", nodes)],
        tags="identification",
    )
