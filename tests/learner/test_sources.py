"""A network trained elsewhere, from its file of weights: what is taken, what is refused."""

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from incontext_linear.config import CustomConfig, TaskConfig
from incontext_linear.files import UnreadableFileError
from incontext_linear.learner.base import check_learner
from incontext_linear.learner.sources import LearnerSource, as_learner, load_source, read_weights

TASK = TaskConfig(dim=3, num_examples=5)


class Average(nn.Module):
    """Someone's own: w is a multiple of the mean of y x over the prefix."""

    def __init__(self, dim: int, gain: float = 1.0):
        super().__init__()
        self.step = nn.Linear(dim, dim, bias=False)
        self.gain = gain

    def forward(self, xs, ys):
        moments = (xs * ys.unsqueeze(-1)).cumsum(1).roll(1, 1)
        moments = moments * (torch.arange(xs.shape[1]) > 0)[:, None]
        return self.gain * (self.step(moments) * xs).sum(-1)


class SeesItsLabel(Average):
    """Wrong: it predicts y from y."""

    def forward(self, xs, ys):
        return ys + self.step(xs).sum(-1)


class WrongForm(Average):
    """Wrong: it wants one argument."""

    def forward(self, prompts):
        return prompts


PATH = f"{__name__}.Average"


@pytest.fixture
def network() -> Average:
    torch.manual_seed(0)
    return Average(3)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_class_and_a_file_of_weights_are_a_learner(network, tmp_path: Path, ending):
    path = tmp_path / f"mine.{ending}"
    if ending == "pt":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    source = LearnerSource.model_validate({"type": PATH, "weights": path.name, "gain": 2.0})
    learner = load_source(source, TASK, tmp_path)
    xs, ys = torch.randn(2, 5, 3), torch.randn(2, 5)
    assert torch.allclose(learner.model(xs, ys), 2 * network(xs, ys))
    assert learner.config == CustomConfig.model_validate({"type": PATH, "gain": 2.0})
    with pytest.raises(ValueError, match=r"Average cannot be used for probing: it has no embed"):
        check_learner(learner.model, "probing")


def test_a_file_that_holds_more_than_tensors_is_refused(network, tmp_path: Path):
    path = tmp_path / "whole.pt"
    torch.save(network, path)
    with pytest.raises(UnreadableFileError, match=r"holds more than tensors, and loading it could"):
        read_weights(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UnreadableFileError, match="holds list and not a state dictionary"):
        read_weights(path)
    path.with_suffix(".safetensors").write_bytes(b"no")
    with pytest.raises(UnreadableFileError, match="is no file of weights"):
        read_weights(path.with_suffix(".safetensors"))
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        read_weights(tmp_path / "none.pt")


def test_weights_of_another_network_are_refused(tmp_path: Path):
    save_file({"step.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    source = LearnerSource(type=PATH, weights="w.safetensors")
    with pytest.raises(UnreadableFileError, match=r"does not hold the weights of .*size mismatch"):
        load_source(source, TASK, tmp_path)
    save_file({"step.weight": torch.full((3, 3), torch.nan)}, tmp_path / "w.safetensors")
    with pytest.raises(UnreadableFileError, match=r"step\.weight holds values that are not finite"):
        load_source(source, TASK, tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SeesItsLabel, r"SeesItsLabel sees what it must predict"),
        (WrongForm, r"WrongForm cannot be asked about 4 prompts of 5 examples in 3 dimensions"),
        (lambda dim: nn.Bilinear(3, 3, 1), r"cannot be asked|returns predictions of shape"),
    ],
)
def test_a_network_of_another_form_is_refused_by_what_is_wrong(kind, message):
    with pytest.raises(ValueError, match=message):
        as_learner(kind(3), TASK, CustomConfig(type="my.Network"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "weights=None with mlflow_run=None; allowed: one of the two"),
        ({"weights": "a", "mlflow_run": "b"}, "allowed: one of the two"),
        ({"weights": "a", "depth": 3}, "depth=3 without a type"),
        ({"type": "my.Network", "mlflow_run": "b"}, "whose learner says its own"),
    ],
)
def test_a_source_names_one_place(entry, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        LearnerSource.model_validate(entry)
