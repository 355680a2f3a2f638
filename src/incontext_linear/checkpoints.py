"""Weights on disk: learners that carry their configuration, and checkpoints that training resumes from.

Everything is safetensors, never pickle, with a JSON description in the file's header, and is written to
a temporary file that then takes the place of the old one: a reader, or a process that dies half-way,
sees the old file or the new one, never a part.
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.transformer import Transformer

logger = logging.getLogger(__name__)

_HEADER_KEY = "incontext_linear"


class UnreadableFileError(RuntimeError):
    """A weights file is truncated, or is not one of ours."""


def write_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and their description atomically; identical content is left untouched."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, metadata={_HEADER_KEY: json.dumps(description, sort_keys=True)})
    if path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk, say: name the file that could not be written
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        UnreadableFileError: if the file is truncated or was not written by `write_tensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})[_HEADER_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UnreadableFileError(
            f"{path} is truncated or not a weights file of this project: {error}"
        ) from error


@dataclass(frozen=True)
class Learner:
    """A trained transformer with what it was trained on, and how (its training record)."""

    model: Transformer
    task: TaskConfig
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """Its sizes, in words."""
        return describe_shape(self.task, self.model.config)


def describe_shape(task: TaskConfig, model: ModelConfig) -> str:
    """Sizes that decide whether weights fit a transformer."""
    return (
        f"dim={task.dim} num_examples={task.num_examples} num_layers={model.num_layers} "
        f"num_heads={model.num_heads} width={model.width} mlp_width={model.mlp_units}"
    )


def save_learner(path: Path, learner: Learner) -> None:
    """Write a learner: its weights, and in the header its configuration and training record."""
    description = {
        "task": learner.task.model_dump(mode="json"),
        "model": learner.model.config.model_dump(mode="json"),
        "record": learner.record,
    }
    write_tensors(path, learner.model.state_dict(), description)


def load_learner(path: Path, expected: tuple[TaskConfig, ModelConfig] | None = None) -> Learner:
    """Read a learner, on the CPU, in evaluation mode.

    Args:
        path: file written by `save_learner`.
        expected: sizes that the learner must have, where the caller needs certain ones.

    Raises:
        UnreadableFileError: if the file is truncated or no learner.
        ValueError: if the learner has another shape; both shapes are named.
    """
    tensors, description = read_tensors(path)
    try:
        task = TaskConfig.model_validate(description["task"])
        config = ModelConfig.model_validate(description["model"])
        model = Transformer(task.dim, task.num_examples, config)
        model.load_state_dict(tensors)
        learner = Learner(model.eval(), task, description["record"])
    except (KeyError, ValidationError, RuntimeError) as error:
        raise UnreadableFileError(f"{path} holds no learner that this version can read: {error}") from error
    if expected is not None:
        check_same_shape(f"the learner in {path}", (task, config), expected)
    return learner


def check_same_shape(
    owner: str, found: tuple[TaskConfig, ModelConfig], expected: tuple[TaskConfig, ModelConfig]
) -> None:
    """Raise ValueError, naming both shapes, if ``found`` differs from ``expected``."""
    if describe_shape(*found) != describe_shape(*expected):
        raise ValueError(
            f"{owner} has shape [{describe_shape(*found)}], "
            f"but the parameters ask for [{describe_shape(*expected)}]"
        )


def fingerprint(*configs: Any) -> str:
    """A short hash of JSON-like values: equal parameters, equal fingerprint."""
    text = json.dumps(configs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Checkpoint:
    """One saved training state: tensors by name, and a JSON description with its ``step``."""

    step: int
    tensors: dict[str, Tensor]
    description: dict[str, Any]


@dataclass(frozen=True)
class CheckpointStore:
    """Training checkpoints in a folder, one subfolder for each set of parameters.

    Checkpoints of different parameters never meet, so none is overwritten by another run's.

    Args:
        directory: where the subfolders lie; made when first written to.
        keep: how many of the newest checkpoints of a run are kept.
    """

    directory: Path
    keep: int = 2

    def paths(self, run: str) -> list[Path]:
        """Files of one run (a fingerprint), oldest first."""
        return sorted((self.directory / run).glob("step_*.safetensors"))

    def save(self, run: str, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint atomically, then remove all but the newest ``keep``."""
        path = self.directory / run / f"step_{checkpoint.step:09d}.safetensors"
        write_tensors(path, checkpoint.tensors, {**checkpoint.description, "step": checkpoint.step})
        for old in self.paths(run)[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self, run: str) -> Checkpoint | None:
        """The newest readable checkpoint of a run; unreadable ones are named in a warning and passed over."""
        for path in reversed(self.paths(run)):
            try:
                tensors, description = read_tensors(path)
            except FileNotFoundError:  # another process with the same parameters has moved on
                continue
            except UnreadableFileError as error:
                logger.warning("Passing over a damaged checkpoint: %s", error)
                continue
            return Checkpoint(description["step"], tensors, description)
        return None

    def discard(self, run: str) -> None:
        """Remove a run's checkpoints: its learner has been saved."""
        folder = self.directory / run
        for path in (*self.paths(run), *folder.glob(".step_*.tmp")):  # and what a killed write left
            path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def resolve_device(name: str) -> torch.device:
    """``auto``: a GPU where there is one, else the CPU.

    Raises:
        ValueError: if ``cuda`` is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch finds no GPU here; allowed: auto, cpu")
    return torch.device(name)
