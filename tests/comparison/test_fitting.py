"""Planted members are found again, with intervals that hold them."""

import pytest
import torch

from incontext_linear.comparison.conditions import (
    ByContext,
    build_conditions,
    calibrations,
)
from incontext_linear.comparison.families import FamilyConfig, Grid, build_families
from incontext_linear.comparison.fitting import Away, fit_family
from incontext_linear.comparison.shifts import build_shifts
from incontext_linear.predictors import GradientDescent, OnePassSGD, Ridge
from incontext_linear.tasks import draw_prompts


def _family(task, name):
    return next(family for family in build_families(task) if family.name == name)


def _home(task, learner, num_prompts=128):
    prompts = draw_prompts(task, num_prompts, seed=1, stream="calibration")
    return calibrations(learner, build_conditions({}, prompts, (), seed=0))[0]


def _noisy(predictor, std):
    def learner(xs, ys):
        rng = torch.Generator().manual_seed(len(xs))
        return predictor(xs, ys) + std * torch.randn(ys.shape, generator=rng)

    return learner


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "number", "value", "learner"),
    [
        ("ridge", "penalty", 0.0371, Ridge(0.0371)),
        ("ridge", "penalty", 4.3, Ridge(4.3)),
        ("sgd", "step_size", 0.0817, OnePassSGD(0.0817)),
        ("gradient_descent", "step_size", 0.00937, GradientDescent(0.00937, 7)),
        ("gradient_descent", "num_steps", 7, GradientDescent(0.00937, 7)),
    ],
)
def test_a_number_that_is_on_no_grid_is_found_to_a_thousandth(task, family, number, value, learner):
    fitted = fit_family(_family(task, family), _home(task, learner))
    assert fitted.member.numbers[number] == pytest.approx(value, rel=2e-3)


def test_the_interval_of_a_noisy_learner_holds_the_number_planted(task):
    fitted = fit_family(_family(task, "ridge"), _home(task, _noisy(Ridge(0.2), 0.1)))
    row = fitted.tables(0.99, 200, seed=0)[0].iloc[0]
    assert row["low"] < 0.2 < row["high"]
    assert row["low"] < row["high"] < 1.5 * row["low"]
    assert not row["at_edge"]


def test_each_k_alone_finds_the_number_planted_there(task):
    def learner(xs, ys):
        few = torch.arange(ys.shape[1]) <= 4
        return torch.where(few, Ridge(2.0)(xs, ys), Ridge(0.05)(xs, ys))

    fitted = fit_family(_family(task, "ridge"), _home(task, learner))
    table = fitted.tables(0.95, 100, seed=0)[1].set_index("examples_seen")
    assert table.loc[:4, "value"].between(1.2, 3.2).all()
    assert table.loc[5:, "value"].between(0.03, 0.08).all()
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_numbers_of_each_k_give_each_ks_member(task, prompts):
    fitted = fit_family(_family(task, "ridge"), _home(task, Ridge(0.3)))
    (home,) = build_conditions({}, prompts, (), seed=0)
    by_context = ByContext(fitted)(home.parts[0])
    for column, numbers in enumerate(fitted.nearest_at(home.examples_seen)):
        expected = Ridge(numbers["penalty"])(prompts.xs.double(), prompts.ys.double())
        torch.testing.assert_close(by_context[:, column], expected[:, column + 1])


@pytest.mark.slow
def test_what_the_training_distribution_cannot_tell_apart_the_shifts_decide(task):
    """Descent that has converged: 150 and 500 steps are one at home, not where κ is 100."""
    planted = GradientDescent(0.006, 300)
    away = draw_prompts(task, 48, seed=2, stream="calibration")
    conditions = build_conditions(
        build_shifts({"condition_number": (100,), "input_scale": (0.3,)}), away, (3, 6, 9), 0, False
    )
    home = _home(task, _noisy(planted, 0.05))
    family = _family(task, "gradient_descent")
    alone = fit_family(family, home).member.predictor
    decided = fit_family(family, home, Away.join(calibrations(planted, conditions)), 0.1)
    error = [
        float(
            (c.predict(part := condition.parts[0]) - planted(part.xs, part.ys)[:, [3, 6, 9]])
            .square()
            .mean()
        )
        for condition in conditions
        for c in (decided.member,)
    ]
    undecided = [
        float(
            (alone(c.parts[0].xs, c.parts[0].ys) - planted(c.parts[0].xs, c.parts[0].ys))
            .square()
            .mean()
        )
        for c in conditions
    ]
    assert decided.tied > 1
    assert sum(error) < sum(undecided)
    assert max(error) < 1e-3


def test_a_member_that_diverges_is_far_and_breaks_nothing(task):
    family = _family(task, "gradient_descent")
    wild = FamilyConfig(
        type="GradientDescent",
        free={"step_size": Grid(low=0.5, high=2.0, points=3)},
        arguments={"num_steps": 2000},
    )
    family = next(f for f in build_families(task, {"wild": wild}) if f.name == "wild")
    fitted = fit_family(family, _home(task, Ridge(0.1), 16))
    assert torch.isfinite(fitted.distances).all()
    assert float(fitted.distances.mean()) > 1e3
