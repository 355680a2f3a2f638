"""The guide's own predictor works as the guide says."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from incontext_linear.config import TaskConfig
from incontext_linear.predictors import build_predictors

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "extending.md"


def block(language):
    """The first code block of the guide's section on predictors in this language."""
    section = GUIDE.read_text(encoding="utf-8").partition("## A predictor of your own")[2]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found.group(1)


@pytest.fixture
def baselines(monkeypatch):
    """What the guide's parameters build, with the guide's class where they say it is."""
    package, module = types.ModuleType("my_package"), types.ModuleType("my_package.my_module")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block("python"), str(GUIDE), "exec"), module.__dict__)
    return build_predictors(yaml.safe_load(block("yaml"))["baselines"], TaskConfig())


def test_the_guides_predictor_is_found_by_its_path_and_fits_what_it_says(baselines):
    xs, ys = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    predictions = baselines["first_coordinate"](xs, ys)
    expected = (xs[:, :4, 0] * ys[:, :4]).sum(1) / (4 + 1.0) * xs[:, 4, 0]
    torch.testing.assert_close(predictions[:, 4], expected)
    assert (predictions[:, 0] == 0).all()


def test_the_guides_predictor_answers_queries(baselines):
    xs, ys = torch.randn(3, 6, 4), torch.randn(3, 6)
    assert baselines["first_coordinate"].predict_queries(xs, ys, xs[:, :2]).shape == (3, 6, 2)


def test_the_guides_predictor_takes_ten_lines():
    _, _, definition = block("python").partition("@dataclass")
    assert len(definition.splitlines()) <= 10
