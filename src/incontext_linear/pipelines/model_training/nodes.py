"""Train the in-context learner, or take one that was trained before."""

from dataclasses import fields

import pandas as pd

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.learner.saved import Learner, check_same_shape
from incontext_linear.logged_learner import Kept
from incontext_linear.progress import training_progress
from incontext_linear.tables import MetricHistories, metric_history
from incontext_linear.training import Recipe, train
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.loop import Progress


def train_learner(
    task: TaskConfig,
    model: LearnerConfig,
    training: TrainingConfig,
    seed: int,
    checkpoints: CheckpointStore,
    device: str,
    pretrained: Learner | None,
) -> Learner:
    """Train from the seed, or resume; a pretrained learner, where the catalog has one, is used as
    it is.

    Raises:
        ValueError: if the pretrained learner has another task or shape than the parameters say.
    """
    if pretrained is not None:
        check_same_shape(
            "the pretrained learner", (pretrained.task, pretrained.config), (task, model)
        )
        if pretrained.task != task:
            raise ValueError(
                f"the pretrained learner was trained on [{pretrained.task}], but the parameters "
                f"say [{task}]"
            )
        return pretrained
    with training_progress(training.num_steps) as report:
        return train(Recipe(task, model, training, seed), device, checkpoints, report)


def discard_checkpoints(
    learner: Learner,
    task: TaskConfig,
    model: LearnerConfig,
    training: TrainingConfig,
    seed: int,
    checkpoints: CheckpointStore,
) -> None:
    """Remove a run's checkpoints. ``learner`` is an input so that this comes after it is saved."""
    checkpoints.discard(Recipe(task, model, training, seed).fingerprint)


def tabulate_history(learner: Learner) -> pd.DataFrame:
    """The training record as a table: step, loss, SPD to OLS, learning rate."""
    names = [column.name for column in fields(Progress)]
    return pd.DataFrame(learner.record["history"], columns=names)  # none, if trained elsewhere


def report_training_metrics(learner: Learner, history: pd.DataFrame) -> MetricHistories:
    """Loss and SPD to OLS over steps, as metric histories; and how large the network is."""
    curves = {
        f"training/{name}": metric_history(history["step"], history[name])
        for name in ("loss", "spd_to_ols")
    }
    count = sum(parameter.numel() for parameter in learner.model.parameters())
    return curves | {"training/num_parameters": metric_history([0], [count])}


def keep_learner(learner: Learner, registered_model: str | None) -> Kept:
    """The learner for MLflow, and the registered model that it becomes a version of."""
    return Kept(learner, registered_model)
