"""Distances along training, of planted learners whose distances are known."""

from typing import Any

import numpy as np
import pytest
import torch

from incontext_linear.config import BootstrapConfig
from incontext_linear.dynamics.behaviour import LABELS, nearest_along_training, spd_tables, visits
from incontext_linear.predictors import OrdinaryLeastSquares, Ridge

BOOTSTRAP = BootstrapConfig(num_resamples=100)
STEPS, SEEDS = [0, 1, 10], [4, 5]


@pytest.fixture(scope="module")
def answers(prompts):
    xs, ys = prompts.xs.double(), prompts.ys.double()
    return {
        "zero": torch.zeros_like(ys),
        "ridge_1": Ridge(1.0)(xs, ys),
        "ols": OrdinaryLeastSquares()(xs, ys),
        LABELS: ys,
    }


@pytest.fixture(scope="module")
def predictions(answers):
    """Zero, then ridge, then least squares; the second seed a tenth of the way behind."""
    first = torch.stack([answers[name] for name in ("zero", "ridge_1", "ols")])
    return torch.stack([first, 0.9 * first + 0.1 * answers["zero"]])


def test_spd_is_the_mean_square_of_the_differences(prompts, predictions, answers):
    scale = prompts.ys.double().square().mean().item()
    table, single = spd_tables(predictions, answers, scale, SEEDS, STEPS, BOOTSTRAP, 0)
    expected = (predictions[1, 2] - answers["ridge_1"])[:, 7].square().mean().item() / scale
    cell = (single["step"] == 10) & (single["examples_seen"] == 7) & (single["seed"] == 5)
    assert single[cell].set_index("predictor")["spd"]["ridge_1"] == pytest.approx(expected)
    means = single.groupby(["predictor", "step", "examples_seen"])["spd"].mean()
    found = table.set_index(["predictor", "step", "examples_seen"])["mean"]
    np.testing.assert_allclose(found[means.index], means, atol=1e-15)
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    risk = found[LABELS].unstack()
    assert risk.loc[10, 8] < 0.01 < risk.loc[1, 8] < risk.loc[0, 8]


def test_the_nearest_algorithm_follows_what_was_planted(prompts, predictions, answers):
    scale = prompts.ys.double().square().mean().item()
    _, single = spd_tables(predictions, answers, scale, SEEDS, STEPS, BOOTSTRAP, 0)
    nearest = nearest_along_training(single).set_index(["step", "examples_seen"])
    assert list(nearest["nearest"][:, 8]) == ["zero", "ridge_1", "ols"]
    assert (nearest["agreeing"][:, 8] == 1).all()
    assert (nearest["margin"][:, 8] > 2).all()


def test_what_is_chosen_on_other_prompts_may_turn_out_not_to_be_nearest(
    prompts, predictions, answers
):
    scale = prompts.ys.double().square().mean().item()
    _, single = spd_tables(predictions, answers, scale, SEEDS, STEPS, BOOTSTRAP, 0)
    swapped = single.replace({"predictor": {"ols": "ridge_1", "ridge_1": "ols"}})
    nearest = nearest_along_training(single, swapped).set_index(["step", "examples_seen"])
    assert nearest["nearest"][10, 8] == "ridge_1"
    assert nearest["margin"][10, 8] < 1


def test_a_visit_is_told_from_an_arrival(prompts, predictions, answers):
    scale = prompts.ys.double().square().mean().item()
    _, single = spd_tables(predictions, answers, scale, SEEDS, STEPS, BOOTSTRAP, 0)
    found: Any = visits(single, single, ["ridge_1", "ols"]).set_index(["predictor", "seed"])
    assert found.loc[("ridge_1", 4), "step"] == 1
    assert found.loc[("ridge_1", 4), "left"] > 10
    assert found.loc[("ols", 4), "step"] == 10
    assert found.loc[("ols", 5), "left"] == 1
