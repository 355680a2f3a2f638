"""What all architectures share, and what each one is: checked against plain loops."""

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.base import (
    ContinuableLearner,
    check_causality,
    predict_from,
    residual_streams,
)
from incontext_linear.learner.delta import delta_rule
from incontext_linear.learner.joint import JointConfig
from incontext_linear.learner.looped import LoopedConfig
from incontext_linear.learner.registry import (
    LEARNERS,
    LearnerConfig,
    TransformerConfig,
    build_learner,
    read_config,
)
from incontext_linear.learner.tokens import joint_tokens, visible_tokens
from incontext_linear.learner.transformer import Transformer
from incontext_linear.predictors import OnePassSGD
from incontext_linear.tasks import draw_prompts, generator

SMALL = {
    "transformer": {"num_layers": 2, "num_heads": 2, "width": 8},
    "joint_transformer": {"num_layers": 2, "num_heads": 2, "width": 8},
    "looped": {"num_layers": 2, "num_loops": 3, "num_heads": 2, "width": 8},
    "linear_attention": {"num_layers": 2},
    "gru": {"num_layers": 2, "width": 8},
    "lstm": {"num_layers": 2, "width": 8},
    "delta": {"num_layers": 2, "num_heads": 2, "width": 8},
}
NEW = [name for name in SMALL if name != "transformer"]


def build(name, **changes):
    """A small learner with weights of ordinary size, in float64."""
    config = read_config({"type": name, **SMALL[name], **changes})
    model = build_learner(3, 6, config).initialize(generator(0, "weights")).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=generator(1, "noise")).double()
            )
    return model


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(TaskConfig(dim=3, num_examples=6), 4, seed=0).to(torch.float64)


def test_every_architecture_is_tested_here():
    assert SMALL.keys() == LEARNERS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_a_prediction_sees_only_the_examples_before_it(name, prompts):
    model = build(name)
    other = draw_prompts(TaskConfig(dim=3, num_examples=6), 4, seed=1).to(torch.float64)
    before = model(prompts.xs, prompts.ys)
    for k in range(5):
        xs, ys = prompts.xs.clone(), prompts.ys.clone()
        xs[:, k + 1 :], ys[:, k:] = other.xs[:, k + 1 :], other.ys[:, k:]
        after = model(xs, ys)
        assert torch.allclose(after[:, : k + 1], before[:, : k + 1], rtol=0, atol=1e-12)
        assert not torch.isclose(after[:, k + 1 :], before[:, k + 1 :], atol=1e-9).any()


@pytest.mark.parametrize("name", SMALL)
def test_the_last_label_is_never_read(name, prompts):
    ys = prompts.ys.clone()
    ys[:, -1] = float("nan")
    model = build(name)
    assert torch.equal(model(prompts.xs, ys), model(prompts.xs, prompts.ys))
    check_causality(model, prompts.xs, prompts.ys)


@pytest.mark.parametrize("name", SMALL)
def test_a_label_is_read_by_the_next_prediction(name, prompts):
    model, ys = build(name), prompts.ys.clone()
    ys[:, 2] += 1
    change = (model(prompts.xs, ys) - model(prompts.xs, prompts.ys)).abs()
    assert (change[:, 3:] > 1e-9).all()
    assert (change[:, :3] == 0).all()


