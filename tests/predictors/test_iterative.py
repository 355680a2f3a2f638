"""The iterations and the decaying SGD against independent implementations, at every prefix."""

import math

import numpy as np
import pytest
import references
import torch
from numpy.polynomial.chebyshev import Chebyshev as ChebyshevSeries
from scipy.sparse.linalg import cg

from incontext_linear.config import TaskConfig
from incontext_linear.predictors import (
    Chebyshev,
    ConjugateGradients,
    DecayingSGD,
    GradientDescent,
    HeavyBall,
    OnePassSGD,
    OrdinaryLeastSquares,
    PreconditionedGradientDescent,
    Richardson,
    Ridge,
    build_predictor,
)


def heavy_ball(step_size, num_steps, momentum):
    """As a first-order system in (w, w before), by a power of its matrix."""

    def fit(x, y):
        dim = x.shape[1]
        eye, zero = np.eye(dim), np.zeros((dim, dim))
        slope = (1 + momentum) * eye - 2 * step_size * x.T @ x
        moment = np.concatenate([2 * step_size * x.T @ y, np.zeros(dim), [1]])
        system = np.zeros((2 * dim + 1, 2 * dim + 1))
        system[: 2 * dim, : 2 * dim] = np.block([[slope, -momentum * eye], [eye, zero]])
        system[:, -1] = moment
        start = np.zeros(2 * dim + 1)
        start[-1] = 1
        return (np.linalg.matrix_power(system, num_steps) @ start)[:dim]

    return fit


def filtered(error):
    """w from the error that ``error(s, trace)`` leaves in each direction, by singular values."""

    def fit(x, y):
        left, values, right = np.linalg.svd(x, full_matrices=False)
        squares = values**2
        kept = squares > 1e-20 * max(squares.max(initial=0), 1e-300)
        learned = np.where(kept, 1 - error(squares, max(squares.sum(), 1e-300)), 0)
        inverse = np.divide(learned, values, out=np.zeros_like(values), where=kept)
        return right.T @ (inverse * (left.T @ y))

    return fit


def chebyshev_error(num_steps, condition):
    series = ChebyshevSeries([0] * num_steps + [1])

    def error(squares, trace):
        low = trace / condition
        middle = (trace + low) / (trace - low)
        return series((trace + low - 2 * squares) / (trace - low)) / series(middle)

    return error


def conjugate_gradients(num_steps):
    def fit(x, y):
        if not np.any(x):
            return np.zeros(x.shape[1])
        return cg(
            x.T @ x, x.T @ y, maxiter=num_steps, rtol=0, atol=1e-14 * np.linalg.norm(x.T @ y)
        )[0]

    return fit


def preconditioned(step_size, num_steps, kind, damping):
    def fit(x, y):
        covariance = x.T @ x / len(x)
        if kind == "diagonal":
            covariance = np.diag(np.diag(covariance))
        inverse = np.linalg.pinv(covariance + damping * np.eye(x.shape[1]), rcond=1e-12)
        w = np.zeros(x.shape[1])
        for _ in range(num_steps):
            w = w - step_size * inverse @ (2 * x.T @ (x @ w - y)) / len(x)
        return w

    return fit


def decaying_sgd(step_size, decay):
    def fit(x, y):
        w = np.zeros(x.shape[1])
        for t in range(len(x)):
            w = w - step_size / (t + 1) ** decay * 2 * x[t] * (x[t] @ w - y[t])
        return w

    return fit


PREDICTORS = {
    "heavy ball": (HeavyBall(0.01, 7, 0.6), heavy_ball(0.01, 7, 0.6)),
    "heavy ball, no step": (HeavyBall(0.01, 0, 0.6), heavy_ball(0.01, 0, 0.6)),
    "Richardson": (Richardson(1.3, 5), filtered(lambda s, trace: (1 - 1.3 * s / trace) ** 5)),
    "Chebyshev": (Chebyshev(6, 20.0), filtered(chebyshev_error(6, 20.0))),
    "Chebyshev, one step": (Chebyshev(1, 3), filtered(chebyshev_error(1, 3.0))),
    "Chebyshev, no step": (Chebyshev(0, 3), filtered(chebyshev_error(0, 3.0))),
    "diagonal": (
        PreconditionedGradientDescent(0.15, 4, "diagonal", 0.2),
        preconditioned(0.15, 4, "diagonal", 0.2),
    ),
    "diagonal, undamped": (
        PreconditionedGradientDescent(0.15, 4),
        preconditioned(0.15, 4, "diagonal", 0.0),
    ),
    "covariance": (
        PreconditionedGradientDescent(0.3, 3, "covariance", 0.2),
        preconditioned(0.3, 3, "covariance", 0.2),
    ),
    "decaying SGD": (DecayingSGD(0.04, 0.7), decaying_sgd(0.04, 0.7)),
}
# Repeated and dependent rows too; not those so large that every fixed step diverges.
CASES = [case for case in references.CASES if case != "large"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PREDICTORS)
def test_weights_agree_with_an_independent_implementation_at_every_prefix(name, case):
    predictor, reference = PREDICTORS[name]
    xs, ys = references.prompts(case)
    expected = references.at_every_prefix(reference, xs, ys)
    actual = predictor.weights(torch.from_numpy(xs), torch.from_numpy(ys)).numpy()
    size = np.linalg.norm(expected, axis=-1)
    assert (np.linalg.norm(actual - expected, axis=-1) <= 1e-8 * size).all()


