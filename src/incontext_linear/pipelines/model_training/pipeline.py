"""Wiring: parameters in, a learner and its training history out."""

from kedro.pipeline import Pipeline, node, pipeline

from incontext_linear.pipelines.model_training.nodes import (
    discard_checkpoints,
    draw_history,
    report_training_metrics,
    tabulate_history,
    train_learner,
)

_RUN = ["params:task", "params:model", "params:training", "params:seed", "training_checkpoints"]


def create_pipeline(**kwargs) -> Pipeline:
    """Train the learner; tabulate, plot and report its history."""
    return pipeline(
        [
            node(
                train_learner,
                [*_RUN, "params:device", "pretrained_learner"],
                "learner",
                name="train_learner",
            ),
            node(discard_checkpoints, ["learner", *_RUN], None, name="discard_checkpoints"),
            node(tabulate_history, "learner", "training_history", name="tabulate_history"),
            node(
                report_training_metrics,
                "training_history",
                "training_metrics",
                name="report_training_metrics",
            ),
            node(draw_history, "training_history", "training_figure", name="draw_history"),
        ],
        tags="model_training",
    )
