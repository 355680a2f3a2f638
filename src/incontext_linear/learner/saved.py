"""A learner on disk: weights, configuration and training record in one safetensors file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.files import (
    UnreadableFileError,
    read_tensors,
    recipe_fingerprint,
    write_tensors,
)
from incontext_linear.learner.base import AnyNetwork
from incontext_linear.learner.registry import build_learner


@dataclass(frozen=True)
class Learner:
    """A trained network with what it was trained on, and how (its training record).

    Args:
        model: one of the architectures, or a network of one's own.
        task: what it was trained on.
        record: how it was trained.
        own_config: of a network of one's own, which keeps none as ``config``.
    """

    model: AnyNetwork
    task: TaskConfig
    record: dict[str, Any] = field(default_factory=dict)
    own_config: LearnerConfig | None = None

    @property
    def config(self) -> LearnerConfig:
        """Its architecture and sizes."""
        return self.own_config or self.model.config

    @property
    def shape(self) -> str:
        """Its sizes, in words."""
        return describe_shape(self.task, self.config)


def describe_shape(task: TaskConfig, model: LearnerConfig) -> str:
    """Sizes that decide whether weights fit a learner."""
    return f"dim={task.dim} num_examples={task.num_examples} {model.sizes}"


def save_learner(path: Path, learner: Learner) -> None:
    """Write a learner: its weights, and in the header its configuration, training record and, if
    it was trained, its recipe's fingerprint.
    """
    description: dict[str, Any] = {
        "task": learner.task.model_dump(mode="json"),
        "model": learner.config.model_dump(mode="json"),
        "record": learner.record,
    }
    if {"training", "seed"} <= learner.record.keys():
        description["fingerprint"] = _fingerprint(description)
    write_tensors(path, learner.model.state_dict(), description)


def _fingerprint(description: dict[str, Any]) -> str:
    """Of the recipe that a header describes, as `Recipe.fingerprint` has it."""
    record = description["record"]
    model = LearnerConfig.model_validate(description["model"]).numerics()
    return recipe_fingerprint(description["task"], model, record["training"], record["seed"])


def load_learner(path: Path, expected: tuple[TaskConfig, LearnerConfig] | None = None) -> Learner:
    """Read a learner, on the CPU, in evaluation mode.

    Args:
        path: file written by `save_learner`.
        expected: sizes that the learner must have, where the caller needs certain ones.

    Raises:
        UnreadableFileError: in one line, if the file is damaged or no learner: its checksum and
            fingerprint, the names and shapes of its weights and their finiteness are looked at
            before a network is made of them.
        ValueError: if the learner has another shape; both shapes are named.
    """
    tensors, description = read_tensors(path)
    try:
        task = TaskConfig.model_validate(description["task"])
        config = LearnerConfig.model_validate(description["model"])
        record = description["record"]
        if not isinstance(record, dict):
            raise TypeError(f"its training record is {record!r}")
        # Learners from before there were fingerprints are taken at their word.
        if "fingerprint" in description and description["fingerprint"] != _fingerprint(description):
            raise ValueError("its fingerprint is not that of the recipe it describes")
        _check_weights(tensors, task, config)
        model = build_learner(task.dim, task.num_examples, config)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnreadableFileError(
            f"{path} holds no learner that this version can read: {reason}"
        ) from error
    if expected is not None:
        check_same_shape(f"the learner in {path}", (task, config), expected)
    return Learner(model.eval(), task, record, config)


def _check_weights(tensors: dict[str, Tensor], task: TaskConfig, config: LearnerConfig) -> None:
    """Compare with what a network of these sizes has, without allocating one."""
    with torch.device("meta"):
        wanted = build_learner(task.dim, task.num_examples, config).state_dict()
    if missing := sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(f"weights are missing or too many: {missing[0]} (of {len(missing)})")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            found, fits = tuple(tensor.shape), tuple(wanted[name].shape)
            raise ValueError(f"{name} has shape {found}, and its sizes ask for {fits}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


def check_same_shape(
    owner: str, found: tuple[TaskConfig, LearnerConfig], expected: tuple[TaskConfig, LearnerConfig]
) -> None:
    """Raise ValueError, naming both shapes, if ``found`` differs from ``expected``."""
    if describe_shape(*found) != describe_shape(*expected):
        raise ValueError(
            f"{owner} has shape [{describe_shape(*found)}], "
            f"but the parameters ask for [{describe_shape(*expected)}]"
        )
