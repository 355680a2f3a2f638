"""Kedro datasets that no library has: learners that carry their configuration, training
checkpoints, and
tables and tensors that take the place of the old ones only once they are written whole.
"""

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import ImagePreview, PlotlyPreview, TablePreview
from kedro_datasets.pandas import CSVDataset, ParquetDataset
from kedro_datasets_experimental.safetensors import SafetensorsDataset
from kedro_mlflow.io.metrics import MlflowMetricsHistoryDataset
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH
from safetensors import SafetensorError
from torch import Tensor

from incontext_linear.figures.style import Figure, draw
from incontext_linear.files import (
    UnreadableFileError,
    read_json,
    replace_atomically,
    write_text,
)
from incontext_linear.learner.saved import Learner, load_learner, save_learner
from incontext_linear.logged_learner import NAME, Kept, fetch_learner, log_learner
from incontext_linear.tables import (
    MetricHistories,
    Predictions,
    names_in_order,
    read_predictions,
    write_predictions,
)
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.snapshots import SnapshotStore

logger = logging.getLogger(__name__)


class LearnerDataset(AbstractDataset[Learner, Learner]):
    """A learner in one safetensors file, configuration and training record in its header.

    Args:
        filepath: where it lies; written atomically.
        shipped: ``{"filepath": …}`` of a learner that is read as long as there is none of our own,
            and never written; None, or a filepath that is None: there is none. (Kedro makes a
            ``filepath`` absolute.)
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(
        self,
        filepath: str,
        shipped: dict[str, str | None] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath = Path(filepath)
        lies = (shipped or {}).get("filepath")
        self._shipped = Path(lies) if lies else None
        self._said = False
        self.metadata = metadata

    def load(self) -> Learner:
        """The learner, as `load_learner` reads it."""
        if self._filepath.exists() or not self.ships:
            return load_learner(self._filepath)
        learner = load_learner(self._shipped)
        if not self._said:
            logger.warning("no learner was trained here yet: %s is used", self._shipped)
            self._said = True
        return learner

    def save(self, data: Learner) -> None:
        """Write the learner, as `save_learner` does."""
        save_learner(self._filepath, data)

    @property
    def ships(self) -> bool:
        """Whether there is one that ships: `load` gives it until there is one of our own."""
        return self._shipped is not None and self._shipped.exists()

    def _exists(self) -> bool:
        # The shipped learner is ignored: who asks wants to know whether training can be skipped.
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {
            "filepath": str(self._filepath),
            "shipped": str(self._shipped) if self._shipped else None,
        }


class MetricHistoriesDataset(MlflowMetricsHistoryDataset):
    """kedro-mlflow's metric histories, logged in a few requests instead of one a point.

    Each request is a transaction of the database: a comparison has hundreds of points.
    """

    def _save(self, data: MetricHistories) -> None:
        if not self._logging_activated:
            return
        client, now = MlflowClient(), int(time.time() * 1000)
        points = [
            Metric(name, point["value"], now, int(point["step"]))
            for name, history in data.items()
            for point in history
        ]
        for start in range(0, len(points), MAX_METRICS_PER_BATCH):
            client.log_batch(self.run_id, points[start : start + MAX_METRICS_PER_BATCH])


class SweepMetricsDataset(MetricHistoriesDataset):
    """Metric histories that stand on a sweep's own run, not on that of who computes them.

    Args:
        sweep: the file in which the sweep keeps the id of its run.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(self, sweep: str, metadata: dict[str, Any] | None = None):
        super().__init__(prefix="", metadata=metadata)
        self._sweep = Path(sweep)

    def _save(self, data: MetricHistories) -> None:
        self.run_id = read_json(self._sweep).get("parent_run_id")
        try:
            super()._save(data)
        except MlflowException as error:  # of a database that was removed
            logger.warning("The sweep's run in MLflow is not there: %s", str(error).splitlines()[0])

    def _describe(self) -> dict[str, Any]:
        return {"sweep": str(self._sweep)}


class CheckpointsDataset(AbstractDataset[Any, CheckpointStore]):
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
        """The store itself: a node reads and writes checkpoints through it."""
        return self._store

    def save(self, data: Any) -> None:
        """Refuse.

        Raises:
            DatasetError: always.
        """
        raise DatasetError("checkpoints are written by training itself, through the store")

    def _exists(self) -> bool:
        # An empty store is a valid one: training then starts from the beginning.
        return True

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._store.directory), "keep": self._store.keep}


