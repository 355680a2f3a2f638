"""Every predictor against an independent implementation, at every prefix, degenerate prompts
included.
"""

import numpy as np
import pytest
import references
import torch

from incontext_linear.predictors import (
    Averaging,
    BayesPosteriorMean,
    DiscreteMMSE,
    FirstExamples,
    GradientDescent,
    IterativeNewton,
    NearestNeighbors,
    OnePassSGD,
    OrdinaryLeastSquares,
    Ridge,
)

POOL = torch.randn(
    7, references.DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)

LINEAR = {
    "least squares as in NumPy": (OrdinaryLeastSquares(), references.least_squares),
    "least squares as in scikit-learn": (OrdinaryLeastSquares(), references.linear_regression),
    "ridge": (Ridge(0.3), references.ridge(0.3)),
    "ridge, strong": (Ridge(1e4), references.ridge(1e4)),
    "ridge, weak": (Ridge(1e-5), references.ridge(1e-5)),
    "ridge, hardly any": (Ridge(1e-20), references.ridge_by_singular_values(1e-20)),
    "ridge, none": (Ridge(0.0), references.least_squares),
    "Bayes": (BayesPosteriorMean(0.5, 2.0), references.ridge(0.0625)),
    "Bayes without noise": (BayesPosteriorMean(0.0, 2.0), references.least_squares),
    "one gradient step": (GradientDescent(0.01, 1), references.gradient_descent(0.01, 1, 0.0)),
    "gradient steps": (GradientDescent(0.02, 6, 0.3), references.gradient_descent(0.02, 6, 0.3)),
    "no gradient step": (GradientDescent(0.01, 0), references.gradient_descent(0.01, 0, 0.0)),
    "one-pass SGD": (OnePassSGD(0.03), references.one_pass_sgd(0.03, 0.0)),
    "one-pass SGD, penalised": (OnePassSGD(0.03, 0.2), references.one_pass_sgd(0.03, 0.2)),
    "Newton": (IterativeNewton(5), references.iterative_newton(5)),
    "Newton, one step": (IterativeNewton(1), references.iterative_newton(1)),
    "Newton, many steps": (IterativeNewton(12), references.iterative_newton(12)),
    "Newton, the most steps without an inverse": (
        IterativeNewton(20),
        references.iterative_newton(20),
    ),
    "Newton's start": (IterativeNewton(0), references.iterative_newton(0)),
    "no examples": (FirstExamples(0), lambda x, y: np.zeros(x.shape[1])),
    "the first example": (FirstExamples(1), lambda x, y: references.least_squares(x[:1], y[:1])),
    "the first three": (FirstExamples(3), lambda x, y: references.least_squares(x[:3], y[:3])),
    "averaging": (Averaging(), references.averaging),
}


def to_torch(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def assert_close(actual, expected, tolerance=1e-8):
    """Relative in the norm of each prompt's and prefix's vector."""
    error = np.linalg.norm(actual.numpy() - expected, axis=-1)
    size = np.linalg.norm(expected, axis=-1)
    assert (error <= tolerance * size).all(), (error / np.maximum(size, 1e-300)).max()


@pytest.mark.slow
@pytest.mark.parametrize("case", references.CASES)
@pytest.mark.parametrize("name", LINEAR)
def test_weights_agree_with_an_independent_implementation_at_every_prefix(name, case):
    predictor, reference = LINEAR[name]
    xs, ys = references.prompts(case)
    expected = references.at_every_prefix(reference, xs, ys)
    assert_close(predictor.weights(*to_torch(xs, ys)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", references.CASES)
@pytest.mark.parametrize("name", LINEAR)
def test_predictions_agree_with_an_independent_implementation_at_every_prefix(name, case):
    predictor, reference = LINEAR[name]
    xs, ys = references.prompts(case)
    expected = references.at_every_prefix(reference, xs, ys)
    error = predictor(*to_torch(xs, ys)).numpy() - (expected * xs).sum(-1)
    assert (
        np.abs(error) <= 1e-8 * np.linalg.norm(expected, axis=-1) * np.linalg.norm(xs, axis=-1)
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", references.CASES)
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("num_neighbors", [1, 3, 50])
def test_nearest_neighbors_agree_with_scikit_learn_at_every_prefix(num_neighbors, weights, case):
    xs, ys = references.prompts(
        case, noise_std=0.0
    )  # without noise, examples at the same place tie harmlessly
    expected = references.nearest_neighbors(num_neighbors, weights, xs, ys)
    actual = NearestNeighbors(num_neighbors, weights)(*to_torch(xs, ys)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-8 * np.abs(ys).max())


def test_nearest_neighbors_prefer_the_earlier_of_two_at_the_same_distance():
    xs = torch.tensor([1.0, -1.0, 3.0, 0.0]).view(1, 4, 1)
    ys = torch.tensor([[5.0, 7.0, 9.0, 0.0]])
    assert NearestNeighbors(1)(xs, ys)[0].tolist() == [0, 5, 5, 5]
    assert NearestNeighbors(2)(xs, ys)[0].tolist() == [0, 5, 6, 6]


@pytest.mark.parametrize("case", [case for case in references.CASES if case != "one dimension"])
@pytest.mark.parametrize("noise_std", [0.1, 1.0, 30.0])
def test_discrete_mmse_agrees_with_scipy_at_every_prefix(noise_std, case):
    xs, ys = references.prompts(case)
    scale = noise_std * max(np.abs(ys).max(), 1e-6)
    expected = references.at_every_prefix(references.discrete_mmse(POOL.numpy(), scale), xs, ys)
    expected[:, 0] = POOL.mean(0)
    assert_close(DiscreteMMSE(POOL, scale).weights(*to_torch(xs, ys)), expected)


def test_discrete_mmse_without_noise_is_the_member_of_the_pool_that_made_the_prompt():
    xs = torch.from_numpy(references.prompts("gaussian")[0])
    weights = DiscreteMMSE(POOL, 0.0).weights(xs, xs @ POOL[4])
    torch.testing.assert_close(
        weights[:, 1:], POOL[4].expand_as(weights[:, 1:]), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(weights[:, 0], POOL.mean(0).expand_as(weights[:, 0]))


def test_least_squares_loses_no_more_digits_than_the_worst_conditioned_prefix_asks_for():
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((200, 9, 4))
    xs[:, 3] = (
        xs[:, 0] + xs[:, 1] + 10.0 ** rng.uniform(-9, 0, (200, 1)) * xs[:, 3]
    )  # κ up to 1e9 or so at k = d
    ys = rng.standard_normal((200, 9))
    expected = references.at_every_prefix(references.least_squares, xs, ys)
    condition = references.worst_condition(xs)
    assert condition.max() > 1e8
    error = np.linalg.norm(
        OrdinaryLeastSquares().weights(*to_torch(xs, ys)).numpy() - expected, axis=-1
    )
    assert (error <= 2e-14 * condition * np.linalg.norm(expected, axis=-1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1e-8, 0.1])
def test_many_gaussian_prompts_are_fitted_to_1e_minus_8_or_their_condition(penalty):
    rng = np.random.default_rng(1)
    xs, ys = rng.standard_normal((100, 40, 8)), rng.standard_normal((100, 40))
    expected = references.at_every_prefix(references.ridge_by_singular_values(penalty), xs, ys)
    error = np.linalg.norm(Ridge(penalty).weights(*to_torch(xs, ys)).numpy() - expected, axis=-1)
    tolerance = np.maximum(1e-8, 2e-14 * references.worst_condition(xs))
    assert (error <= tolerance * np.linalg.norm(expected, axis=-1)).all()
