import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from incontext_linear.comparison.divergence import (
    curve,
    implicit_weight_difference,
    implicit_weights,
    predict_queries,
    squared_prediction_difference,
)
from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.predictors import NearestNeighbors, OrdinaryLeastSquares, Ridge
from incontext_linear.tasks import draw_prompts

PROMPTS = draw_prompts(TaskConfig(dim=3, num_examples=8, noise_std=0.3), 20, seed=0).to(
    torch.float64
)
QUERIES = torch.randn(20, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_spd_is_symmetric_and_zero_only_between_equals():
    first, second = Ridge(0.1)(PROMPTS.xs, PROMPTS.ys), Ridge(0.2)(PROMPTS.xs, PROMPTS.ys)
    spd = squared_prediction_difference(first, second)
    assert torch.equal(spd, squared_prediction_difference(second, first))
    assert (squared_prediction_difference(first, first) == 0).all()
    assert (spd[:, 1:] > 0).all()


def test_implicit_weights_of_a_linear_predictor_are_its_own_and_r_squared_is_one():
    estimate = implicit_weights(Ridge(0.1), PROMPTS.xs, PROMPTS.ys, QUERIES)
    assert torch.allclose(estimate.weights, Ridge(0.1).weights(PROMPTS.xs, PROMPTS.ys), atol=1e-9)
    assert torch.allclose(
        estimate.r_squared[:, 1:], torch.ones(20, 7, dtype=torch.float64), atol=1e-9
    )
    assert estimate.r_squared[:, 0].isnan().all()


def test_implicit_weights_agree_with_scikit_learn_for_a_nonlinear_predictor():
    predictor = NearestNeighbors(3, "uniform")
    estimate = implicit_weights(predictor, PROMPTS.xs, PROMPTS.ys, QUERIES, prompts_at_once=7)
    answers = predict_queries(predictor, PROMPTS.xs, PROMPTS.ys, QUERIES)
    for b in range(0, 20, 5):
        for k in (3, 7):
            reference = LinearRegression(fit_intercept=False).fit(
                QUERIES[b].numpy(), answers[b, k].numpy()
            )
            assert np.allclose(estimate.weights[b, k], reference.coef_)
    assert (estimate.r_squared[:, 4:] < 0.999).all()


def test_too_few_queries_are_refused_with_the_allowed_number():
    with pytest.raises(ValueError, match=r"num_queries=3 .* dim=3; allowed: more than 3"):
        implicit_weights(Ridge(0.1), PROMPTS.xs, PROMPTS.ys, QUERIES[:, :3])


def test_queries_through_the_plain_interface_equal_the_fast_path():
    ols = OrdinaryLeastSquares()
    plain = predict_queries(lambda xs, ys: ols(xs, ys), PROMPTS.xs, PROMPTS.ys, QUERIES)
    assert torch.allclose(plain, ols.predict_queries(PROMPTS.xs, PROMPTS.ys, QUERIES), atol=1e-9)


def test_ilwd_is_the_squared_distance_of_weights():
    first, second = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    assert torch.equal(implicit_weight_difference(first, second), torch.full((2, 3), 4.0).double())


def test_a_curve_has_one_row_a_prefix():
    table = curve(torch.ones(5, 4), {"predictor": "ols"}, BootstrapConfig(num_resamples=10), 0)
    assert list(table.columns[:5]) == ["predictor", "examples_seen", "mean", "low", "high"]
    assert table["examples_seen"].tolist() == [0, 1, 2, 3]
