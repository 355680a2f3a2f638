"""What all architectures share, and what each one is: checked against plain loops."""

from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from incontext_linear.config import CustomConfig, LearnerConfig, ModelConfig, TaskConfig
from incontext_linear.learner.base import (
    ContinuableLearner,
    check_causality,
    predict_from,
    residual_streams,
)
from incontext_linear.learner.delta import DeltaConfig, delta_rule
from incontext_linear.learner.joint import JointConfig
from incontext_linear.learner.looped import LoopedConfig
from incontext_linear.learner.recurrent import RecurrentConfig
from incontext_linear.learner.registry import LEARNERS, build_learner, draw_initial
from incontext_linear.learner.tokens import joint_tokens, visible_tokens
from incontext_linear.learner.transformer import Transformer, rotate
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
SMALL |= {
    "transformer, rotary": {"positions": "rotary", **SMALL["transformer"]},
    "transformer, no positions": {"positions": "none", **SMALL["transformer"]},
    "transformer, no norm": {"norm": "none", **SMALL["transformer"]},
    "transformer, no MLP": {**SMALL["transformer"], "mlp_width": 0},
    "joint_transformer, rotary": {"positions": "rotary", **SMALL["joint_transformer"]},
}
NEW = [name for name in SMALL if name != "transformer"]


def config_of(name, **changes):
    return LearnerConfig.model_validate({"type": name.split(",")[0], **SMALL[name], **changes})


def build(name, **changes) -> Any:
    """A small learner with weights of ordinary size, in float64."""
    config = config_of(name, **changes)
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
    assert {name.split(",")[0] for name in SMALL} == LEARNERS.keys()


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
    config = config_of(name)
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
        assert parameter.grad is not None
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
    model: Any = build_learner(3, 6, config_of("lstm"))
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


class Holder(BaseModel):
    model: LearnerConfig


def test_a_config_is_chosen_by_its_type_and_is_a_transformers_without_one():
    assert isinstance(Holder(model={"width": 64}).model, ModelConfig)
    assert isinstance(Holder(model=LoopedConfig(num_loops=2)).model, LoopedConfig)
    assert isinstance(LearnerConfig.model_validate({"type": "lstm", "width": 4}), RecurrentConfig)
    with pytest.raises(ValidationError, match="num_loops"):
        Holder(model={"type": "gru", "num_loops": 2})
    read = Holder.model_validate_json('{"model": {"type": "delta", "decay": "none"}}').model
    assert isinstance(read, DeltaConfig)
    assert read.decay == "none"
    own = LearnerConfig.model_validate({"type": "my.Network", "depth": 3})
    assert isinstance(own, CustomConfig)
    assert own.arguments == {"depth": 3}


def test_sizes_that_an_environment_gives_for_its_transformer_do_not_disturb_other_types():
    sizes = {"num_layers": 4, "num_heads": 4, "width": 64, "mlp_width": None}
    assert LearnerConfig.model_validate({"type": "gru", **sizes}) == RecurrentConfig(
        num_layers=4, width=64
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "mamba"}, r"type='mamba' is not known; allowed: 'transformer', .*'lstm', or the"),
        ({"type": "gru", "depth": 2}, r"depth\n  Extra inputs are not permitted"),
        ({"type": "delta", "width": 0}, r"width\n  Input should be greater than 0"),
        ({"type": "delta", "width": 6}, r"num_heads=4 does not divide width=6; allowed: a divisor"),
        ({"type": "looped", "num_heads": 3}, r"num_heads=3 does not divide width=128"),
        ({"positions": "rotary", "width": 6, "num_heads": 2}, r"gives a head 3; allowed: an even"),
    ],
)
def test_a_bad_entry_is_refused(entry, message):
    with pytest.raises(ValidationError, match=message):
        LearnerConfig.model_validate(entry)