@pytest.mark.parametrize("name", NEW)
def test_residual_streams_lead_to_the_predictions_from_every_layer(name, prompts):
    model = build(name)
    assert isinstance(model, ContinuableLearner)
    expected = model(prompts.xs, prompts.ys)
    streams = list(residual_streams(model, prompts.xs, prompts.ys))
    assert len({stream.shape for _, stream in streams}) == 1
    assert [layer for layer, _ in streams] == list(range(len(model.blocks) + 1))
    for layer, stream in streams:
        assert torch.allclose(predict_from(model, stream, layer), expected, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_the_generator_alone_decides_the_initial_weights(name):
    config = read_config({"type": name, **SMALL[name]})
    first, second = (
        build_learner(3, 6, config).initialize(generator(5, "weights")) for _ in range(2)
    )
    other = build_learner(3, 6, config).initialize(generator(6, "weights"))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_and_stay_finite(name, prompts):
    model = build(name)
    (model(prompts.xs, prompts.ys) - prompts.ys).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", SMALL)
def test_a_prompt_that_does_not_fit_is_refused(name):
    model = build(name)
    with pytest.raises(ValueError, match=r"6 examples of dim 2; this learner takes dim 3 and"):
        model(torch.zeros(1, 6, 2).double(), torch.zeros(1, 6).double())
    too_long = torch.zeros(1, 9, 3).double(), torch.zeros(1, 9).double()
    if model.num_examples is None:
        assert model(*too_long).shape == (1, 9)
    else:
        with pytest.raises(ValueError, match=r"9 examples of dim 3; .* at most 6 examples"):
            model(*too_long)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_a_recurrent_layer_is_its_cell_in_a_loop(name):
    layer = build(name).blocks[0]
    weights = {key.removesuffix("_l0"): value for key, value in layer.cell.state_dict().items()}
    cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[name](8, 8).double()
    cell.load_state_dict(weights)
    hidden = torch.randn(4, 11, 8, dtype=torch.float64, generator=generator(2, "hidden"))
    state, expected = None, []
    for token in hidden.unbind(1):
        state = cell(token, state)
        expected.append(state if name == "gru" else state[0])
    assert torch.allclose(layer(hidden), torch.stack(expected, dim=1), atol=1e-12)


def test_the_forget_gate_of_an_lstm_starts_open():
    model = build_learner(3, 6, read_config({"type": "lstm", **SMALL["lstm"]}))
    bias = model.initialize(generator(0, "weights")).blocks[1].cell.bias_ih_l0
    assert bias.unflatten(0, (4, 8)).sum(1).tolist() == [0, 8, 0, 0]


def test_a_looped_transformer_equals_its_loops_written_out(prompts):
    model = build("looped")
    prompt = model.embed(prompts.xs, prompts.ys)[..., 8:]
    state = torch.zeros_like(prompt)
    for _ in range(3):
        state = state + prompt
        for block in model.loop.stack:
            state = block(state)
    expected = model.read_out(model.final_norm(state[:, ::2])).squeeze(-1)
    assert torch.allclose(model(prompts.xs, prompts.ys), expected, atol=1e-12)


def test_one_loop_equals_the_transformer_of_the_same_weights(prompts):
    looped = build("looped", num_loops=1)
    plain = Transformer(3, 6, ModelConfig(num_layers=2, num_heads=2, width=8)).double()
    weights = {
        name.replace("loop.stack", "blocks"): value for name, value in looped.state_dict().items()
    }
    plain.load_state_dict(weights)
    assert torch.allclose(looped(prompts.xs, prompts.ys), plain(prompts.xs, prompts.ys), atol=1e-12)


def test_a_loop_has_its_weights_once_and_can_be_run_more_often(prompts):
    model = build("looped")
    once = build("looped", num_loops=1)
    assert model.state_dict().keys() == once.state_dict().keys()
    before = model(prompts.xs, prompts.ys)
    model.num_loops = 5
    assert len(list(residual_streams(model, prompts.xs, prompts.ys))) == 6
    assert not torch.allclose(model(prompts.xs, prompts.ys), before)


@pytest.mark.parametrize("decays", [False, True])
def test_the_delta_rule_equals_a_plain_loop_over_tokens(decays):
    rng = generator(3, "delta")
    shape = (2, 3, 9)
    query, key = torch.randn(2, *shape, 4, dtype=torch.float64, generator=rng)
    value = torch.randn(*shape, 5, dtype=torch.float64, generator=rng)
    rate = torch.rand(shape, dtype=torch.float64, generator=rng)
    log_decay = -torch.rand(shape, dtype=torch.float64, generator=rng) * decays
    state, expected = torch.zeros(2, 3, 5, 4, dtype=torch.float64), []
    for t in range(9):
        state = state * log_decay[..., t, None, None].exp()
        missed = value[..., t, :] - (state @ key[..., t, :, None]).squeeze(-1)
        state = state + rate[..., t, None, None] * missed[..., None] * key[..., t, None, :]
        expected.append((state @ query[..., t, :, None]).squeeze(-1))
    actual = delta_rule(query, key, value, rate, log_decay)
    assert torch.allclose(actual, torch.stack(expected, dim=-2), atol=1e-10)


def test_strong_decay_over_many_tokens_stays_finite_in_value_and_gradient():
    keys = torch.randn(1, 200, 4, generator=generator(4, "delta")).requires_grad_()
    log_decay = torch.full((1, 200), -5.0).requires_grad_()
    read = delta_rule(keys, keys, keys, torch.full((1, 200), 0.5), log_decay)
    read.sum().backward()
    assert read.isfinite().all()
    assert keys.grad.isfinite().all()
    assert log_decay.grad.isfinite().all()


def test_the_delta_rule_on_examples_is_one_pass_sgd(prompts):
    tokens = joint_tokens(prompts.xs, prompts.ys)
    labels, inputs = tokens[..., :1], tokens[..., 1:]
    is_example = (torch.arange(11) % 2).to(labels)
    rate = 2 * 0.05 * is_example.expand(4, 11)  # queries write nothing
    read = delta_rule(inputs, inputs, labels, rate, torch.zeros(4, 11, dtype=torch.float64))
    expected = OnePassSGD(0.05)(prompts.xs, prompts.ys)
    assert torch.allclose(read[:, ::2, 0], expected, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": "joint"},
        {"convolution": 1, "tokens": "joint"},
        {"decay": "none"},
        {"mlp_width": 0},
        {"keys": "free"},
    ],
    ids=str,
)
def test_every_form_of_the_recurrence_is_causal(prompts, changes):
    model = build("delta", **changes)
    check_causality(model, prompts.xs, prompts.ys)
    assert not torch.allclose(model(prompts.xs, prompts.ys), build("delta")(prompts.xs, prompts.ys))


