"""The closed forms of one gradient step, against least squares on prompts and other optimisers."""

import jaxtyping
import pytest
import torch

from incontext_linear.config import TaskConfig
from incontext_linear.predictors import OptimalStep
from incontext_linear.predictors.optimal_step import (
    TaskMoments,
    optimal_step,
    optimal_step_by_likelihood,
    prefix_scales,
    step_risk,
)
from incontext_linear.predictors.pooled_step import pooled_step_risk, resolvent
from incontext_linear.tasks import draw_prompts
from incontext_linear.training.loss import LikelihoodLoss

DIM, NUM_EXAMPLES, NUM_PROMPTS = 3, 6, 60_000
TASKS = {
    "plain": {},
    "noise": {"noise_std": 1.0},
    "inputs in two groups": {"inputs": "normal*1+1,normal*0.5+-1"},
    "uniform inputs with a mean": {"inputs": "uniform*2+-0.5"},
    "weights in two groups": {"weights": "normal*0.5+1,normal*0.5+-1"},
    "a pool": {"pool_size": 2, "noise_std": 0.5},
}
every = pytest.mark.parametrize("name", TASKS)


def task_of(name):
    return TaskConfig(dim=DIM, num_examples=NUM_EXAMPLES, **TASKS[name])


def features(xs, ys, scales):
    """vec(x m_kᵀ) s_k of every prefix, (B, n, d²): the prediction is linear in Γ."""
    seen = torch.nn.functional.pad((xs * ys.unsqueeze(-1))[:, :-1].cumsum(1), (0, 0, 1, 0))
    return (xs.unsqueeze(-1) * (scales[:, None] * seen).unsqueeze(-2)).flatten(2)


def drawn(name, normalization, num_prompts=NUM_PROMPTS):
    xs, ys, _ = draw_prompts(task_of(name), num_prompts, seed=3).to(torch.float64)
    return features(xs, ys, prefix_scales(NUM_EXAMPLES, normalization)), ys


@pytest.mark.slow
@every
@pytest.mark.parametrize("normalization", ["examples", "none"])
@pytest.mark.parametrize("loss", ["mean", "last"])
def test_no_step_is_better_than_the_closed_form(name, normalization, loss):
    """The normal equations on drawn prompts give the same Γ, within four standard errors."""
    given, ys = drawn(name, normalization)
    if loss == "last":
        given, ys = given[:, -1:], ys[:, -1:]
    gram = torch.einsum("bkf,bkg->fg", given, given)
    best = torch.linalg.solve(gram, torch.einsum("bkf,bk->f", given, ys))
    slopes = (given * (ys - given @ best).unsqueeze(-1)).sum(1)  # one a prompt
    bread = torch.linalg.inv(gram)
    errors = (bread @ slopes.T @ slopes @ bread).diagonal().sqrt()
    step = OptimalStep(task_of(name), loss, normalization).step
    assert ((step.flatten() - best).abs() < 4 * errors).all()
    assert (errors < 0.05 * step.norm()).all()