def test_a_config_builds_its_own_class_and_the_sizes_name_it():
    assert isinstance(build_learner(3, 6, ModelConfig(width=8)), Transformer)
    assert type(build_learner(3, 6, JointConfig(width=8))).__name__ == "JointTransformer"
    plain = ModelConfig(num_layers=1, num_heads=2, width=8)
    assert plain.sizes == "num_layers=1 num_heads=2 width=8 mlp_width=32"
    assert plain.is_plain
    assert not JointConfig(num_layers=1, num_heads=2, width=8).is_plain
    assert "positions=none" in ModelConfig(positions="none").sizes
    assert RecurrentConfig(type="lstm").sizes == "type=lstm num_layers=2 width=128"


def test_fingerprints_made_before_there_were_options_stay():
    """The sizes alone, as they were written then."""
    assert ModelConfig(num_layers=1, num_heads=2, width=8).numerics() == {
        "num_layers": 1, "num_heads": 2, "width": 8, "mlp_width": None
    }  # fmt: skip
    assert ModelConfig(positions="rotary").numerics()["positions"] == "rotary"
    assert JointConfig().numerics()["type"] == "joint_transformer"


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=generator(0, "rotary"))

    def score(first, second):
        turned = rotate(query, torch.tensor([first])), rotate(key, torch.tensor([second]))
        return (turned[0] * turned[1]).sum()

    assert torch.allclose(score(3, 1), score(13, 11))
    assert not torch.allclose(score(3, 1), score(3, 2))
    assert torch.equal(rotate(query, torch.tensor([0])), query)
    # The pair of channels c and c + C/2 is turned as one complex number is.
    pairs = torch.complex(query[..., :4], query[..., 4:])
    angles = 5 * 1e4 ** -(torch.arange(4) / 4).double()
    turned = pairs * torch.polar(torch.ones(4).double(), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    assert torch.allclose(rotate(query, torch.tensor([5])), expected)


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("transformer")])
def test_queries_asked_together_are_answered_as_one_by_one(name, prompts):
    model = build(name)
    queries = torch.randn(4, 2, 3, dtype=torch.float64, generator=generator(1, "queries"))
    together = model.predict_queries(prompts.xs, prompts.ys, queries)
    for k in range(6):
        for q in range(2):
            xs = torch.cat((prompts.xs[:, :k], queries[:, q : q + 1]), dim=1)
            alone = model(xs, prompts.ys[:, : k + 1])[:, k]
            assert torch.allclose(together[:, k, q], alone, atol=1e-10)


class Plain(nn.Module):
    """A network of someone's own: the running mean of the labels, through a linear map."""

    def __init__(self, dim: int, slope: float = 1.0):
        super().__init__()
        self.map, self.slope = nn.Linear(dim, 1), slope

    def forward(self, xs, ys):
        before = ys.cumsum(1).roll(1, 1) * (torch.arange(ys.shape[1]) > 0)
        return self.slope * before + self.map(xs).squeeze(-1)


def test_a_network_of_ones_own_is_built_from_its_dotted_path():
    path = f"{__name__}.Plain"
    config = LearnerConfig.model_validate({"type": path, "slope": 2.0, "width": 64})
    model: Any = build_learner(3, 6, config)
    assert (type(model).__name__, model.slope) == ("Plain", 2.0)
    draw_initial(model, generator(0, "weights"))
    first = model.map.weight.clone()
    draw_initial(model, generator(0, "weights"))
    assert torch.equal(first, model.map.weight)
    draw_initial(model, generator(1, "weights"))
    assert not torch.equal(first, model.map.weight)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "os.system", "command": "true"}, r"'os\.system' is no learner; allowed: a subc"),
        ({"type": "torch.nn.Nothing"}, r"importing it raised AttributeError"),
        ({"type": f"{__name__}.Plain", "depth": 2}, r"cannot be made with dim, depth: .*; allowed"),
    ],
)
def test_a_dotted_path_that_makes_no_network_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        build_learner(3, 6, LearnerConfig.model_validate(entry))
