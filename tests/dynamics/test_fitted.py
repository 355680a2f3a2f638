"""Families along training, of planted learners: the numbers come back, and so does the family,
unless the learner's own errors are too large to tell.
"""

from typing import Any

import numpy as np
import pytest
import torch

from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.dynamics.fitted import (
    FitPrompts,
    ScaledLeastSquares,
    comparison_table,
    fit_along_training,
    fit_table,
    planted,
    power_table,
    training_families,
)
from incontext_linear.predictors import GradientDescent, OrdinaryLeastSquares, Ridge

TASK = TaskConfig(dim=3, num_examples=10)
BOOTSTRAP = BootstrapConfig(num_resamples=100)
STEPS = [1, 10, 100]
PENALTIES = (30.0, 1.0, 0.01)
FAMILIES = [
    family
    for family in training_families(TASK)
    if family.name in ("zero", "least_squares", "ridge", "gradient_flow", "scaled")
]


@pytest.fixture(scope="module")
def halves(prompts) -> FitPrompts:
    return FitPrompts.split(prompts, 100)


def plant(prompts, predictors, noise=1e-3, seeds=2) -> torch.Tensor:
    """(seeds, steps, B, n): the algorithms with errors of the seeds' own."""
    xs, ys = prompts.xs.double(), prompts.ys.double()
    exact = torch.stack([predictor(xs, ys) for predictor in predictors]).expand(seeds, -1, -1, -1)
    rng = torch.Generator().manual_seed(0)
    return exact + noise * torch.randn(exact.shape, generator=rng, dtype=torch.float64)


@pytest.mark.slow
def test_the_planted_penalty_and_steps_come_back(prompts, halves):
    flow = next(family for family in FAMILIES if family.name == "gradient_flow")
    step_size = flow.config.arguments["step_size"]
    descents = [GradientDescent(step_size, m) for m in (300, 3000)]
    scaled = ScaledLeastSquares(0.4)
    predictions = plant(prompts, [*map(Ridge, PENALTIES), *descents, scaled])
    steps = range(predictions.shape[1])
    table = fit_table(fit_along_training(predictions, halves, FAMILIES), [0, 1], steps)
    nearest = table[table["nearest"]].set_index(["seed", "step"])
    names = ["ridge"] * 3 + ["gradient_flow"] * 2 + ["scaled"]
    for seed in range(2):
        assert list(nearest.loc[seed]["family"]) == names
        np.testing.assert_allclose(
            nearest.loc[seed]["value"], [*PENALTIES, 300, 3000, 0.4], rtol=0.05
        )
    assert not nearest["at_edge"].any()


@pytest.mark.slow
def test_an_exact_algorithm_without_numbers_is_named_and_an_edge_says_so(prompts, halves):
    fits = fit_along_training(
        plant(prompts, [ScaledLeastSquares(0.0), OrdinaryLeastSquares()], noise=0), halves, FAMILIES
    )
    table = fit_table(fits, [0, 1], [0, 1])
    nearest = table[table["nearest"] & (table["seed"] == 0)].set_index("step")
    assert nearest["family"][0] == "zero"
    ridge = table[(table["family"] == "ridge") & (table["step"] == 1)]
    assert (ridge["value"] < 1e-5).all()


@pytest.mark.slow
def test_scaled_least_squares_is_a_predictor_and_a_family_alike(prompts, halves):
    scaled = next(family for family in FAMILIES if family.name == "scaled")
    by_filter = scaled.member({"scale": 0.3}).predict(halves.fit)
    by_predictor = scaled.member({"scale": 0.3}).predictor(halves.fit.xs, halves.fit.ys)[:, 1:]
    torch.testing.assert_close(by_filter, by_predictor, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_the_comparison_names_ridge_in_every_seed(prompts, halves):
    fits = fit_along_training(plant(prompts, map(Ridge, PENALTIES)), halves, FAMILIES)
    table = comparison_table(fits, STEPS, BOOTSTRAP, 0).set_index(["step", "family"])
    flow: Any = table.loc[(10, "gradient_flow")]
    assert flow["low"] > 0
    assert flow["positive"] == flow["seeds"] == 2
    scores = dict(zip(fits.names, fits.scores[:, :, 1], strict=True))
    expected = (scores["gradient_flow"] - scores["ridge"]).mean()
    assert flow["log_ratio"] == pytest.approx(expected)


@pytest.mark.slow
def test_power_is_there_for_an_accurate_learner_and_gone_for_a_coarse_one(prompts, halves):
    found = {}
    for noise in (0.01, 1.0):
        predictions = plant(prompts, [Ridge(1.0)], noise)
        fits = fit_along_training(predictions, halves, FAMILIES)
        table = power_table(
            fits, predictions, halves, ["ridge", "gradient_flow"], [10], BOOTSTRAP, 0
        )
        cell = table[table["family"] == "gradient_flow"].set_index("planted")
        found[noise] = cell
    assert found[0.01].loc["ridge", "low"] > 0
    assert found[0.01].loc["gradient_flow", "high"] < 0
    assert found[0.01].loc["gradient_flow", "recovered"] == pytest.approx(1, rel=0.05)
    coarse = found[1.0]
    assert coarse.loc["ridge", "log_ratio"] < 0.05 * found[0.01].loc["ridge", "log_ratio"]


@pytest.mark.slow
def test_a_planted_learner_misses_as_much_as_the_learner(prompts, halves):
    predictions = plant(prompts, [Ridge(1.0)], noise=0.1)
    fits = fit_along_training(predictions, halves, FAMILIES)
    made = planted(fits, predictions, halves, "gradient_flow", 0)
    member = fits.members["gradient_flow"][0][0]
    missed = made[0, 0, 100:, 1:] - member.predict(halves.score)
    assert missed.square().mean().item() == pytest.approx(0.01, rel=0.1)
