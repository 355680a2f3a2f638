"""Kedro datasets that no library has: learners that carry their configuration, and training checkpoints."""

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from incontext_linear.checkpoints import CheckpointStore, Learner, load_learner, save_learner


class LearnerDataset(AbstractDataset[Learner, Learner]):
    """A learner in one safetensors file, configuration and training record in its header.

    Args:
        filepath: where it lies; written atomically.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Learner:
        return load_learner(self._filepath)

    def save(self, data: Learner) -> None:
        save_learner(self._filepath, data)

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class CheckpointsDataset(AbstractDataset[None, CheckpointStore]):
    """Gives a node the store of training checkpoints; nothing is ever saved through it as a whole.

    Args:
        path: the store's folder.
        keep: checkpoints kept of each run.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(self, path: str, keep: int = 2, metadata: dict[str, Any] | None = None):
        self._store = CheckpointStore(Path(path), keep)
        self.metadata = metadata

    def load(self) -> CheckpointStore:
        return self._store

    def save(self, data: None) -> None:
        raise NotImplementedError("training writes its checkpoints itself, through the store")

    def _exists(self) -> bool:
        # An empty store is a valid one: training then starts from the beginning.
        return True

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._store.directory), "keep": self._store.keep}
