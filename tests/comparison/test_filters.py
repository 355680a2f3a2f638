"""Spectral filters: against NumPy, SciPy and the predictors, and where the filter is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse.linalg import cg

from incontext_linear.comparison.filters import (
    FilterConfig,
    draw_filter_prompts,
    filter_bins,
    filter_power,
    filter_shares,
    fit_families,
    fit_free_filter,
    learner_filter,
    learner_weights,
    spectra,
)
from incontext_linear.comparison.filters.families import FAMILIES, cutoffs, fit_family, member_curve
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import (
    FirstExamples,
    GradientDescent,
    IterativeNewton,
    OnePassSGD,
    OrdinaryLeastSquares,
    Ridge,
)

TASK = TaskConfig(dim=3, num_examples=12)
CONFIG = FilterConfig(num_prompts=240, num_resamples=100, num_plants=3)


@pytest.fixture(scope="module")
def prompts():
    return draw_filter_prompts(TASK, CONFIG, seed=0).to(torch.float64)


@pytest.fixture(scope="module")
def spectrum(prompts):
    return spectra(prompts)


def weights_of(predictor, prompts):
    return predictor.weights(prompts.xs, prompts.ys)[:, -1].numpy()


def planted(spectrum, name, *numbers):
    return FAMILIES[name].apply(spectrum, np.array([numbers], dtype=float))[0]


def noisy(coordinates, size, seed=0):
    return coordinates + size * np.random.default_rng(seed).standard_normal(coordinates.shape)


def test_inputs_have_the_condition_number_asked_for_and_keep_their_size():
    task = TaskConfig(dim=3, num_examples=20_001)
    config = FilterConfig(num_prompts=20, num_queries=8, conditions=(1.0, 10.0, 1000.0))
    drawn = draw_filter_prompts(task, config, seed=1)
    covariances = (drawn.xs.mT @ drawn.xs / drawn.xs.shape[1]).double()
    values = torch.linalg.eigvalsh(covariances).numpy()
    np.testing.assert_allclose(values[:, -1] / values[:, 0], drawn.conditions, rtol=0.1)
    np.testing.assert_allclose(values.sum(1), 3.0, rtol=0.05)


def test_bases_are_each_prompts_own():
    config = FilterConfig(num_prompts=20, conditions=(1000.0,))
    drawn = draw_filter_prompts(TaskConfig(dim=3, num_examples=200), config, seed=0)
    tops = torch.linalg.eigh(drawn.xs.mT @ drawn.xs).eigenvectors[:, :, -1]
    assert (tops @ tops.mT).abs().median() < 0.9


def test_conditions_are_balanced_between_fitting_and_scoring(prompts):
    for condition in CONFIG.conditions:
        assert prompts.fitting[prompts.conditions == condition].mean() == 0.5


def test_least_squares_in_the_eigenbasis_is_numpys(prompts, spectrum):
    xs, ys = prompts.xs[:, :-1].numpy(), prompts.ys[:, :-1].numpy()
    reference = np.stack(
        [np.linalg.lstsq(x, y, rcond=None)[0] for x, y in zip(xs, ys, strict=True)]
    )
    np.testing.assert_allclose(spectrum.weights(spectrum.solution), reference, rtol=1e-6)
    singular = np.linalg.svd(xs, compute_uv=False)[:, ::-1]
    np.testing.assert_allclose(spectrum.values, singular**2, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(spectrum.norms[:, 0], np.linalg.norm(singular**2, axis=1))


@pytest.mark.parametrize("seen", [2, 11])
@pytest.mark.parametrize(
    ("predictor", "name", "numbers"),
    [
        (Ridge(0.3), "ridge", (0.3,)),
        (GradientDescent(0.01, 5), "gradient_descent", (0.01, 5)),
        (IterativeNewton(4), "newton", (4,)),
        (IterativeNewton(4), "newton_start", (4, 1)),
        (OrdinaryLeastSquares(), "least_squares", ()),
    ],
)
def test_a_family_is_its_predictor(predictor, name, numbers, seen):
    config = CONFIG.model_copy(update={"context_length": seen})  # 2: fewer examples than dimensions
    drawn = draw_filter_prompts(TASK, config, seed=0).to(torch.float64)
    spectrum = spectra(drawn)
    reference = weights_of(predictor, drawn)
    found = spectrum.weights(planted(spectrum, name, *numbers))
    np.testing.assert_allclose(found, reference, rtol=1e-6, atol=1e-6)


def test_gradient_flow_is_the_limit_of_small_steps(spectrum):
    flow = planted(spectrum, "gradient_flow", 0.2)
    descent = planted(spectrum, "gradient_descent", 1e-6, 1e5)
    np.testing.assert_allclose(flow, descent, atol=1e-3)


def test_momentum_is_the_heavy_ball(prompts, spectrum):
    xs, ys = prompts.xs[:, :-1].numpy(), prompts.ys[:, :-1].numpy()
    before = weights = np.zeros((len(xs), 3))
    for _ in range(6):
        slope = np.einsum("bki,bk->bi", xs, np.einsum("bki,bi->bk", xs, weights) - ys)
        before, weights = weights, weights - 2 * 0.01 * slope + 0.5 * (weights - before)
    found = spectrum.weights(planted(spectrum, "momentum", 0.01, 0.5, 6))
    np.testing.assert_allclose(found, weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_conjugate_gradients_are_scipys(prompts, spectrum, num_steps):
    found = spectrum.weights(planted(spectrum, "conjugate_gradients", num_steps))
    for x, y, weights in zip(prompts.xs[:, :-1], prompts.ys[:, :-1], found, strict=True):
        gram, moment = (x.T @ x).numpy(), (x.T @ y).numpy()
        reference = cg(gram, moment, maxiter=num_steps, rtol=0)[0]
        np.testing.assert_allclose(weights, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predictor", "name", "numbers"),
    [
        (Ridge(0.3), "ridge", {"penalty": 0.3}),
        (GradientDescent(0.01, 6), "gradient_descent", {"step_size": 0.01, "num_steps": 6}),
        (IterativeNewton(3), "newton", {"num_steps": 3}),
    ],
)
def test_a_predictors_family_and_numbers_are_found(predictor, name, numbers):
    measured = learner_filter(predictor, TASK, CONFIG, seed=3, dtype=torch.float64)
    scores = measured.scores.set_index("family")
    assert scores.loc[name, "missed"] < 1e-5
    others = {"ridge", "gradient_descent", "newton", "least_squares"} - {name}
    assert (scores.loc[list(others), "ratio_low"] > 2 * scores.loc[name, "ratio_high"]).all()
    found = measured.parameters.query("family == @name").set_index("parameter")
    for parameter, value in numbers.items():
        assert found.loc[parameter, "value"] == pytest.approx(value, rel=0.01)
        assert found.loc[parameter, "low"] <= found.loc[parameter, "high"]


def test_the_families_of_least_squares_share_it():
    scores = learner_filter(
        OrdinaryLeastSquares(), TASK, CONFIG, seed=0, dtype=torch.float64
    ).scores.set_index("family")
    assert scores.loc["least_squares", "missed"] < 1e-12
    assert scores.loc["scaled_ridge", "missed"] < 1e-6  # λ goes to 0


def test_a_filter_explains_filters_and_nothing_else(prompts, spectrum):
    def shares(weights):
        table = filter_shares(spectrum.coordinates(weights), spectrum, prompts.fitting, CONFIG, 0)
        return table.set_index("axis")["mean"]

    ridge = shares(weights_of(Ridge(1.0), prompts))
    assert ridge["eigenvalue"] > 0.999
    newton = shares(weights_of(IterativeNewton(2), prompts))
    assert newton["relative"] > 0.99 > newton["eigenvalue"]
    assert shares(weights_of(OnePassSGD(0.1), prompts)).max() < 0.96
    assert shares(weights_of(FirstExamples(1), prompts)).max() < 0.6
    stranger = np.random.default_rng(0).standard_normal(spectrum.values.shape)
    assert shares(stranger).max() < 0.1


def test_the_filter_of_a_bin_is_the_regression_in_it(spectrum):
    coordinates = noisy(planted(spectrum, "ridge", 2.0), 0.1)
    table = filter_bins(coordinates, spectrum, "eigenvalue", CONFIG, seed=0)
    low, high = np.quantile(np.log(spectrum.values), [0.005, 0.995])
    edges = np.exp(np.linspace(low, high, CONFIG.num_bins + 1))
    inside = (spectrum.values >= edges[-2]).ravel()  # the last bin is open
    a, b = coordinates.ravel()[inside], spectrum.solution.ravel()[inside]
    assert table["mean"].iloc[-1] == pytest.approx(np.linalg.lstsq(b[:, None], a, rcond=None)[0][0])
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()
    assert (table["num_prompts"] >= CONFIG.bin_prompts).all()


def test_intervals_of_bins_cover_the_filter():
    config = FilterConfig(num_prompts=200, num_resamples=200, num_bins=5)
    covered = []
    for seed in range(20):
        spectrum = spectra(draw_filter_prompts(TASK, config, seed).to(torch.float64))
        coordinates = noisy(0.5 * spectrum.solution, 0.3, seed)
        table = filter_bins(coordinates, spectrum, "eigenvalue", config, seed)
        covered += ((table["low"] <= 0.5) & (table["high"] >= 0.5)).tolist()
    assert 0.85 <= np.mean(covered) <= 1.0


@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_any_piecewise_linear_filter_is_recovered(heights):
    spectrum = spectra(draw_filter_prompts(TASK, CONFIG, seed=0).to(torch.float64))
    nodes = fit_free_filter(spectrum.solution, spectrum, "eigenvalue", 6).nodes
    true = np.interp(np.log(spectrum.values), nodes, heights)
    found = fit_free_filter(true * spectrum.solution, spectrum, "eigenvalue", 6)
    np.testing.assert_allclose(found.heights, heights, atol=1e-8)


@given(st.floats(0.2, 5.0), st.floats(0.1, 20.0))
def test_a_scaled_family_finds_scale_and_number(scale, penalty):
    spectrum = spectra(draw_filter_prompts(TASK, CONFIG, seed=0).to(torch.float64))
    coordinates = scale * planted(spectrum, "ridge", penalty)
    fit = fit_family(FAMILIES["scaled_ridge"], coordinates, spectrum, np.ones_like(coordinates))
    assert fit.scales[fit.best] == pytest.approx(scale, rel=0.02)
    assert fit.number[0] == pytest.approx(penalty, rel=0.05)


def test_the_cutoff_of_ridge_is_its_penalty(spectrum):
    found = cutoffs(FAMILIES["ridge"], np.array([[0.1], [1.0], [30.0]]), spectrum)
    np.testing.assert_allclose(found, [0.1, 1.0, 30.0], rtol=0.07)  # a grid of 40 values a decade


def test_a_curve_is_the_formula():
    values = np.array([0.1, 1.0, 4.0])
    curve = member_curve(FAMILIES["newton"], np.array([[2.0]]), values, norm=5.0)
    np.testing.assert_allclose(curve[0], 1 - (1 - (values / 5) ** 2) ** 4)


def test_scores_are_of_prompts_that_fitted_nothing(prompts, spectrum):
    coordinates = noisy(planted(spectrum, "ridge", 1.0), 0.1)
    spoilt = np.where(prompts.fitting[:, None], coordinates, 0.0)  # the scoring prompts answer 0
    scores = fit_families(spoilt + 1e-6, spectrum, prompts.fitting, CONFIG, 0).scores
    assert (scores.set_index("family").loc["ridge", "missed"]) > 100


def test_an_average_family_scores_one_against_the_best_filter(prompts, spectrum):
    coordinates = noisy(planted(spectrum, "ridge", 1.0), 0.3)
    scores = fit_families(coordinates, spectrum, prompts.fitting, CONFIG, 0).scores
    misfit = scores.set_index("family")["misfit"]
    assert misfit["ridge"] == pytest.approx(1.0, abs=0.05)
    assert misfit["least_squares"] > 1.2
    assert (scores["ratio"] >= 1).all()


def test_planted_families_are_found_until_noise_hides_them(prompts, spectrum):
    coordinates = noisy(planted(spectrum, "ridge", 2.0), 0.1)
    config = CONFIG.model_copy(update={"noise_factors": (0.1, 300.0)})
    power = filter_power(coordinates, spectrum, prompts.fitting, config, seed=0)
    own = power[power["planted"] == power["family"]].set_index(["noise_factor", "planted"])
    curved = ["scaled_ridge", "scaled_gradient_flow", "scaled_newton"]
    assert (own.loc[0.1].loc[curved, "nearest"] == 1).all()
    assert own.loc[300.0].loc[curved, "nearest"].mean() < 1
    loud = power[(power["noise_factor"] == 300) & power["family"].isin(curved)]
    assert loud["ratio"].between(0.9, 1.1).all()
    assert power.groupby(["planted", "noise_factor"])["nearest"].sum().round(9).eq(1).all()


def test_the_weights_of_a_predictor_are_its_own(prompts):
    np.testing.assert_allclose(
        learner_weights(Ridge(0.5), prompts), weights_of(Ridge(0.5), prompts), atol=1e-9
    )


@pytest.mark.slow
def test_equal_seeds_give_equal_tables():
    first, second = (learner_filter(Ridge(0.5), TASK, CONFIG, seed=1) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.equals(other)


def test_bad_settings_are_named():
    with pytest.raises(ValidationError, match="unknown \\['lasso'\\]; allowed: ridge"):
        FilterConfig(families=("ridge", "lasso"))
    with pytest.raises(ValidationError, match="conditions"):
        FilterConfig(conditions=(0.5,))
    with pytest.raises(ValueError, match="context_length=12 is not allowed"):
        draw_filter_prompts(TASK, FilterConfig(context_length=12), seed=0)
    with pytest.raises(ValueError, match="num_queries=3"):
        learner_filter(Ridge(1.0), TASK, FilterConfig(num_queries=3), seed=0)
