"""Wiring: parameters in, a learner and its training history out."""

from kedro.pipeline import Pipeline, node

from incontext_linear.figures.model_training import plot_history
from incontext_linear.pipelines import box
from incontext_linear.pipelines.model_training.nodes import (
    discard_checkpoints,
    keep_learner,
    report_training_metrics,
    tabulate_history,
    train_learner,
)

_RUN = ["params:task", "params:model", "params:training", "params:seed", "training_checkpoints"]


def create_pipeline(**kwargs) -> Pipeline:
    """Train the learner; tabulate, plot and report its history."""
    nodes = [
        node(
            train_learner,
            [*_RUN, "params:device", "pretrained_learner"],
            "learner",
            name="train_learner",
        ),
        node(discard_checkpoints, ["learner", *_RUN], None, name="discard_checkpoints"),
        node(
            keep_learner,
            ["learner", "params:registered_model"],
            "logged_learner",
            name="keep_learner",
        ),
        node(tabulate_history, "learner", "training_history", name="tabulate_history"),
        node(
            report_training_metrics,
            ["learner", "training_history"],
            "training_metrics",
            name="report_training_metrics",
        ),
        node(
            plot_history,
            ["training_history", "params:task", "params:model", "params:seed"],
            "training_figure",
            name="draw_history",
        ),
    ]
    return box("model_training", nodes)
