"""The protocol of a learner: what is missing is named, and layers are walked in one place."""

import jaxtyping
import pytest
import torch
from torch import nn

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.base import (
    ContinuableLearner,
    InContextLearner,
    LayeredLearner,
    check_causality,
    check_learner,
    predict_from,
    residual_streams,
)
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import draw_prompts, generator


class PaperTransformer(Transformer):
    def prediction_tokens(self, num_tokens):
        return slice(0, None, 2)


class OnlyForward(nn.Module):
    dim, num_examples = 3, None

    def forward(self, xs, ys):
        return torch.zeros_like(ys)


class SeesItsLabel(nn.Module):
    def forward(self, xs, ys):
        return ys.cumsum(1)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(num_layers=3, num_heads=2, width=16)
    return PaperTransformer(3, 6, config).initialize(generator(0, "weights")).double()


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(TaskConfig(dim=3, num_examples=6), 4, seed=0).to(torch.float64)


@pytest.fixture
def as_users_run_it(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_residual_streams_are_the_transformers_hidden_states(model, prompts):
    layers, streams = zip(*residual_streams(model, prompts.xs, prompts.ys), strict=True)
    assert layers == (0, 1, 2, 3)
    assert torch.equal(torch.stack(streams), model.hidden_states(prompts.xs, prompts.ys))


def test_residual_streams_compute_no_layer_before_it_is_asked_for(model, prompts):
    ran = []
    hooks = [block.register_forward_hook(lambda *_: ran.append(1)) for block in model.blocks]
    streams = residual_streams(model, prompts.xs, prompts.ys)
    next(streams), next(streams)
    assert len(ran) == 1
    for hook in hooks:
        hook.remove()


def test_going_on_from_any_layer_gives_the_predictions(model, prompts):
    for layer, hidden in residual_streams(model, prompts.xs, prompts.ys):
        assert torch.equal(predict_from(model, hidden, layer), model(prompts.xs, prompts.ys))


def test_going_on_from_a_changed_state_changes_later_predictions_only(model, prompts):
    hidden = dict(residual_streams(model, prompts.xs, prompts.ys))[1].clone()
    hidden[:, 5] += torch.randn(4, 16, dtype=torch.float64, generator=generator(2, "change"))
    before, after = model(prompts.xs, prompts.ys), predict_from(model, hidden, 1)
    assert torch.equal(before[:, :3], after[:, :3])  # token 5 is y₃: read from prefix 3 on
    assert not torch.isclose(before[:, 3:], after[:, 3:]).any()


def test_a_layer_that_is_not_there_is_refused(model, prompts):
    hidden = model.embed(prompts.xs, prompts.ys)
    with pytest.raises(ValueError, match=r"layer=4 is not there; allowed: 0 to 3"):
        predict_from(model, hidden, 4)


def test_the_protocols_are_met_by_members_alone(model):
    assert isinstance(model, ContinuableLearner)
    assert isinstance(OnlyForward(), InContextLearner)
    assert not isinstance(OnlyForward(), LayeredLearner)


def test_what_a_network_lacks_is_named_with_what_it_can_be_used_for():
    network = OnlyForward()
    check_learner(network, "comparison")
    with pytest.raises(ValueError, match="OnlyForward cannot be used for interventions") as error:
        check_learner(network, "interventions")
    message = str(error.value)
    for member in (
        "embed(xs",
        "blocks, a sequence",
        "prediction_tokens(num_tokens)",
        "read(hidden",
    ):
        assert f"no {member}" in message
    assert message.endswith("it can be used for: comparison, identification")
    assert "\n" not in message


def test_walking_the_layers_of_a_network_without_any_says_so(as_users_run_it, prompts):
    with pytest.raises(ValueError, match=r"cannot be used for probing: it has no embed\(xs"):
        next(residual_streams(OnlyForward(), prompts.xs, prompts.ys))


def test_an_unknown_purpose_is_refused(model):
    with pytest.raises(ValueError, match=r"purpose='cooking' is not known; allowed: 'comparison'"):
        check_learner(model, "cooking")


def test_a_network_that_sees_its_label_is_found_out(model, prompts):
    check_causality(model, prompts.xs, prompts.ys)
    with pytest.raises(
        ValueError, match=r"SeesItsLabel sees what it must predict: predictions up to k=0"
    ):
        check_causality(SeesItsLabel(), prompts.xs, prompts.ys)


def test_predictions_of_a_wrong_shape_are_found_out(prompts):
    with pytest.raises(
        ValueError, match=r"shape \(4, 6, 1\) for 4 prompts of 6 examples; allowed: \(4, 6\)"
    ):
        check_causality(lambda xs, ys: ys.unsqueeze(-1), prompts.xs, prompts.ys)
