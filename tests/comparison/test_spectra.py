"""Filters of eigenvalues against the predictors that iterate, and the grids of free numbers."""

import numpy as np
import pytest
import torch

from incontext_linear.comparison.families import (
    DEFAULT_FAMILIES,
    FamilyConfig,
    Grid,
    build_families,
)
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.config import TaskConfig

TASK = TaskConfig(dim=4, num_examples=9)
FILTERED = [family for family in build_families(TASK) if family.filtered]


def _prefixes(case):
    rng = torch.Generator().manual_seed(3)
    xs = torch.randn(6, 9, 4, dtype=torch.float64, generator=rng)
    ys = torch.randn(6, 9, dtype=torch.float64, generator=rng)
    if case == "duplicated rows":
        xs[:, 2:5] = xs[:, [1]]
    if case == "collinear columns":
        xs[..., 3] = xs[..., 0]
    if case == "zeros first":
        xs[:, :3] = 0
    return Prefixes(xs, ys, (0, 1, 2, 4, 8))


@pytest.mark.parametrize(
    "case", ["gaussian", "duplicated rows", "collinear columns", "zeros first"]
)
@pytest.mark.parametrize("family", FILTERED, ids=lambda family: family.name)
def test_a_filter_predicts_what_the_algorithm_predicts(family, case):
    rng = np.random.default_rng(0)
    members = [
        {
            name: grid.value(grid.snap(rng.uniform(*grid.ends)))
            for name, grid in family.grids.items()
        }
        for _ in range(5)
    ]
    for numbers in members:
        if "num_steps" in numbers:  # long iterations are slow to check, and round
            numbers["num_steps"] = 1 + numbers["num_steps"] % 40
        if "step_size" in numbers:  # such that none diverges
            numbers["step_size"] = min(numbers["step_size"], 0.02)
    prefixes = _prefixes(case)
    predicted = family.predict(members, prefixes)
    for numbers, row in zip(members, predicted, strict=True):
        expected = family.member(numbers).predictor(prefixes.xs, prefixes.ys)
        expected = expected[:, list(prefixes.examples_seen)]
        torch.testing.assert_close(row, expected, rtol=1e-6, atol=1e-8)


def test_all_iterations_on_the_gram_matrix_but_conjugate_gradients_are_filters():
    assert {family.name for family in FILTERED} == {
        "ridge",
        "newton",
        "gradient_descent",
        "richardson",
        "chebyshev",
        "diagonal_descent",
        "covariance_descent",
        "heavy_ball",
    }


def test_a_grid_gives_each_integer_once_and_keeps_to_its_ends():
    grid = Grid(low=1, high=64, points=40, kind="integer")
    values = [grid.value(u) for u in grid.coordinates()]
    assert values == sorted(set(values))
    assert (values[0], values[-1]) == (1, 64)
    assert grid.value(grid.snap(99.0)) == 64


def test_a_grid_without_a_range_is_refused():
    with pytest.raises(ValueError, match=r"low=2, high=1 are no range"):
        Grid(low=2, high=1)
    with pytest.raises(ValueError, match="0 < low"):
        Grid(low=0, high=1)


def test_a_family_of_ones_own_is_a_candidate_and_null_takes_one_away():
    own = {
        "mine": FamilyConfig(
            type="incontext_linear.predictors.Ridge", free={"penalty": Grid(low=0.1, high=1)}
        ),
        "newton": None,
    }
    names = [family.name for family in build_families(TASK, own)]
    assert "mine" in names
    assert "newton" not in names
    assert set(names) - {"mine"} == set(DEFAULT_FAMILIES) - {"newton"}


def test_a_family_that_cannot_be_built_is_named():
    with pytest.raises(ValueError, match=r"'mine'.*unknown argument 'penlty'"):
        build_families(TASK, {"mine": FamilyConfig(type="Ridge", arguments={"penlty": 1})})


def test_a_task_with_a_pool_has_the_discrete_posterior_mean_among_its_candidates():
    names = [family.name for family in build_families(TASK.model_copy(update={"pool_size": 8}))]
    assert "discrete_mmse" in names