def test_joint_tokens_and_what_they_see():
    xs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert joint_tokens(xs, torch.tensor([[5.0, 6.0]])).tolist() == [
        [[0, 1, 2], [5, 1, 2], [0, 3, 4]]
    ]
    assert visible_tokens(5).int().tolist() == [
        [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 1, 1]
    ]  # fmt: skip


def test_a_config_is_chosen_by_its_type_and_is_a_transformers_without_one():
    class Holder(BaseModel):
        model: LearnerConfig

    assert Holder(model={"type": "lstm", "width": 4}).model.type == "lstm"
    assert isinstance(Holder(model={"width": 64}).model, TransformerConfig)
    assert isinstance(Holder(model=LoopedConfig(num_loops=2)).model, LoopedConfig)
    with pytest.raises(ValidationError, match="num_loops"):
        Holder(model={"type": "gru", "num_loops": 2})
    assert (
        Holder.model_validate_json('{"model": {"type": "delta", "decay": "none"}}').model.decay
        == "none"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "mamba"}, r"model\.type='mamba' is not known; allowed: 'transformer', 'joint_tr"),
        (
            {"type": "gru", "depth": 2},
            r"model\.depth: unknown parameter \(given 2\); allowed here: type, num",
        ),
        ({"type": "delta", "width": 0}, r"model\.width: input should be greater than 0; given 0"),
        ({"type": "delta", "width": 6}, r"num_heads=4 does not divide width=6; allowed: a divisor"),
        ({"type": "looped", "num_heads": 3}, r"num_heads=3 does not divide width=128"),
    ],
)
def test_a_bad_entry_is_refused_in_one_line(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        read_config(entry)
    assert "\n" not in str(error.value)


def test_only_a_learners_config_builds_one():
    assert isinstance(build_learner(3, 6, ModelConfig(width=8)), Transformer)
    assert type(build_learner(3, 6, JointConfig(width=8))).__name__ == "JointTransformer"
    with pytest.raises(ValueError, match=r"TaskConfig describes no learner; allowed: DeltaConfig"):
        build_learner(3, 6, TaskConfig())