@pytest.mark.parametrize(
    "case", ["gaussian", "one dimension", "zero row", "duplicated rows", "all zero"]
)
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_conjugate_gradients_agree_with_scipy_while_rounding_is_small(num_steps, case):
    xs, ys = references.prompts(case)
    expected = references.at_every_prefix(conjugate_gradients(num_steps), xs, ys)
    actual = (
        ConjugateGradients(num_steps).weights(torch.from_numpy(xs), torch.from_numpy(ys)).numpy()
    )
    size = np.linalg.norm(expected, axis=-1)
    assert (np.linalg.norm(actual - expected, axis=-1) <= 1e-7 * size + 1e-12).all()


def _prompts(case="gaussian"):
    return [torch.from_numpy(array) for array in references.prompts(case)]


def test_as_many_conjugate_gradients_as_dimensions_are_least_squares():
    xs, ys = _prompts()
    expected = OrdinaryLeastSquares().weights(xs, ys)
    error = (ConjugateGradients(2 * references.DIM).weights(xs, ys) - expected).norm(dim=-1)
    assert (error <= 1e-6 * expected.norm(dim=-1)).all()


@pytest.mark.slow
def test_without_momentum_or_decay_they_are_the_plain_algorithms():
    xs, ys = _prompts()
    torch.testing.assert_close(HeavyBall(0.01, 6, 0)(xs, ys), GradientDescent(0.01, 6)(xs, ys))
    torch.testing.assert_close(DecayingSGD(0.02, 0)(xs, ys), OnePassSGD(0.02)(xs, ys))


def test_one_half_step_along_the_damped_inverse_covariance_is_ridge():
    xs, ys = _prompts()
    predictions = PreconditionedGradientDescent(0.5, 1, "covariance", 0.3)(xs, ys)
    for k in range(1, references.NUM_EXAMPLES):
        torch.testing.assert_close(predictions[:, k], Ridge(0.3 * k)(xs, ys)[:, k])


@pytest.mark.parametrize("predictor", [Richardson(1.7, 4), Chebyshev(5, 30), ConjugateGradients(3)])
def test_those_relative_to_the_prompt_do_not_depend_on_the_inputs_unit(predictor):
    xs, ys = _prompts()
    torch.testing.assert_close(predictor(1000 * xs, ys), predictor(xs, ys))


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_prediction_uses_what_was_seen_alone(name):
    predictor = PREDICTORS[name][0]
    xs, ys = _prompts()
    before = predictor(xs, ys)
    xs[:, 6:], ys[:, 5:] = 9.0, -7.0
    torch.testing.assert_close(predictor(xs, ys)[:, :6], before[:, :6])
    assert predictor(xs.float(), ys.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"type": "HeavyBall", "step_size": 0, "num_steps": 1, "momentum": 0.5}, "step_size=0"),
        ({"type": "Chebyshev", "num_steps": 3, "condition": 1}, "condition=1 .* > 1"),
        ({"type": "Richardson", "relaxation": math.nan, "num_steps": 1}, "relaxation=nan"),
        ({"type": "ConjugateGradients", "num_steps": 1.5}, "num_steps=1.5"),
        (
            {"type": "PreconditionedGradientDescent", "step_size": 1, "preconditioner": "full"},
            "preconditioner='full'",
        ),
        ({"type": "DecayingSGD", "step_size": 1, "decay": -1}, "decay=-1"),
    ],
)
def test_what_is_not_allowed_is_named(as_users_run_it, spec, named):
    with pytest.raises(ValueError, match=named):
        build_predictor("mine", spec, TaskConfig())
