"""The learner as it was at chosen steps of its training, kept for `incontext_linear.dynamics`.

A snapshot is a learner in a file of its own (`learner.saved`); it is written before the checkpoint
of the same step, so a run that is killed and resumed leaves the files that an unbroken one does.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from incontext_linear.files import UnreadableFileError, remove_temporaries
from incontext_linear.learner.saved import Learner, load_learner, save_learner

logger = logging.getLogger(__name__)


def log_spaced_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """Step 0 (the untrained learner) and up to ``count`` steps from 1 to ``num_steps``, whose
    logarithms are evenly spaced, rounded, each once.

    Raises:
        ValueError: if ``count`` is below 2: the first step and the last are always among them.
    """
    if count < 2:
        raise ValueError(f"count={count} snapshots; allowed: at least 2")
    spaced = np.geomspace(1, num_steps, count).round().astype(int)
    return (0, *np.unique(spaced).tolist())


@dataclass(frozen=True)
class SnapshotStore:
    """Snapshots in a folder, one subfolder for each training.

    Args:
        directory: where the subfolders lie; made when first written to.
        steps: numbers of steps after which the learner is kept; 0 is before the first.
    """

    directory: Path
    steps: tuple[int, ...] = ()

    def keep(self, run: str, learner: Learner) -> Path:
        """Write one snapshot atomically; its step is that of the learner's record."""
        path = self._path(run, learner.record["step"])
        save_learner(path, learner)
        return path

    def has_all(self, run: str, steps: Sequence[int]) -> bool:
        """Whether every one of these snapshots can be read; the first that cannot be is named in a
        warning. What a killed run left half-written is removed.
        """
        remove_temporaries(self.directory / run, below=False)
        return all(self._is_readable(self._path(run, step)) for step in steps)

    def has_until(self, run: str, step: int) -> bool:
        """Whether all snapshots that a training had to keep up to a step are there."""
        return self.has_all(run, [kept for kept in self.steps if kept <= step])

    def load(self, run: str) -> Iterator[tuple[int, Learner]]:
        """The learner at every step of ``steps``, one after the other.

        Raises:
            UnreadableFileError: if a snapshot is damaged.
            FileNotFoundError: if one is missing.
        """
        for step in self.steps:
            yield step, load_learner(self._path(run, step))

    def _path(self, run: str, step: int) -> Path:
        return self.directory / run / f"step_{step:09d}.safetensors"

    def _is_readable(self, path: Path) -> bool:
        if not path.exists():
            return False
        try:
            load_learner(path)
        except UnreadableFileError as error:
            logger.warning("A snapshot cannot be used and is made again: %s", error)
            return False
        return True
