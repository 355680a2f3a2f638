"""Linear attention: weights set by hand give gradient descent, and no prefix sees ahead."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from incontext_linear.config import TaskConfig
from incontext_linear.learner.base import check_causality
from incontext_linear.learner.linear_attention import (
    LinearAttention,
    LinearAttentionConfig,
    learned_step,
)
from incontext_linear.predictors import Averaging, GradientDescent
from incontext_linear.tasks import draw_prompts, generator

IDENTITY = torch.eye(3, dtype=torch.float64)
FORMS = {
    "one layer": {},
    "three layers, three heads": {"num_layers": 3, "num_heads": 3},
    "causal": {"num_layers": 3, "num_heads": 2, "context": "causal"},
    "not normalised": {"num_layers": 2, "normalization": "none"},
    "wide with MLPs": {"num_layers": 2, "width": 7, "mlp_width": 11},
    "wide with MLPs, causal": {"num_layers": 2, "width": 7, "mlp_width": 11, "context": "causal"},
    "preconditioned": {"num_layers": 3, "matrices": "preconditioned"},
    "GD++": {"num_layers": 3, "matrices": "gd_plus_plus"},
}


def draw(num_prompts=4, dim=3, num_examples=6, seed=0):
    task = TaskConfig(dim=dim, num_examples=num_examples)
    return draw_prompts(task, num_prompts, seed).to(torch.float64)


def build(dim=3, **form):
    """A learner with weights of ordinary size, in float64."""
    model = (
        LinearAttention(dim, LinearAttentionConfig(**form))
        .initialize(generator(0, "weights"))
        .double()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=generator(1, "noise")).double()
            )
    return model


def set_steps(model, preconditioner, input_change=None):
    """Γ of every layer, and B where there is one."""
    with torch.no_grad():
        for block in model.blocks:
            block.matrices.preconditioner.copy_(preconditioner)
            if input_change is not None:
                block.matrices.input_change.copy_(input_change)
    return model


@pytest.mark.parametrize("form", [{}, {"num_heads": 3}, {"matrices": "preconditioned"}])
@pytest.mark.parametrize("normalization", ["examples", "none"])
def test_what_is_odd_in_y_is_the_learned_step(form, normalization):
    xs, ys, _ = draw(num_prompts=20)
    model = build(normalization=normalization, **form)
    with torch.no_grad():
        odd = (model(xs, ys) - model(xs, -ys)) / 2
    for k in range(6):
        moment = torch.einsum("bkd,bk->bd", xs[:, :k], ys[:, :k])
        if normalization == "examples":
            moment = moment / max(k, 1)
        expected = torch.einsum("bd,de,be->b", xs[:, k], learned_step(model), moment)
        torch.testing.assert_close(odd[:, k], expected)


def test_only_one_plain_layer_has_a_learned_step():
    with pytest.raises(ValueError, match="num_layers=2"):
        learned_step(build(num_layers=2))


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_weights_set_by_hand_give_gradient_descent_at_every_prefix(num_steps):
    prompts = draw(num_examples=9)
    model = build(num_layers=num_steps, matrices="preconditioned", normalization="none")
    set_steps(model, 2 * 0.03 * IDENTITY)
    expected = GradientDescent(step_size=0.03, num_steps=num_steps)(prompts.xs, prompts.ys)
    assert torch.allclose(model(prompts.xs, prompts.ys), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_full_matrices_can_be_set_to_gradient_descent(num_steps):
    prompts = draw(num_examples=9)
    model = build(num_layers=num_steps, num_heads=2, normalization="none")
    with torch.no_grad():
        for block in model.blocks:
            block.matrices.query_key.zero_()
            block.matrices.value.zero_()
            for head in range(2):  # each head takes half of the step
                block.matrices.query_key[head, 1:, 1:] = 0.03 * IDENTITY
                block.matrices.value[head, 0, 0] = -1.0
    expected = GradientDescent(step_size=0.03, num_steps=num_steps)(prompts.xs, prompts.ys)
    assert torch.allclose(model(prompts.xs, prompts.ys), expected, rtol=0, atol=1e-10)


def test_one_normalised_layer_with_the_identity_is_averaging():
    prompts = draw(num_examples=9)
    model = set_steps(build(matrices="preconditioned"), IDENTITY)
    assert torch.allclose(
        model(prompts.xs, prompts.ys), Averaging()(prompts.xs, prompts.ys), atol=1e-10
    )


def test_preconditioned_steps_and_changed_inputs_agree_with_numpy():
    prompts, rng = draw(num_examples=7), np.random.default_rng(0)
    gamma, change = rng.normal(size=(2, 3, 3)) * 0.2
    model = build(num_layers=3, matrices="gd_plus_plus")
    set_steps(model, torch.from_numpy(gamma), torch.from_numpy(change))
    predictions = model(prompts.xs, prompts.ys).detach().numpy()
    for prompt in range(4):
        for k in range(7):
            x, y = prompts.xs[prompt, :k].numpy(), prompts.ys[prompt, :k].numpy()
            query, answer = prompts.xs[prompt, k].numpy(), 0.0
            for _ in range(3):
                step, gram = gamma @ x.T @ y / max(k, 1), x.T @ x / max(k, 1)
                map_inputs = np.eye(3) - change @ gram @ gamma.T
                answer, y = answer + step @ query, y - x @ step
                query, x = map_inputs @ query, x @ map_inputs.T
            assert predictions[prompt, k] == pytest.approx(answer, abs=1e-10)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_prediction_sees_only_the_examples_before_it(form):
    model, prompts, other = build(**form), draw(), draw(seed=1)
    before = model(prompts.xs, prompts.ys)
    for k in range(5):
        xs, ys = prompts.xs.clone(), prompts.ys.clone()
        xs[:, k + 1 :], ys[:, k:] = other.xs[:, k + 1 :], other.ys[:, k:]
        after = model(xs, ys)
        assert torch.allclose(after[:, : k + 1], before[:, : k + 1], rtol=0, atol=1e-12)
        assert not torch.isclose(after[:, k + 1 :], before[:, k + 1 :], atol=1e-9).any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_prefixes_in_one_pass_equal_prefixes_one_by_one(form):
    model, prompts = build(**form), draw()
    whole = model(prompts.xs, prompts.ys)
    for k in range(6):
        alone = model(prompts.xs[:, : k + 1], prompts.ys[:, : k + 1])
        assert torch.allclose(alone[:, k], whole[:, k], rtol=0, atol=1e-12)
    check_causality(model, prompts.xs, prompts.ys)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_order_of_the_examples_matters_only_to_a_causal_context(form):
    model, prompts = build(**form), draw()
    order = torch.tensor([3, 1, 4, 0, 2, 5])
    before, after = model(prompts.xs, prompts.ys), model(prompts.xs[:, order], prompts.ys[:, order])
    same = torch.allclose(before[:, -1], after[:, -1], atol=1e-10)
    assert same == (form.get("context") != "causal")


def test_one_layer_is_the_same_in_both_contexts():
    prompts = draw()
    prefix, causal = (
        build(context=context)(prompts.xs, prompts.ys) for context in ("prefix", "causal")
    )
    assert torch.allclose(prefix, causal, atol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_last_label_and_the_first_prefix_do_not_matter(form):
    model, prompts = build(**form), draw()
    prompts.ys[:, -1] = float("nan")
    predictions = model(prompts.xs, prompts.ys)
    assert predictions.shape == (4, 6)
    assert predictions.isfinite().all()
    if "mlp_width" not in form:
        assert (predictions[:, 0] == 0).all()


def test_the_generator_decides_the_initial_weights():
    first, second, other = (
        LinearAttention(3, LinearAttentionConfig(num_layers=2, width=5)).initialize(
            generator(seed, "weights")
        )
        for seed in (5, 5, 6)
    )
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_gradients_reach_every_parameter():
    model, prompts = build(num_layers=2, num_heads=2, width=6, mlp_width=8), draw()
    (model(prompts.xs, prompts.ys) - prompts.ys).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValidationError, match=r"num_heads=2, width=None; allowed: num_heads=1"):
        LinearAttentionConfig(matrices="preconditioned", num_heads=2)
    with pytest.raises(
        ValueError, match=r"6 examples of dim 3; this learner takes dim 2 and any number of"
    ):
        build(dim=2)(*draw()[:2])
