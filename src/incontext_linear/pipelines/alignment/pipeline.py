"""Wiring: a learner and its control in; causal variables, paths and readings out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.figures.alignment import plot_alignment, plot_ranks, plot_reading
from incontext_linear.pipelines import box, probing
from incontext_linear.pipelines.alignment.nodes import (
    calibrate_search,
    read_query,
    report_alignment_metrics,
    search_variables,
    trace_reading,
)

_SETTINGS = ["params:alignment", "params:seed"]
_RUN = ["params:task", "params:model", "params:seed"]


def create_pipeline(**kwargs) -> Pipeline:
    """Which variables the learner's states hold and use, and through which heads it reads.

    The control learner is the one of the probing pipeline, made here where that has not run.
    """
    nodes = [
        node(
            search_variables,
            ["learner", "control_learner", *_SETTINGS, "params:device"],
            ["alignment_shares", "alignment_verdicts"],
            name="search_variables",
            tags="alignment_search",
        ),
        node(
            trace_reading,
            ["learner", *_SETTINGS, "params:device"],
            ["query_edges", "path_shares", "head_ablation", "attention_patterns"],
            name="trace_reading",
            tags="alignment_reading",
        ),
        node(
            read_query,
            ["learner", *_SETTINGS, "params:device"],
            ["query_readings", "query_progress"],
            name="read_query",
            tags="alignment_reading",
        ),
        node(
            calibrate_search,
            "params:alignment",
            ["alignment_calibration", "calibration_counts"],
            name="calibrate_search",
            tags="alignment_calibration",
        ),
        node(
            report_alignment_metrics,
            ["alignment_verdicts", "path_shares", "calibration_counts"],
            "alignment_metrics",
            name="report_alignment_metrics",
        ),
        node(
            plot_alignment,
            ["alignment_verdicts", *_RUN],
            "alignment_figure",
            name="draw_alignment",
            tags="alignment_search",
        ),
        node(
            plot_ranks,
            ["alignment_shares", *_RUN],
            "alignment_rank_figure",
            name="draw_ranks",
            tags="alignment_search",
        ),
        node(
            plot_reading,
            ["query_readings", "query_edges", "path_shares", "head_ablation", *_RUN],
            "query_reading_figure",
            name="draw_reading",
            tags="alignment_reading",
        ),
    ]
    control = probing.create_pipeline().to_outputs("control_learner")
    return Pipeline(
        [
            Pipeline(control, tags=["alignment", "alignment_search"]),
            box("alignment", nodes),
        ],
        tags="alignment",
    )
