from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from incontext_linear.comparison.divergence import predict_queries
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.attention_maps import average_attention
from incontext_linear.learner.base import predict_from, residual_streams
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Transformer, tokenize
from incontext_linear.tasks import draw_prompts, generator

TASK = TaskConfig(dim=3, num_examples=6)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(num_layers=2, num_heads=2, width=16)
    # Weights far from their small initial size, so that attention is not close to uniform.
    model = Transformer(3, 6, config).initialize(generator(0, "weights")).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=generator(1, "noise")).double()
            )
    return model


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(TASK, 4, seed=0).to(torch.float64)


def test_tokens_alternate_as_in_the_paper():
    xs = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    ys = torch.tensor([[5.0, 6.0]])
    assert tokenize(xs, ys).tolist() == [[[0, 1, 2], [5, 0, 0], [0, 3, 4]]]


@given(st.integers(0, 5))
def test_a_prediction_sees_only_the_examples_before_it(model, prompts, k):
    other = draw_prompts(TASK, 4, seed=1).to(torch.float64)
    xs, ys = prompts.xs.clone(), prompts.ys.clone()
    xs[:, k + 1 :], ys[:, k:] = other.xs[:, k + 1 :], other.ys[:, k:]
    assert torch.equal(model(xs, ys)[:, : k + 1], model(prompts.xs, prompts.ys)[:, : k + 1])


def test_a_shorter_prompt_gives_the_same_predictions(model, prompts):
    whole = model(prompts.xs, prompts.ys)
    short = model(prompts.xs[:, :4], prompts.ys[:, :4])
    assert torch.allclose(short, whole[:, :4], atol=1e-12)


def test_hidden_states_lead_to_the_predictions(model, prompts):
    states = model.hidden_states(prompts.xs, prompts.ys)
    assert states.shape == (3, 4, 11, 16)
    assert torch.equal(model.predict(states[-1]), model(prompts.xs, prompts.ys))


def test_residual_streams_are_the_hidden_states_and_lead_on_to_the_predictions(model, prompts):
    states = model.hidden_states(prompts.xs, prompts.ys)
    streams = list(residual_streams(model, prompts.xs, prompts.ys))
    assert [layer for layer, _ in streams] == [0, 1, 2]
    for layer, hidden in streams:
        assert torch.equal(hidden, states[layer])
        found = predict_from(model, hidden, layer)
        torch.testing.assert_close(found, model(prompts.xs, prompts.ys))


def test_measuring_elsewhere_leaves_a_learner_where_it_is(model):
    assert on_device(model, "cpu") is model
    elsewhere = on_device(model, "meta")
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_average_attention_is_the_mean_over_prompts(model, prompts):
    learner = Learner(model, TASK)
    found = average_attention(learner, prompts._asdict(), "cpu")["attention"]
    expected = model.attention_weights(prompts.xs, prompts.ys).mean(1)
    torch.testing.assert_close(found, expected.detach())


def test_attention_weights_are_causal_and_reproduce_the_attention_output(model, prompts):
    weights = model.attention_weights(prompts.xs, prompts.ys)
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights.triu(1) == 0).all()
    block = model.blocks[0]
    hidden = block.attention_norm(model.embed(prompts.xs, prompts.ys))
    value = block.attention.heads(hidden)[2].transpose(1, 2)
    mixed = (weights[0] @ value).transpose(1, 2).flatten(-2)
    assert torch.allclose(block.attention.project_out(mixed), block.attention(hidden))


def test_queries_in_one_pass_equal_queries_asked_one_by_one(model, prompts):
    queries = torch.randn(4, 7, 3, dtype=torch.float64, generator=generator(2, "queries"))
    one_pass = model.predict_queries(prompts.xs, prompts.ys, queries)

    def through_the_interface(xs, ys):
        return model(xs, ys)

    asked = predict_queries(through_the_interface, prompts.xs, prompts.ys, queries)
    assert torch.allclose(one_pass, asked, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "rotary", "none"])
def test_the_last_token_alone_is_what_the_whole_layer_gives_it(
    positions: Literal["learned", "rotary", "none"],
):
    config = ModelConfig(num_layers=1, num_heads=2, width=8, positions=positions)
    block = Transformer(2, 5, config).initialize(generator(0, "test")).double().blocks[0]
    hidden = torch.randn(3, 9, 8, generator=generator(1, "test")).double()
    torch.testing.assert_close(block.at_last(hidden), block(hidden)[:, -1])


def test_a_prompt_that_does_not_fit_is_refused_with_both_sizes(model):
    with pytest.raises(
        ValueError, match=r"7 examples of dim 3; this learner takes dim 3 and at most 6"
    ):
        model(torch.zeros(1, 7, 3).double(), torch.zeros(1, 7).double())


def test_the_papers_learner_has_the_papers_size():
    with torch.device("meta"):
        model = Transformer(8, 40, ModelConfig())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(50.5e6, rel=0.002)


def test_the_same_generator_gives_the_same_initial_weights():
    first, second = (
        Transformer(3, 6, ModelConfig(num_layers=1, num_heads=1, width=8)).initialize(
            generator(5, "weights")
        )
        for _ in range(2)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
