"""Facts that hold for any prompt; hypothesis looks for one on which they do not."""

import numpy as np
import pytest
import references
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from incontext_linear.predictors import (
    Averaging,
    BayesPosteriorMean,
    DiscreteMMSE,
    FirstExamples,
    GradientDescent,
    IterativeNewton,
    LinearPredictor,
    NearestNeighbors,
    OnePassSGD,
    OrdinaryLeastSquares,
    Predictor,
    Ridge,
)

DIM = 4
POOL = torch.randn(6, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

PREDICTORS = {
    "least squares": OrdinaryLeastSquares(),
    "ridge": Ridge(0.3),
    "Bayes": BayesPosteriorMean(0.5, 1.0),
    "one gradient step": GradientDescent(0.01, 1),
    "gradient steps": GradientDescent(0.01, 5, 0.1),
    "SGD": OnePassSGD(0.02, 0.1),
    "neighbours": NearestNeighbors(3),
    "neighbours by distance": NearestNeighbors(3, "distance"),
    "Newton": IterativeNewton(4),
    "averaging": Averaging(),
    "first examples": FirstExamples(2),
    "discrete MMSE": DiscreteMMSE(POOL, 0.7),
}
LINEAR = {
    name: predictor
    for name, predictor in PREDICTORS.items()
    if isinstance(predictor, LinearPredictor)
}
EQUIVARIANT = {name: predictor for name, predictor in PREDICTORS.items() if name != "discrete MMSE"}
BATCH = {
    name: predictor
    for name, predictor in PREDICTORS.items()
    if name not in ("SGD", "first examples")
}

every = pytest.mark.parametrize("name", PREDICTORS)
fast = settings(max_examples=25, deadline=None)


def gaussian(num_prompts=3, num_examples=9, dim=DIM, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    xs = torch.randn(num_prompts, num_examples, dim, generator=rng, dtype=torch.float64)
    return xs.to(dtype), torch.randn(
        num_prompts, num_examples, generator=rng, dtype=torch.float64
    ).to(dtype)


seeds = st.integers(0, 2**32 - 1)


@st.composite
def integer_prompts(draw):
    """Small integers: repeated, dependent and zero rows and columns of every kind come up all the
    time.
    """
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    xs = draw(hnp.arrays(np.float64, (1, n, d), elements=st.integers(-2, 2)))
    ys = draw(hnp.arrays(np.float64, (1, n), elements=st.integers(-9, 9)))
    exponent = draw(st.sampled_from([-6, 0, 6]))
    return xs * 10.0**exponent, ys


@pytest.mark.slow
@given(integer_prompts())
@settings(max_examples=300, deadline=None)
def test_least_squares_has_minimum_norm_whatever_the_rank(prompt):
    xs, ys = prompt
    expected = references.at_every_prefix(references.least_squares, xs, ys)
    actual = OrdinaryLeastSquares().weights(*map(torch.from_numpy, prompt)).numpy()
    size = np.abs(ys).max() / max(np.abs(xs).max(), 1e-300)
    assert np.abs(actual - expected).max() <= 1e-10 * size * references.worst_condition(xs).max()


@pytest.mark.slow
@given(integer_prompts(), st.sampled_from([1e-30, 1e-9, 1e-3, 1.0, 1e9]))
@settings(max_examples=200, deadline=None)
def test_ridge_agrees_with_singular_values_whatever_the_rank_and_penalty(prompt, penalty):
    xs, ys = prompt
    expected = references.at_every_prefix(references.ridge_by_singular_values(penalty), xs, ys)
    actual = Ridge(penalty).weights(*map(torch.from_numpy, prompt)).numpy()
    size = np.linalg.norm(expected, axis=-1).max()
    assert np.abs(actual - expected).max() <= 1e-10 * size * references.worst_condition(xs).max()


@every
def test_every_predictor_has_the_one_form(name):
    predictor = PREDICTORS[name]
    assert isinstance(predictor, Predictor)
    assert predictor(*gaussian()).shape == (3, 9)


@pytest.mark.slow
@every
@given(seed=seeds, k=st.integers(0, 8))
@fast
def test_a_prediction_depends_on_no_later_example(name, seed, k):
    (xs, ys), (other_xs, other_ys) = gaussian(seed=seed), gaussian(seed=seed + 1)
    other_xs[:, : k + 1], other_ys[:, :k] = xs[:, : k + 1], ys[:, :k]
    predictions, others = PREDICTORS[name](xs, ys), PREDICTORS[name](other_xs, other_ys)
    assert torch.equal(predictions[:, : k + 1], others[:, : k + 1])


@every
def test_a_prediction_depends_on_no_other_prompt(name):
    xs, ys = gaussian(num_prompts=300)
    alone = torch.cat([PREDICTORS[name](xs[b : b + 1], ys[b : b + 1]) for b in (0, 150, 299)])
    torch.testing.assert_close(
        PREDICTORS[name](xs, ys)[[0, 150, 299]], alone, rtol=1e-12, atol=1e-12
    )


@every
def test_the_last_y_is_never_read(name):
    xs, ys = gaussian()
    unread = ys.clone()
    unread[:, -1] = torch.nan
    assert torch.equal(PREDICTORS[name](xs, ys), PREDICTORS[name](xs, unread))


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCH)
@given(seed=seeds)
@fast
def test_the_order_of_the_examples_does_not_matter(name, seed):
    xs, ys = gaussian(seed=seed)
    order = torch.cat(
        (torch.randperm(8, generator=torch.Generator().manual_seed(seed)), torch.tensor([8]))
    )
    predictions, permuted = (BATCH[name](xs, ys), BATCH[name](xs[:, order], ys[:, order]))
    worst = max(references.worst_condition(x.numpy()).max() for x in (xs, xs[:, order]))
    assert (predictions - permuted)[:, -1].abs().max() <= 1e-12 * worst * (
        1 + predictions.abs().max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVARIANT)
@given(seed=seeds, scale=st.floats(-1e6, 1e6).filter(lambda scale: abs(scale) > 1e-6))
@fast
def test_predictions_scale_with_y(name, seed, scale):
    xs, ys = gaussian(seed=seed)
    torch.testing.assert_close(
        EQUIVARIANT[name](xs, scale * ys), scale * EQUIVARIANT[name](xs, ys), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize(
    "name", ["least squares", "neighbours", "neighbours by distance", "Newton"]
)
@given(seed=seeds, exponent=st.integers(-40, 40))
@fast
def test_the_unit_of_x_does_not_matter_to_predictors_without_a_scale(name, seed, exponent):
    xs, ys = gaussian(seed=seed)
    scaled = PREDICTORS[name](2.0**exponent * xs, ys)
    torch.testing.assert_close(scaled, PREDICTORS[name](xs, ys), rtol=1e-8, atol=1e-8)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
@fast
def test_ridge_is_unmoved_when_x_and_the_root_of_its_penalty_scale_together(seed, scale):
    xs, ys = gaussian(seed=seed)
    torch.testing.assert_close(
        Ridge(0.3 * scale**2)(scale * xs, ys), Ridge(0.3)(xs, ys), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("penalty", [1e-8, 1e-12, 1e-100, 1e-300])
def test_ridge_tends_to_minimum_norm_least_squares_as_its_penalty_vanishes(penalty):
    xs, ys = gaussian()
    gap = Ridge(penalty).weights(xs, ys) - OrdinaryLeastSquares().weights(xs, ys)
    smallest = min(torch.linalg.svdvals(xs[:, :k]).min() for k in range(1, 9))
    bound = max(penalty / smallest**2, 1e-12) * 10
    assert gap.norm() <= bound * OrdinaryLeastSquares().weights(xs, ys).norm()


def test_bayes_is_ridge_with_the_ratio_of_variances():
    xs, ys = gaussian()
    assert torch.equal(BayesPosteriorMean(0.5, 2.0)(xs, ys), Ridge(1 / 16)(xs, ys))


def well_conditioned(seed):
    """Prompts whose every prefix has singular values between 0.6 and 7 only."""
    xs, ys = gaussian(num_prompts=2000, num_examples=8, dim=3, seed=seed)
    values = [torch.linalg.svdvals(xs[:, :k]) for k in range(1, 8)]
    keep = torch.stack([(v.amin(-1) > 0.6) & (v.amax(-1) < 7) for v in values]).all(0)
    return xs[keep], ys[keep]


@pytest.mark.slow
def test_many_gradient_steps_reach_minimum_norm_least_squares():
    xs, ys = well_conditioned(0)
    descended = GradientDescent(0.01, 4000).weights(xs, ys)
    assert len(xs) > 20
    torch.testing.assert_close(
        descended, OrdinaryLeastSquares().weights(xs, ys), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("num_steps", [18, 40, 400])
def test_many_newton_steps_reach_minimum_norm_least_squares_and_stay(num_steps):
    xs, ys = well_conditioned(1)
    converged = IterativeNewton(num_steps).weights(xs, ys)
    torch.testing.assert_close(
        converged, OrdinaryLeastSquares().weights(xs, ys), rtol=1e-8, atol=1e-8
    )


def test_newton_stays_put_on_gaussian_prompts_however_many_steps_it_takes():
    xs, ys = gaussian(num_prompts=100, num_examples=20)
    expected = OrdinaryLeastSquares().weights(xs, ys)
    error = (IterativeNewton(300).weights(xs, ys) - expected).norm(dim=-1)
    condition = torch.from_numpy(references.worst_condition(xs.numpy()))
    assert (error <= 1e-13 * condition**2 * (1 + expected.norm(dim=-1))).all()


@pytest.mark.parametrize("name", LINEAR)
def test_predictions_are_linear_in_the_query(name):
    xs, ys = gaussian()
    queries, others = gaussian(num_examples=5, seed=1)[0], gaussian(num_examples=5, seed=2)[0]
    together = LINEAR[name].predict_queries(xs, ys, 2 * queries - 3 * others)
    apart = [LINEAR[name].predict_queries(xs, ys, points) for points in (queries, others)]
    torch.testing.assert_close(together, 2 * apart[0] - 3 * apart[1])


@pytest.mark.slow
@every
@given(seed=seeds)
@fast
def test_predictions_at_queries_are_those_of_prompts_that_end_in_them(name, seed):
    xs, ys = gaussian(seed=seed)
    queries = gaussian(num_examples=2, seed=seed + 1)[0]
    answers = PREDICTORS[name].predict_queries(xs, ys, queries)
    for k in (0, 1, DIM, 8):
        for q in range(2):
            asked = xs.clone()
            asked[:, k] = queries[:, q]
            torch.testing.assert_close(
                answers[:, k, q], PREDICTORS[name](asked, ys)[:, k], rtol=1e-9, atol=1e-12
            )


@every
def test_no_example_gives_the_prior_mean(name):
    xs, ys = gaussian()
    expected = (
        xs[:, 0] @ POOL.mean(0) if name == "discrete MMSE" else torch.zeros(3, dtype=torch.float64)
    )
    torch.testing.assert_close(PREDICTORS[name](xs, ys)[:, 0], expected)
    torch.testing.assert_close(PREDICTORS[name](xs[:, :1], ys[:, :1])[:, 0], expected)
