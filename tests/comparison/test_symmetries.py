"""What each algorithm has exactly, and what it has not."""

import numpy as np
import pytest
import torch

from incontext_linear.comparison.symmetries import LEARNER, SYMMETRIES, measure_symmetries
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import (
    Averaging,
    ConjugateGradients,
    GradientDescent,
    NearestNeighbors,
    OnePassSGD,
    OrdinaryLeastSquares,
    PreconditionedGradientDescent,
    Ridge,
)
from incontext_linear.tasks import draw_prompts

PREDICTORS = {
    "least_squares": OrdinaryLeastSquares(),
    "ridge": Ridge(0.5),
    "descent": GradientDescent(0.01, 5),
    "averaging": Averaging(),
    "sgd": OnePassSGD(0.05),
    "neighbors": NearestNeighbors(2),
    "jacobi": PreconditionedGradientDescent(0.1, 3),
    "conjugate": ConjugateGradients(2),
}
K = (3, 4, 7)
# Of permutation, rotation, sign, scale, additivity, invertible map, irrelevant labels.
HOLDS = {
    "least_squares": "1111111",
    "ridge": "1111101",
    "descent": "1111101",
    "averaging": "1111101",
    "sgd": "0111101",
    "neighbors": "1111100",
    "jacobi": "1011100",
    "conjugate": "1111000",
}


@pytest.fixture(scope="module")
def table():
    prompts = draw_prompts(TaskConfig(dim=3, num_examples=8), 48, seed=2)
    candidates = {
        name: (lambda p, f=f: f(p.xs, p.ys)[:, list(p.examples_seen)])
        for name, f in PREDICTORS.items()
    }
    return measure_symmetries(OnePassSGD(0.05), candidates, prompts, K, 0.9, 50, seed=0)


@pytest.mark.parametrize("name", HOLDS)
def test_each_algorithm_has_its_own_fingerprint(table, name):
    rows = table[table["candidate"] == name]
    found = "".join(
        "1" if (rows[rows["symmetry"] == symmetry]["violation"] < 1e-8).all() else "0"
        for symmetry in SYMMETRIES
    )
    assert found == HOLDS[name]


def test_the_learner_stands_beside_its_own_algorithm(table):
    rows = table.set_index(["symmetry", "examples_seen", "candidate"])["violation"].unstack()
    np.testing.assert_allclose(rows[LEARNER], rows["sgd"], atol=1e-9, rtol=1e-4)


def test_a_violation_is_the_mean_square_of_the_difference():
    """SGD on the examples in another order, one prompt at a time in NumPy."""
    prompts = draw_prompts(TaskConfig(dim=3, num_examples=6), 20, seed=4)
    rng = torch.Generator().manual_seed(0)
    (_, _), (_, permuted) = SYMMETRIES["permutation"].terms(prompts, 5, rng)

    def sgd(xs, ys):
        w = np.zeros(3)
        for x, y in zip(xs[:5], ys[:5], strict=True):
            w = w + 0.1 * x * (y - x @ w)
        return w @ xs[5]

    pairs = zip(
        *(t.double().numpy() for t in (prompts.xs, prompts.ys, permuted.xs, permuted.ys)),
        strict=True,
    )
    squares = [(sgd(a, b) - sgd(c, d)) ** 2 for a, b, c, d in pairs]
    expected = np.mean(squares) / float(prompts.ys.double().square().mean())

    def ordered(prompts, k, rng):
        return [(1.0, prompts), (-1.0, permuted)]

    one = {"permutation": SYMMETRIES["permutation"].__class__("", ordered)}
    table = measure_symmetries(OnePassSGD(0.05), {}, prompts, (5,), 0.9, 10, 0, one)
    assert table["violation"].iloc[0] == pytest.approx(expected, rel=1e-3)
    assert sorted(map(tuple, permuted.xs[0].tolist())) == sorted(map(tuple, prompts.xs[0].tolist()))


def test_how_much_noise_is_raised_is_the_sum_of_squared_coefficients(table):
    gains = table.groupby("symmetry")["noise_gain"].first()
    assert gains["permutation"] == 2
    assert gains["additivity"] == 3
    assert gains["scale_of_y"] == 1.25