@pytest.mark.slow
@every
@pytest.mark.parametrize("normalization", ["examples", "none"])
def test_the_risk_of_any_step_is_that_on_drawn_prompts(name, normalization):
    given, ys = drawn(name, normalization)
    scales = prefix_scales(NUM_EXAMPLES, normalization)
    step = 0.1 * torch.randn(
        DIM, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    squared = (given @ step.flatten() - ys).square()
    expected = step_risk(step, TaskMoments.of(task_of(name)), scales)
    error = squared.std(0) / NUM_PROMPTS**0.5
    assert ((squared.mean(0) - expected).abs() < 4 * error).all()


def test_the_last_prefix_of_normal_inputs_has_the_form_of_the_papers():
    """((1 + 1/k) Σ + (tr Σ + σ²)/k I)⁻¹: Zhang et al. (2024), with the noise added."""
    root = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    covariance, identity = root @ root.T, torch.eye(4, dtype=torch.float64)
    moments = TaskMoments.normal(covariance, identity, noise_std=0.7)
    prefixes = torch.zeros(8, dtype=torch.float64)
    prefixes[-1] = 1.0
    step = optimal_step(moments, prefixes, prefix_scales(8, "examples"))
    expected = (1 + 1 / 7) * covariance + (covariance.trace() + 0.49) / 7 * identity
    torch.testing.assert_close(step, expected.inverse())


def test_the_mean_over_prefixes_has_another_optimum_than_the_last_prefix():
    task = TaskConfig(dim=DIM, num_examples=NUM_EXAMPLES)
    mean, last = (OptimalStep(task, loss).step[0, 0].item() for loss in ("mean", "last"))
    assert mean < 0.8 * last


@every
def test_gradient_descent_on_the_closed_risk_ends_at_the_closed_optimum(name):
    moments = TaskMoments.of(task_of(name))
    prefixes = torch.linspace(0.2, 2.0, NUM_EXAMPLES, dtype=torch.float64)
    scales = prefix_scales(NUM_EXAMPLES, "examples")
    found = torch.zeros(DIM, DIM, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (prefixes * step_risk(found, moments, scales)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = optimal_step(moments, prefixes, scales)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_likelihood_has_no_slope_at_its_fixed_point():
    """With running means that are the risks, the trainer's own weights are those of the theory."""
    task, floor = task_of("noise"), 0.01
    moments, scales = TaskMoments.of(task), prefix_scales(NUM_EXAMPLES, "examples")
    step, prefixes = optimal_step_by_likelihood(moments, scales, floor)
    loss = LikelihoodLoss(NUM_EXAMPLES, floor, momentum=0.9)
    loss.means = torch.cat((step_risk(step, moments, scales), moments.labels[None]))
    loss.count += 1
    torch.testing.assert_close(loss.weights(), prefixes)
    found = step.clone().requires_grad_()
    (loss.weights() * step_risk(found, moments, scales)).mean().backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-9
    assert prefixes[-1] > 1.1 * prefixes[0]


def test_the_predictor_is_its_step_on_every_prefix():
    task = task_of("inputs in two groups")
    xs, ys, _ = draw_prompts(task, 20, seed=0).to(torch.float64)
    predictor = OptimalStep(task)
    for k in range(NUM_EXAMPLES):
        moment = torch.einsum("bkd,bk->bd", xs[:, :k], ys[:, :k]) / max(k, 1)
        expected = torch.einsum("bd,de,be->b", xs[:, k], predictor.step, moment)
        torch.testing.assert_close(predictor(xs, ys)[:, k], expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"loss": "first"}, "loss='first'"),
        ({"normalization": 1}, "normalization=1"),
        ({"task": TaskConfig(num_examples=1)}, "num_examples=1"),
    ],
)
def test_what_is_not_allowed_is_named(arguments, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which would refuse it first
    with pytest.raises(ValueError, match=said):
        OptimalStep(**({"task": task_of("plain")} | arguments))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_the_resolvent_is_that_of_large_random_matrices(ratio):
    dim = 1200
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(round(dim / ratio), dim, generator=rng, dtype=torch.float64)
    small = vectors @ vectors.T if len(vectors) < dim else vectors.T @ vectors
    values = torch.linalg.eigvalsh(small / len(vectors))
    values = torch.nn.functional.pad(values, (0, dim - len(values)))
    for shift in (0.2, 3.0):
        mean, square = resolvent(ratio, shift)
        assert (1 / (values + shift)).mean().item() == pytest.approx(mean, rel=5e-3)
        assert (1 / (values + shift).square()).mean().item() == pytest.approx(square, rel=5e-3)


@pytest.mark.parametrize("pool_size", [32, 128, 512])
def test_the_risk_of_a_pool_in_the_limit_is_that_of_a_large_pool(pool_size):
    """At d = 128 against the exact closed form for one drawn pool, in the pool and out of it."""
    dim, num_examples, noise_std = 128, 200, 1.0
    rng = torch.Generator().manual_seed(1)
    pool = torch.randn(pool_size, dim, generator=rng, dtype=torch.float64)
    second, identity = pool.T @ pool / pool_size, torch.eye(dim, dtype=torch.float64)
    k = num_examples - 1
    total = second.trace() + noise_std**2
    step = second @ ((1 + 1 / k) * second + total / k * identity).inverse()

    def risk(weights):
        labels = weights.trace() + noise_std**2
        size = (1 + 1 / k) * weights + labels / k * identity
        return (labels - 2 * (step @ weights).trace() + (step @ size @ step.T).trace()).item()

    prefixes = torch.zeros(num_examples, dtype=torch.float64)
    prefixes[-1] = 1.0
    limit = pooled_step_risk(
        dim, pool_size, noise_std, prefixes, prefix_scales(num_examples, "examples")
    )
    assert limit.pool[-1].item() == pytest.approx(risk(second), rel=0.05)
    assert limit.prior[-1].item() == pytest.approx(risk(identity), rel=0.03)


def test_a_large_pool_has_the_risk_of_the_prior_itself():
    task = TaskConfig(dim=6, num_examples=9, noise_std=0.5)
    prefixes, scales = torch.ones(9, dtype=torch.float64), prefix_scales(9, "examples")
    limit = pooled_step_risk(6, 10**7, 0.5, prefixes, scales)
    moments = TaskMoments.of(task)
    exact = step_risk(optimal_step(moments, prefixes, scales), moments, scales)
    torch.testing.assert_close(limit.prior, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(limit.pool, exact, rtol=1e-5, atol=1e-5)
