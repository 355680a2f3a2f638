"""The guide's own target and intervention work as the guide says."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.probing import build_targets, target_values
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.interventions import build_interventions, intervene, pair_prompts
from incontext_linear.tasks import draw_prompts, generator

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "extending.md"


def block(title, language):
    """The first code block of a section of the guide in this language."""
    section = GUIDE.read_text(encoding="utf-8").partition(f"## {title}")[2]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL).group(1)


def probing(title, monkeypatch):
    """The guide's parameters of a section, with its code where they say it is."""
    package, module = types.ModuleType("my_package"), types.ModuleType("my_package.my_module")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block(title, "python"), str(GUIDE), "exec"), module.__dict__)
    return ProbingConfig.model_validate(yaml.safe_load(block(title, "yaml"))["probing"])


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(TaskConfig(dim=3, num_examples=7), 20, seed=0)


def test_the_guides_target_is_found_by_its_path_and_gives_what_it_says(monkeypatch, prompts):
    config = probing("A probe target of your own", monkeypatch)
    targets = build_targets(config.targets, config.ridge_penalty)
    assert list(targets) == ["moment", "least_squares", "my_package.my_module.residual"]
    xs, ys = prompts.xs[:, :5], prompts.ys[:, :5]
    values = target_values("residual", targets["my_package.my_module.residual"], xs, ys)
    step = torch.einsum("bkd,bk->bd", xs, ys) / 5
    expected = (torch.einsum("bkd,bd->bk", xs, step) - ys).square().mean(1, keepdim=True)
    torch.testing.assert_close(values, expected)


def test_the_guides_intervention_exchanges_the_labels_and_nothing_else(monkeypatch, prompts):
    config = probing("An intervention of your own", monkeypatch)
    methods = build_interventions(config.interventions.methods)
    name = "my_package.my_module.InterchangeLabels"
    model = Transformer(3, 7, ModelConfig(num_layers=2, num_heads=2, width=8))
    model.initialize(generator(0, "model"))
    pairs = pair_prompts(prompts.xs, prompts.ys, 6)
    others = prompts.xs, prompts.ys
    moved = intervene(model, pairs, others, methods, {}, [0, 2], generator(0, "r"))
    assert {(method, target) for method, target, _ in moved.edited} == {
        (name, "all"),
        (f"{name}_random", "all"),
    }
    with_labels = model(pairs.recipient[0], pairs.donor[1])[:, -1].detach()
    torch.testing.assert_close(moved.edited[name, "all", 0], with_labels)
    torch.testing.assert_close(moved.edited[name, "all", 2], moved.recipient)
