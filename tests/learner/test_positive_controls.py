"""Theory and candidates of benchmarks/positive_controls.py: known algorithms are named right."""

import pandas as pd
import pytest
import torch

from benchmarks.positive_controls import (
    Control,
    Distribution,
    best_step,
    controls,
    descend,
    fit_candidates,
    fit_steps,
    load,
    save,
    share,
    summary,
)
from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.learner.linear_attention import LinearAttention, LinearAttentionConfig
from incontext_linear.predictors import GradientDescent, Ridge
from incontext_linear.tasks import generator

SMALL = TaskConfig(dim=3, num_examples=6)
STDS = (2.0, 1.0, 0.5)


def draw(distribution, num_prompts, seed=0):
    return distribution.draw(num_prompts, seed).to(torch.float64)


@pytest.mark.parametrize("normalization", ["examples", "none"])
@pytest.mark.parametrize("stds", [None, STDS])
def test_the_optimal_step_in_closed_form_is_the_best_of_all_steps(normalization, stds):
    distribution = Distribution(SMALL, stds)
    xs, ys, _ = draw(distribution, 50_000)
    scale = torch.arange(6).clamp(min=1)[:, None] if normalization == "examples" else 1
    seen = (xs * ys.unsqueeze(-1))[:, :-1].cumsum(1)
    moment = torch.nn.functional.pad(seen, (0, 0, 1, 0)) / scale
    features = (xs.unsqueeze(-1) * moment.unsqueeze(-2)).flatten(2).flatten(0, 1)
    best = torch.linalg.solve(features.T @ features, features.T @ ys.flatten()).view(3, 3)
    theory = best_step(distribution, normalization == "examples")
    step = ((moment @ (best - theory).T) * xs).sum(-1)
    assert share(step, ys) < 3e-4
    assert share((moment @ theory.T * xs).sum(-1), ys) > 0.1


@pytest.mark.slow
def test_one_layer_of_linear_attention_learns_the_optimal_step():
    task = TaskConfig(dim=2, num_examples=6)
    distribution = Distribution(task, (1.5, 0.5))
    xs, ys, _ = draw(distribution, 4096)
    config = LinearAttentionConfig(context="causal")
    model = LinearAttention(2, config).initialize(generator(0, "weights")).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (model(xs, ys) - ys).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    test = draw(distribution, 2048, seed=1)
    weights = best_step(distribution, normalized=True)
    matrices = LinearAttentionConfig(context="causal", matrices="preconditioned")
    theory = LinearAttention(2, matrices).double()
    theory.blocks[0].matrices.preconditioner.data.copy_(weights)
    with torch.no_grad():
        learned, optimal = model(test.xs, test.ys), theory(test.xs, test.ys)
        assert share(learned - optimal, test.ys) < 2e-3
        assert share(learned - Ridge(1.0)(test.xs, test.ys), test.ys) > 0.05


def test_steps_of_one_size_are_gradient_descent():
    xs, ys, _ = draw(Distribution(SMALL), 8)
    steps = torch.full((4,), 0.06, dtype=torch.float64)
    expected = GradientDescent(step_size=0.03, num_steps=4)(xs, ys)
    assert torch.allclose(descend(xs, ys, steps, normalized=False), expected, atol=1e-12)


@pytest.mark.parametrize("normalization", ["examples", "none"])
def test_gd_plus_plus_in_the_weights_equals_linear_attention_that_changes_its_tokens(normalization):
    xs, ys, _ = draw(Distribution(SMALL), 8)
    sizes, changes = torch.tensor([[0.1, 0.2, 0.15], [0.05, 0.08, 0.3]], dtype=torch.float64)
    config = LinearAttentionConfig(
        num_layers=3, matrices="gd_plus_plus", normalization=normalization
    )
    model = LinearAttention(3, config).double()
    identity = torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        for block, size, change in zip(model.blocks, sizes, changes, strict=True):
            block.matrices.preconditioner.copy_(size * identity)
            block.matrices.input_change.copy_(change / size * identity)
    answer = descend(xs, ys, sizes, changes, normalized=normalization == "examples")
    assert torch.allclose(answer, model(xs, ys), atol=1e-10)


def test_fitted_steps_recover_planted_ones():
    xs, ys, _ = draw(Distribution(SMALL), 512)
    planted = torch.tensor([[0.3, 0.7], [0.2, 0.0]], dtype=torch.float64)
    predictions = descend(xs, ys, planted[0], planted[1])
    fitted = fit_steps(predictions, xs, ys, 2, plus_plus=True)
    assert share(descend(xs, ys, fitted[0], fitted[1]) - predictions, ys) < 1e-8


@pytest.mark.slow
def test_a_planted_algorithm_is_nearest_to_itself():
    control = Control("test", "planted", {}, Distribution(SMALL))
    calibration, scored = draw(control.distribution, 512), draw(control.distribution, 512, seed=1)
    planted = {
        "ridge": Ridge(0.31),
        "step": GradientDescent(step_size=0.02, num_steps=1),
        "gd": GradientDescent(step_size=0.027, num_steps=6),
    }
    for name, predictor in planted.items():
        predictions = predictor(calibration.xs, calibration.ys)
        found = fit_candidates(control, predictions, calibration.xs, calibration.ys)
        target = predictor(scored.xs, scored.ys)
        distances = {
            key: share(candidate(scored.xs, scored.ys) - target, scored.ys)
            for key, (_, candidate) in found.items()
        }
        # One step is also a preconditioned step, and a step of a size for each k.
        names = {name, "preconditioned step", "step c(k)"} if name == "step" else {name}
        assert min(distances, key=distances.get) in names


def test_prompts_are_scaled_as_the_distribution_says():
    task = TaskConfig(dim=2, num_examples=5, noise_std=0.3)
    plain = Distribution(task).draw(64, 0)
    shifted = Distribution(task, shift=(3.0, 0.5)).draw(64, 0)
    assert torch.allclose(shifted.xs, 3 * plain.xs)
    assert torch.allclose(shifted.ws, 0.5 * plain.ws)
    noise = [p.ys - (p.xs @ p.ws.unsqueeze(-1)).squeeze(-1) for p in (plain, shifted)]
    assert torch.allclose(*noise, atol=1e-4)


def test_every_control_names_a_learner_that_exists():
    names = [control.name for control in controls()]
    assert len(names) == len(set(names))
    for control in controls():
        LearnerConfig.model_validate(control.model)


def test_results_of_one_training_replace_older_ones_of_the_same(tmp_path):
    name = controls()[0]
    row = {"experiment": name.experiment, "learner": name.learner, "condition": "training"}
    row |= {"candidate": "ols", "fitted": "", "spd_share": 0.5}
    path = tmp_path / "results.csv"
    for seed, value in ((0, 0.1), (1, 0.2), (0, 0.4)):
        save(pd.DataFrame([row | {"seed": seed, "spd_share": value}]), path)
    assert load(path)["spd_share"].tolist() == [0.4, 0.2]
    assert "| 0.283 | 0.2 | 0.4 | 2 |" in summary(load(path))
