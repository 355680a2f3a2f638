"""A learner that was trained elsewhere: its class, its file of weights, or its MLflow run.

The parameters' key ``learner`` names it; then nothing is trained. Weights are safetensors, or what
``torch.load(weights_only=True)`` reads: a file of weights runs no code.
"""

from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ConfigDict, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from incontext_linear.config import Config, LearnerConfig, TaskConfig
from incontext_linear.files import UnreadableFileError
from incontext_linear.learner.base import Network, check_causality, check_learner
from incontext_linear.learner.registry import build_learner
from incontext_linear.learner.saved import Learner, load_learner
from incontext_linear.tasks import draw_prompts


class LearnerSource(Config):
    """Where a trained network comes from: ``{type: my_package.MyNetwork, weights: my.safetensors,
    argument: value, …}``, ``{weights: learner.safetensors}`` or ``{mlflow_run: ID}``.
    """

    model_config = ConfigDict(extra="allow")

    type: str | None = None
    """The dotted path of a `torch.nn.Module`, or an architecture that ships; None: the file is one
    that this project wrote, and says it."""
    weights: str | None = None
    """A file of weights, relative to the project's folder."""
    mlflow_run: str | None = None
    """The id of a run of this project: the learner that it trained."""

    @model_validator(mode="after")
    def _one_place(self) -> "LearnerSource":
        if (self.weights is None) == (self.mlflow_run is None):
            raise ValueError(
                f"weights={self.weights!r} with mlflow_run={self.mlflow_run!r}; allowed: one of "
                "the two"
            )
        extra = self.model_extra or {}
        if self.type is None and extra:
            name, value = next(iter(extra.items()))
            raise ValueError(
                f"{name}={value!r} without a type, whose argument it could be; allowed: type, "
                "weights, mlflow_run"
            )
        if self.type is not None and self.mlflow_run is not None:
            raise ValueError(
                f"type={self.type!r} with mlflow_run={self.mlflow_run!r}, whose learner says its "
                "own; allowed: type with weights"
            )
        return self

    @property
    def config(self) -> LearnerConfig | None:
        """The architecture, where a type is given."""
        if self.type is None:
            return None
        return LearnerConfig.model_validate({"type": self.type, **(self.model_extra or {})})


def load_source(source: LearnerSource, task: TaskConfig, folder: Path = Path()) -> Learner:
    """The network that a source with a file of weights names, looked at before it is used.

    Args:
        source: names ``weights``.
        task: the prompts that it was trained on.
        folder: what ``weights`` is relative to.

    Raises:
        UnreadableFileError: if the file is damaged, is no file of weights, or its weights are not
            those of the network.
        ValueError: if the type leads to no network, or the network sees what it must predict.
    """
    assert source.weights is not None
    path, config = folder / source.weights, source.config
    if config is None:
        return load_learner(path)
    return as_learner(_with_weights(task, config, path), task, config, {"weights": str(path)})


def as_learner(
    network: nn.Module,
    task: TaskConfig,
    config: LearnerConfig,
    record: dict[str, Any] | None = None,
) -> Learner:
    """Take a network that was trained elsewhere for a learner, after a trial on a few prompts.

    Args:
        network: ``forward(xs (B, n, d), ys (B, n)) -> predictions (B, n)``.
        task: the prompts that it was trained on.
        config: its name and arguments.
        record: what is known of its training.

    Raises:
        ValueError: if it has no such ``forward``, gives another shape or what is not a number, or
            sees what it must predict.
    """
    check_learner(network, "comparison")
    network.eval()
    parameter = next(network.parameters(), torch.zeros(()))
    prompts = draw_prompts(task, 4, seed=0, stream="trial").to(parameter.device, parameter.dtype)
    with torch.no_grad():
        try:
            predictions = network(prompts.xs, prompts.ys)
        except (RuntimeError, TypeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"{type(network).__name__} cannot be asked about 4 prompts of {task.num_examples} "
                f"examples in {task.dim} dimensions ({reason}); allowed: forward(xs (B, n, d), "
                "ys (B, n)) -> predictions (B, n)"
            ) from error
    if not torch.isfinite(predictions).all():
        raise ValueError(f"{type(network).__name__} predicts what is not a number")
    check_causality(network, prompts.xs, prompts.ys)
    return Learner(cast(Network, network), task, {"history": [], **(record or {})}, config)


def _with_weights(task: TaskConfig, config: LearnerConfig, path: Path) -> nn.Module:
    network: nn.Module = build_learner(task.dim, task.num_examples, config)
    weights = read_weights(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UnreadableFileError(
            f"{path} does not hold the weights of {config.type}: {reason}"
        ) from error
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise UnreadableFileError(f"{path}: {name} holds values that are not finite")
    return network


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dictionary: safetensors, or what PyTorch saved; never a pickle of objects.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableFileError: if it is damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UnreadableFileError(f"{path} is no file of weights: {_first(error)}") from error
    except Exception as error:  # pickle.UnpicklingError: weights_only refuses objects
        raise UnreadableFileError(
            f"{path} holds more than tensors, and loading it could run code ({_first(error)}); "
            "allowed: safetensors, or torch.save(network.state_dict(), path)"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UnreadableFileError(
            f"{path} holds {type(found).__name__} and not a state dictionary; allowed: what "
            "torch.save(network.state_dict(), path) writes"
        )
    return found


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
