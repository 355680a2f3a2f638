"""The posterior mean under clusters of w: against NumPy and SciPy, its limits, and what it
minimises."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from incontext_linear.config import TaskConfig
from incontext_linear.predictors import (
    BayesPosteriorMean,
    DiscreteMMSE,
    OrdinaryLeastSquares,
    Ridge,
)
from incontext_linear.predictors.mixture_bayes import MixturePosteriorMean
from incontext_linear.tasks import draw_prompts, generator

MEANS = torch.tensor([[2.0, 1.0, 0.0], [-1.0, -2.0, 0.5]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.8], dtype=torch.float64)
SHARES = torch.tensor([3.0, 1.0], dtype=torch.float64)
TASK = TaskConfig(dim=3, num_examples=7, noise_std=0.5, weights="normal*0.3+2,normal*0.3+-2")


def draw(num_prompts=5, noise_std=0.5, num_examples=7):
    rng = generator(0, "clusters")
    xs = torch.randn(num_prompts, num_examples, 3, dtype=torch.float64, generator=rng)
    cluster = torch.randint(2, (num_prompts,), generator=rng)
    ws = MEANS[cluster] + STDS[cluster, None] * torch.randn(num_prompts, 3, generator=rng).double()
    ys = (xs @ ws.unsqueeze(-1)).squeeze(-1)
    return xs, ys + noise_std * torch.randn(ys.shape, generator=rng).double(), ws


def reference(x, y, noise_std):
    """One prefix: each cluster's posterior mean by Gaussian conditioning, weighted by its
    evidence."""
    evidence, estimates = [], []
    for mean, std, share in zip(MEANS.numpy(), STDS.numpy(), SHARES.numpy(), strict=True):
        covariance = std**2 * x @ x.T + noise_std**2 * np.eye(len(y))
        evidence.append(np.log(share))
        gain = np.zeros((3, 0))
        if len(y):
            evidence[-1] += multivariate_normal(x @ mean, covariance).logpdf(y)
            gain = std**2 * x.T @ np.linalg.inv(covariance)
        estimates.append(mean + gain @ (y - x @ mean))
    weights = np.exp(np.array(evidence) - max(evidence))
    return weights @ np.array(estimates) / weights.sum()


@pytest.mark.parametrize("noise_std", [0.1, 0.5, 2.0])
def test_weights_agree_with_gaussian_conditioning_at_every_prefix(noise_std):
    xs, ys, _ = draw(noise_std=noise_std)
    weights = MixturePosteriorMean(MEANS, STDS, noise_std, SHARES).weights(xs, ys)
    for prompt in range(5):
        for k in range(7):
            expected = reference(xs[prompt, :k].numpy(), ys[prompt, :k].numpy(), noise_std)
            assert np.allclose(weights[prompt, k].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_without_noise_weights_agree_before_x_determines_w():
    xs, ys, _ = draw(noise_std=0.0)
    weights = MixturePosteriorMean(MEANS, STDS, 0.0, SHARES).weights(xs, ys)
    for prompt in range(5):
        for k in range(3):  # below d the covariance of y is regular without noise, too
            expected = reference(xs[prompt, :k].numpy(), ys[prompt, :k].numpy(), 0.0)
            assert np.allclose(weights[prompt, k].numpy(), expected, rtol=1e-8, atol=1e-8)


def test_without_noise_it_is_the_limit_and_least_squares_from_d_examples_on():
    xs, ys, ws = draw(noise_std=0.0)
    limit = MixturePosteriorMean(MEANS, STDS, 0.0, SHARES).weights(xs, ys)
    near = MixturePosteriorMean(MEANS, STDS, 1e-6, SHARES).weights(xs, ys)
    assert torch.allclose(limit, near, atol=1e-5)
    assert torch.allclose(limit[:, 3:], ws[:, None].expand(-1, 4, -1), atol=1e-8)


def test_without_noise_repeated_examples_add_nothing():
    xs, ys, _ = draw(noise_std=0.0)
    xs[:, 1], ys[:, 1] = xs[:, 0], ys[:, 0]
    weights = MixturePosteriorMean(MEANS, STDS, 0.0, SHARES).weights(xs, ys)
    assert torch.allclose(weights[:, 1], weights[:, 2], atol=1e-10)


@pytest.mark.parametrize("noise_std", [0.0, 0.7])
def test_one_cluster_around_zero_is_ridge(noise_std):
    xs, ys, _ = draw(noise_std=noise_std)
    one = MixturePosteriorMean(torch.zeros(1, 3).double(), torch.tensor([1.5]).double(), noise_std)
    ridge = BayesPosteriorMean(noise_std, 1.5)
    assert torch.allclose(one.weights(xs, ys), ridge.weights(xs, ys), atol=1e-9)


def test_narrow_clusters_are_a_finite_pool():
    xs, ys, _ = draw()
    narrow = MixturePosteriorMean(MEANS, torch.full((2,), 1e-6).double(), 0.5)
    assert torch.allclose(
        narrow.weights(xs, ys), DiscreteMMSE(MEANS, 0.5).weights(xs, ys), atol=1e-6
    )


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
def test_nothing_beats_it_on_its_own_task(noise_std):
    task = TASK.model_copy(update={"noise_std": noise_std})
    prompts = draw_prompts(task, 4096, seed=0).to(torch.float64)
    bayes = MixturePosteriorMean.of_task(task)(prompts.xs, prompts.ys)
    target = (prompts.xs * prompts.ws[:, None]).sum(-1)
    risk = (bayes - target).square().mean(0)
    for rival in (OrdinaryLeastSquares(), Ridge(0.03), Ridge(0.3), Ridge(3.0)):
        rivals = (rival(prompts.xs, prompts.ys) - target).square().mean(0)
        determined = 3 if noise_std == 0 else 7
        assert (risk[1:determined] < rivals[1:determined]).all()


def test_it_is_not_linear_in_the_labels():
    xs, ys, _ = draw()
    bayes = MixturePosteriorMean(MEANS, STDS, 0.5)
    assert not torch.allclose(bayes(xs, 2 * ys)[:, 1:], 2 * bayes(xs, ys)[:, 1:], rtol=0.05)


def test_the_last_label_is_never_read_and_float32_stays_float32():
    xs, ys, _ = draw()
    bayes = MixturePosteriorMean(MEANS, STDS, 0.5)
    expected, ys[:, -1] = bayes(xs, ys), float("nan")
    assert torch.equal(bayes(xs, ys), expected)
    assert bayes(xs.float(), ys.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": "normal,uniform"},
            r"component uniform\*1\+0; allowed here: normal components",
        ),
        ({"weights": "normal*0+1"}, r"component normal\*0\+1; allowed here"),
        ({"pool_size": 3}, r"task\.pool_size=3: .* DiscreteMMSE's; allowed here: None"),
    ],
)
def test_a_task_with_another_prior_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MixturePosteriorMean.of_task(TaskConfig(dim=3, num_examples=4, **changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MEANS, -STDS, 0.5), r"stds=.* is not allowed: 2 finite numbers > 0 are meant"),
        ((MEANS, STDS[:1], 0.5), r"stds=.* is not allowed: 2 finite numbers > 0 are meant"),
        (
            (MEANS, STDS, 0.5, 0 * SHARES),
            r"shares=.* is not allowed: 2 finite numbers > 0 are meant",
        ),
        ((MEANS, STDS, -1.0), r"noise_std=-1.0 is not allowed"),
        ((MEANS / 0, STDS, 0.5), r"means \(\(2, 3\)\) must be a tensor \(C, d\) of finite numbers"),
    ],
)
def test_parameters_that_are_not_allowed_are_refused(as_users_run_it, arguments, message):
    with pytest.raises(ValueError, match=message):
        MixturePosteriorMean(*arguments)
    with pytest.raises(ValueError, match=r"xs has dim 2; this prior's means have dim 3"):
        MixturePosteriorMean(MEANS, STDS, 0.5)(torch.zeros(1, 2, 2), torch.zeros(1, 2))
