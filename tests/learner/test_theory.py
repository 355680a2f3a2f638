"""benchmarks/theory.py: a learner that has the optimum agrees with it, and another does not."""

import pandas as pd
import pytest
import torch

from benchmarks import theory
from benchmarks.theory import Setting, Theory, new_tasks, settings, study, summary
from incontext_linear.learner import Learner
from incontext_linear.learner.registry import build_learner


def planted(setting, factor=1.0):
    """A learner whose Γ is the closed form's, times a factor."""
    recipe = setting.recipe
    model = build_learner(recipe.task.dim, recipe.task.num_examples, recipe.model)
    step = factor * Theory.of(recipe).step
    model.blocks[0].matrices.preconditioner.data.copy_(step)
    return Learner(model.eval(), recipe.task, {}, recipe.model)


@pytest.mark.parametrize(
    "setting",
    [
        Setting("noise", {"dim": 3, "noise_std": 1.0}, {"matrices": "preconditioned"}),
        Setting("pool", {"dim": 3, "pool_size": 2}, {"matrices": "preconditioned"}),
    ],
    ids=lambda setting: setting.name,
)
def test_a_learner_that_is_the_optimum_has_its_matrix_and_its_risk(setting, monkeypatch):
    monkeypatch.setattr(theory, "NUM_PROMPTS", 8_000)
    steps, risks = study(setting, [planted(setting)] * 5)
    assert steps["size"].tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    assert steps[["off", "excess"]].abs().to_numpy().max() < 1e-6
    assert len(risks) == 12 * (2 if setting.name == "pool" else 1)
    # Five sets of prompts: an interval holds the expected risk in most cells, not in all.
    held = (risks["low"] <= risks["theory"]) & (risks["theory"] <= risks["high"])
    assert held.mean() > 0.6
    assert (risks["mean"] / risks["theory"] - 1).abs().max() < 0.1


def test_a_learner_with_a_smaller_step_does_not_agree(monkeypatch):
    monkeypatch.setattr(theory, "NUM_PROMPTS", 8_000)
    setting = Setting("plain", {"dim": 3}, {"matrices": "preconditioned"})
    steps, risks = study(setting, [planted(setting, 0.5)] * 5)
    assert steps["size"].mean() == pytest.approx(0.5, abs=1e-6)
    assert steps["excess"].mean() > 0.1
    late = risks[risks["k"] > 3]
    assert (late["theory"] < late["low"]).all()
    assert "| plain | 5 | 0.5000 [0.5000, 0.5000] |" in summary(steps, risks)


def test_every_setting_has_a_closed_form_and_a_name_of_its_own():
    chosen = list(settings())
    assert len({setting.name for setting in chosen}) == len(chosen)
    for setting in chosen:
        found = Theory.of(setting.recipe)
        assert found.agreement(found.step)["off"] == 0
        assert found.risk(found.step)[-1] < found.moments.labels
        assert new_tasks(setting.recipe.task).pool_size is None


def test_settings_of_one_shape_train_in_one_stack_and_are_measured_after_it(monkeypatch):
    monkeypatch.setattr(theory, "NUM_PROMPTS", theory.AT_ONCE)
    chosen = [Setting("a", {"dim": 2}), Setting("b", {"dim": 2, "noise_std": 1.0})]
    (tables,) = theory.run(chosen, seeds=2, steps=3)
    steps, risks = tables
    assert steps["setting"].tolist() == ["a", "a", "b", "b"]
    assert risks.groupby("setting")["k"].count().to_dict() == {"a": 12, "b": 12}
    assert isinstance(risks, pd.DataFrame)
    assert torch.isfinite(torch.tensor(risks["mean"].to_numpy())).all()
