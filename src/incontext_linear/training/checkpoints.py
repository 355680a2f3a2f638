"""Checkpoints that training resumes from: a run killed at any moment goes on from its newest
readable one.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from incontext_linear.files import (
    UnreadableFileError,
    read_tensors,
    remove_temporaries,
    write_tensors,
)

logger = logging.getLogger(__name__)


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
        path = self._path(run, checkpoint.step)
        description = {**checkpoint.description, "step": checkpoint.step, "run": run}
        write_tensors(path, checkpoint.tensors, description)
        for old in self.paths(run)[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self, run: str) -> Checkpoint | None:
        """The newest readable checkpoint of a run; unreadable ones are named in a warning and
        passed over.
        """
        return next(self.readable(run), None)

    def readable(self, run: str) -> Iterator[Checkpoint]:
        """The checkpoints of a run, the newest first, without those that are damaged or another
        run's: each of these is named in a warning.
        """
        for path in reversed(self.paths(run)):
            try:
                tensors, description = read_tensors(path)
                step = description["step"]
                if description.get("run", run) != run or self._path(run, step) != path:
                    raise UnreadableFileError(f"{path} is of another run or step")
            except FileNotFoundError:  # another process with the same parameters has moved on
                continue
            except (UnreadableFileError, KeyError, TypeError, ValueError) as error:
                logger.warning("Passing over a checkpoint that cannot be used: %s", error)
                continue
            yield Checkpoint(step, tensors, description)

    def _path(self, run: str, step: int) -> Path:
        return self.directory / run / f"step_{step:09d}.safetensors"

    def discard(self, recipe: str) -> None:
        """Remove the checkpoints of all runs of a recipe, by its fingerprint: its learner is
        saved.
        """
        for folder in self.directory.glob(f"{recipe}*"):
            for path in self.paths(folder.name):
                path.unlink(missing_ok=True)
            remove_temporaries(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
