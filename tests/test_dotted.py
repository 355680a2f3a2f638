"""Dotted paths in the parameters: what they may lead to, and what importing them may do."""

import sys

import pytest
import torch

from incontext_linear.config import TaskConfig, import_dotted, takes_prompts
from incontext_linear.predictors import build_predictors
from incontext_linear.probing.targets import build_targets


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of someone's own with the given source."""

    def module(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(str(tmp_path))
    return module


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import sys; sys.exit()", "importing it raised SystemExit"),
        ("import sys; sys.exit('bye')", "importing it raised SystemExit: bye"),
        ("raise RuntimeError('two\\nlines')", "importing it raised RuntimeError: two"),
        ("import no_such_module", "importing it raised ModuleNotFoundError: No module named"),
        ("x = 1", "importing it raised AttributeError: module"),
        ("def broken(:", "importing it raised SyntaxError"),
    ],
)
@pytest.mark.parametrize(
    "build",
    [
        lambda path: build_predictors({"x": {"type": path}}, TaskConfig()),
        lambda path: build_targets([path], ridge_penalty=1.0),
    ],
    ids=["predictor", "target"],
)
def test_whatever_importing_raises_is_one_line(module, source, says, build):
    module("someones", source)
    with pytest.raises(ValueError, match=says) as error:
        build("someones.Thing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "baseline",
    [
        {"type": "os.system", "command": "touch {}"},
        {"type": "subprocess.Popen", "args": ["touch", "{}"]},
        {"type": "subprocess.run", "args": ["touch", "{}"]},
        {"type": "pathlib.Path.touch", "self": "{}"},
        {"type": "builtins.eval"},
    ],
)
def test_nothing_but_a_class_of_predictors_is_called(tmp_path, baseline):
    made = tmp_path / "made"
    filled = {
        key: [part.format(made) for part in value]
        if isinstance(value, list)
        else value.format(made)
        for key, value in baseline.items()
    }
    with pytest.raises(ValueError, match=r"baseline 'x': .*(is no predictor|cannot import)"):
        build_predictors({"x": filled}, TaskConfig())
    assert not made.exists()


@pytest.mark.parametrize("path", ["os.system", "builtins.print.__doc__", "torch.nn.Linear"])
def test_a_target_is_a_function_of_prompts(path):
    with pytest.raises(ValueError, match=r"is no target; allowed: a function|cannot import"):
        build_targets([path], ridge_penalty=1.0)


def test_what_takes_prompts_is_seen_from_its_signature():
    assert takes_prompts(lambda xs, ys: ys)
    assert takes_prompts(lambda xs, ys, extra=1: ys)
    assert not takes_prompts(lambda xs: xs)
    assert not takes_prompts(lambda a, b, c: a)
    assert import_dotted("torch.nn.functional.relu") is torch.nn.functional.relu