class SnapshotsDataset(AbstractDataset[Any, SnapshotStore]):
    """Gives a node the store of training snapshots; nothing is ever saved through it as a whole.

    Args:
        path: the store's folder.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(self, path: str, metadata: dict[str, Any] | None = None):
        self._store = SnapshotStore(Path(path))
        self.metadata = metadata

    def load(self) -> SnapshotStore:
        """The store, of no steps: who trains says which are kept."""
        return self._store

    def save(self, data: Any) -> None:
        """Refuse.

        Raises:
            DatasetError: always.
        """
        raise DatasetError("snapshots are written by training itself, through the store")

    def _exists(self) -> bool:
        return True  # empty, it is a valid input: everything is then made anew

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._store.directory)}


@contextmanager
def _read(path: Any) -> Iterator[None]:
    """What libraries raise of a file that is damaged becomes one line that names it."""
    try:
        yield
    except (DatasetError, pa.ArrowException, SafetensorError, ValueError, OSError) as error:
        found = error.__cause__ if isinstance(error, DatasetError) else error  # Kedro wraps them
        if found is None or isinstance(found, FileNotFoundError) or getattr(found, "errno", None):
            raise  # Kedro's own, or the system's
        says = (str(found) or type(found).__name__).splitlines()[0]
        raise UnreadableFileError(
            f"{path} is damaged ({says}): remove it, and run again the pipeline that makes it"
        ) from error


class AtomicParquetDataset(ParquetDataset):
    """A local Parquet table; a write that fails half-way leaves the old one as it was.

    Args:
        filepath: where it lies.
        load_args, save_args: of pandas, as for `ParquetDataset`.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(
        self,
        filepath: str,
        load_args: dict[str, Any] | None = None,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__(
            filepath=filepath, load_args=load_args, save_args=save_args, metadata=metadata
        )

    def load(self) -> pd.DataFrame:
        """The table; an `UnreadableFileError` if the file is damaged."""
        with _read(self._filepath):
            return super().load()

    def save(self, data: pd.DataFrame) -> None:
        """Write to a file beside the target, which then takes its place."""
        replace_atomically(
            Path(self._filepath),
            lambda path: ParquetDataset(filepath=str(path), save_args=self._save_args).save(data),
        )


class CurvesDataset(AtomicParquetDataset):
    """A table of curves, which kedro-viz shows as an interactive chart.

    Args:
        filepath: where it lies.
        chart: the fields of an `incontext_linear.figures.interactive.Panel`, but its table.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(
        self, filepath: str, chart: dict[str, Any], metadata: dict[str, Any] | None = None
    ):
        super().__init__(filepath=filepath, metadata=metadata)
        self._chart = chart

    def preview(self) -> PlotlyPreview:
        """The chart, as Plotly's JSON."""
        from incontext_linear.figures.interactive import Panel, curves

        table = self.load()
        drawn = table[table[self._chart["x"]] > 0]  # at k = 0 all predict close to 0
        return PlotlyPreview(json.loads(curves([Panel(drawn, **self._chart)]).to_json() or ""))


class SavedPredictions(Mapping[str, Tensor]):
    """Predictions (B, n), float64, that are in a file: memory holds those that are in use.

    Args:
        path: where `write_predictions` wrote them.
        names: the predictors, in order.
    """

    def __init__(self, path: Path, names: list[str]):
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with _read(self._path):
            return read_predictions(self._path, name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PredictionsDataset(AtomicParquetDataset):
    """Predictions (B, n) by predictor, in memory tensors; on disk the tidy Parquet table, which is
    written and read in pieces: as a whole it takes many times the tensors' memory.

    Arguments as of `AtomicParquetDataset`.
    """

    def load(self) -> Predictions:
        """The tensors, float64, in the table's order; each is read when it is asked for."""
        path = Path(self._get_load_path())
        with _read(path):
            names = names_in_order(path)
            return read_predictions(path) if names is None else SavedPredictions(path, names)

    def save(self, data: Predictions) -> None:
        """Write to a file beside the target, which then takes its place."""
        replace_atomically(Path(self._filepath), lambda path: write_predictions(path, data))

    def preview(self, nrows: int = 5) -> TablePreview:
        """The first rows, for kedro-viz, of the first piece alone."""
        with pq.ParquetFile(self._get_load_path()) as file:
            batch = next(file.iter_batches(nrows))
        return TablePreview(batch.to_pandas().to_dict(orient="split"))


class AtomicCSVDataset(CSVDataset):
    """A local CSV table; a write that fails half-way leaves the old one as it was.

    Args:
        filepath: where it lies.
        load_args, save_args: of pandas, as for `CSVDataset`.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(
        self,
        filepath: str,
        load_args: dict[str, Any] | None = None,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__(
            filepath=filepath, load_args=load_args, save_args=save_args, metadata=metadata
        )

    def load(self) -> pd.DataFrame:
        """The table; an `UnreadableFileError` if the file is damaged."""
        with _read(self._filepath):
            return super().load()

    def save(self, data: pd.DataFrame) -> None:
        """Write to a file beside the target, which then takes its place."""
        replace_atomically(
            Path(self._filepath),
            lambda path: CSVDataset(filepath=str(path), save_args=self._save_args).save(data),
        )


class AtomicSafetensorsDataset(SafetensorsDataset):
    """Local tensors by name, for PyTorch; a write that fails half-way leaves the old file as it
    was.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None):
        super().__init__(filepath=filepath, backend="torch", metadata=metadata)

    def load(self) -> dict[str, Tensor]:
        """The tensors; an `UnreadableFileError` if the file is damaged."""
        with _read(self._filepath):
            return super().load()

    def save(self, data: dict[str, Tensor]) -> None:
        """Write to a file beside the target, which then takes its place."""
        replace_atomically(
            Path(self._filepath),
            lambda path: SafetensorsDataset(filepath=str(path), backend="torch").save(data),
        )


class AtomicFigureDataset(AbstractDataset["Figure | bytes", NoReturn]):
    """A local Matplotlib figure; a write that fails half-way leaves the old one as it was.

    (Kedro's own would load Matplotlib with the catalog, before the first node.)

    Args:
        filepath: where it lies.
        save_args: of `matplotlib.figure.Figure.savefig`.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(
        self,
        filepath: str,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath = Path(filepath)
        self._save_args = save_args or {}
        self.metadata = metadata

    def load(self) -> NoReturn:
        """A file of pixels is no figure any more: a `DatasetError`."""
        raise DatasetError(f"{self._filepath} is an image, from which no figure can be loaded")

    def save(self, data: Figure | bytes) -> None:
        """Write to a file beside the target, which then takes its place.

        Args:
            data: a figure, or what `in_worker` has made of one.
        """
        drawn = data if isinstance(data, bytes) else self.in_worker()(data)

        def write(path: Path) -> None:
            path.write_bytes(drawn)

        replace_atomically(self._filepath, write)

    def in_worker(self) -> Callable[[Figure], bytes]:
        """What a process that has computed a figure can do for the one that saves it: draw it."""
        return partial(draw, save_args=self._save_args)

    def preview(self) -> ImagePreview:
        """The image, for kedro-viz."""
        return ImagePreview(base64.b64encode(self._filepath.read_bytes()).decode())

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "save_args": self._save_args}


class AtomicTextDataset(AbstractDataset[str, str]):
    """A local text file; a write that fails half-way leaves the old one as it was.

    Args:
        filepath: where it lies.
        metadata: for other tools, such as kedro-viz.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> str:
        """The text."""
        return self._filepath.read_text()

    def save(self, data: str) -> None:
        """Write to a file beside the target, which then takes its place."""
        write_text(self._filepath, data)

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class RunTagsDataset(AbstractDataset[dict[str, str], dict[str, str]]):
    """Tags of the MLflow run that is open, so that runs can be found and sorted by them."""

    def __init__(self, metadata: dict[str, Any] | None = None):
        self.metadata = metadata

    def load(self) -> dict[str, str]:
        """The tags of the run that is open; none if there is none."""
        import mlflow

        run = mlflow.active_run()
        return dict(mlflow.get_run(run.info.run_id).data.tags) if run else {}

    def save(self, data: dict[str, str]) -> None:
        """Set the tags, where a run is open."""
        import mlflow

        if mlflow.active_run():
            mlflow.set_tags(data)

    def _exists(self) -> bool:
        return False

    def _describe(self) -> dict[str, Any]:
        return {}


class LearnerModelDataset(AbstractDataset[Kept, Learner]):
    """A learner as a logged model of the MLflow run that is open.

    A variant of a sweep keeps its learner in its folder alone.
    """

    def __init__(self, metadata: dict[str, Any] | None = None):
        self.metadata = metadata

    def load(self) -> Learner:
        """The learner that the run which is open has logged."""
        import mlflow

        run = mlflow.active_run()
        if run is None:
            raise DatasetError("no MLflow run is open whose learner could be loaded")
        return fetch_learner(f"runs:/{run.info.run_id}/{NAME}")

    def save(self, data: Kept) -> None:
        """Log the model, where a run is open that is no variant's."""
        import mlflow

        run = mlflow.active_run()
        if run and "variant" not in run.data.tags:
            log_learner(data.learner, data.registered_as)

    def _exists(self) -> bool:
        return False

    def _describe(self) -> dict[str, Any]:
        return {}
