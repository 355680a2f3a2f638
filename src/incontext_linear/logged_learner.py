"""A learner as a model in MLflow: its safetensors file, and how MLflow loads it. No pickle.

MLflow finds `_load_pyfunc` by this module's name, which each logged model carries:

    mlflow.pyfunc.load_model("models:/m-…").predict({"xs": xs, "ys": ys})
"""

import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from incontext_linear.learner.saved import Learner, load_learner, save_learner
from incontext_linear.tasks import draw_prompts

FILE = "learner.safetensors"
NAME = "learner"
"""What a run calls its model: ``runs:/RUN_ID/learner``."""


@dataclass(frozen=True)
class Kept:
    """A learner on its way into MLflow, and the registered model that it is a version of."""

    learner: Learner
    registered_as: str | None


@dataclass(frozen=True)
class LearnerModel:
    """What MLflow calls: prompts in, predictions at every prefix out."""

    learner: Learner

    def predict(
        self, model_input: dict[str, np.ndarray], params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Predictions (B, n), float32, of ``xs`` (B, n, d) and ``ys`` (B, n)."""
        xs, ys = (torch.as_tensor(model_input[name]) for name in ("xs", "ys"))
        with torch.no_grad():
            return self.learner.model(xs.float(), ys.float()).numpy()


def _load_pyfunc(path: str) -> LearnerModel:
    """MLflow's entry: ``path`` is the model's data, our file."""
    return LearnerModel(load_learner(Path(path)))


def log_learner(learner: Learner, registered_as: str | None = None) -> str:
    """Log a learner as a model of the MLflow run that is open.

    Args:
        learner: with its training record; the model's step is the record's.
        registered_as: also a new version of this registered model; None: of none.

    Returns:
        Its URI, ``models:/m-…``.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    task, numbers = learner.task, np.dtype(np.float32)
    shape = (-1, task.num_examples)
    signature = ModelSignature(
        Schema([TensorSpec(numbers, (*shape, task.dim), "xs"), TensorSpec(numbers, shape, "ys")]),
        Schema([TensorSpec(numbers, shape)]),
    )
    example = draw_prompts(task, 2, seed=0, stream="example")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        save_learner(path, learner)
        logged = mlflow.pyfunc.log_model(
            name=NAME,
            loader_module=__name__,
            data_path=str(path),
            signature=signature,
            input_example={"xs": example.xs.numpy(), "ys": example.ys.numpy()},
            pip_requirements=[requirement(name) for name in ("incontext-linear", "torch")],
            registered_model_name=registered_as,
            step=int(learner.record.get("step", 0)),
        )
    return logged.model_uri


def installed_version(package: str) -> str | None:
    """None where it is imported from a folder without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirement(package: str) -> str:
    """As pip takes it: this version, or any where it is not known."""
    known = installed_version(package)
    return f"{package}=={known}" if known else package


def fetch_learner(uri: str) -> Learner:
    """The learner of a model in MLflow.

    Args:
        uri: ``models:/m-…``, ``runs:/RUN_ID/learner``, or of a registered model.

    Raises:
        mlflow.exceptions.MlflowException: if there is no such model.
    """
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        model = download_artifacts(artifact_uri=uri, dst_path=folder)
        return load_learner(Path(model, "data", FILE))
