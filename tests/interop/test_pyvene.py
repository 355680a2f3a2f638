"""pyvene's interchange of the context gives the numbers of ours."""

import pytest
import torch
from torch import nn

pytest.importorskip("pyvene", reason="needs pyvene: make interop")

from incontext_linear.config import BootstrapConfig, LearnerConfig, TaskConfig
from incontext_linear.interop.interchange import interchange_context
from incontext_linear.learner import Learner
from incontext_linear.learner.registry import build_untrained
from incontext_linear.probing.interventions import (
    NO_TARGET,
    Movements,
    build_interventions,
    intervene,
    movement_table,
    pair_prompts,
)
from incontext_linear.tasks import Prompts, draw_prompts, generator

METHOD = "interchange_context"
TASK = TaskConfig(dim=2, num_examples=5)


def ours(model, pairs, others: Prompts) -> Movements:
    methods, layers = build_interventions([METHOD]), range(len(model.blocks) + 1)
    num_examples = pairs.recipient[0].shape[1]
    shown = others.xs[:, :num_examples], others.ys[:, :num_examples]
    return intervene(model, pairs, shown, methods, {}, layers, generator(0, "none is drawn"))


def with_pyvene(model, pairs, moved: Movements) -> Movements:
    edited = {name: interchange_context(model, pairs, name[2]) for name in moved.edited}
    return moved._replace(edited=edited)


@pytest.mark.parametrize("examples_seen", [3, 6, 11])
def test_the_moved_fractions_are_ours_to_all_digits(small: Learner, examples_seen: int):
    prompts = draw_prompts(small.task, 512, seed=5, stream="interop")
    pairs = pair_prompts(prompts.xs, prompts.ys, examples_seen)
    moved = ours(small.model, pairs, draw_prompts(small.task, 4, seed=6))
    again = with_pyvene(small.model, pairs, moved)
    for name, predictions in moved.edited.items():
        assert torch.equal(predictions, again.edited[name]), name
    few = BootstrapConfig(num_resamples=20)
    tables = [movement_table(each, few, seed=0).set_index("layer") for each in (moved, again)]
    assert tables[0].equals(tables[1])
    fractions = tables[0]["fraction"]
    assert fractions[0] == pytest.approx(1)  # the donor's answer
    assert fractions[4] == 0  # nothing reads the context any more
    assert 0.01 < fractions[2] < 0.9


def test_the_last_bits_are_ours_where_kernels_differ_for_weights_without_gradients():
    config = LearnerConfig.model_validate(
        {"type": "transformer", "num_layers": 2, "num_heads": 2, "width": 16}
    )
    model = build_untrained(TASK, config, torch.Generator().manual_seed(0))
    prompts = draw_prompts(TASK, 512, seed=0)
    pairs = pair_prompts(prompts.xs, prompts.ys, 3)
    moved = ours(model, pairs, prompts)
    for name, predictions in with_pyvene(model, pairs, moved).edited.items():
        assert torch.equal(predictions, moved.edited[name])


@pytest.mark.parametrize("kind", ["transformer", "joint_transformer", "linear_attention", "gru"])
def test_other_architectures_too(kind: str):
    sizes = {"num_layers": 2} | ({} if kind == "linear_attention" else {"width": 8})
    sizes |= {"num_heads": 2} if "transformer" in kind else {}
    config = LearnerConfig.model_validate({"type": kind, **sizes})
    model = build_untrained(TASK, config, torch.Generator().manual_seed(0))
    prompts = draw_prompts(TASK, 32, seed=0)
    pairs = pair_prompts(prompts.xs, prompts.ys, 3)
    moved = ours(model, pairs, prompts)
    again = with_pyvene(model, pairs, moved)
    for name, predictions in moved.edited.items():
        # The recurrent layers leave their streams in another order in memory, which pyvene keeps.
        rounding = 1e-5 if kind == "gru" else 0
        torch.testing.assert_close(again.edited[name], predictions, rtol=rounding, atol=rounding)
    assert not torch.equal(moved.edited[METHOD, NO_TARGET, 0], moved.recipient)


def test_the_learner_stays_as_it_is(small: Learner, prompts: Prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, 4)
    before = small.model(prompts.xs, prompts.ys)
    interchange_context(small.model, pairs, 2)
    assert all(parameter.requires_grad for parameter in small.model.parameters())
    assert torch.equal(small.model(prompts.xs, prompts.ys), before)


def test_what_pyvene_cannot_name_is_refused(small: Learner, prompts: Prompts):
    pairs = pair_prompts(prompts.xs, prompts.ys, 4)
    with pytest.raises(ValueError, match=r"layer=5 is not there; allowed: 0 to 4"):
        interchange_context(small.model, pairs, 5)
    config = LearnerConfig.model_validate(
        {"type": "looped", "num_loops": 3, "num_heads": 2, "width": 8}
    )
    looped = build_untrained(small.task, config, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"LoopedTransformer: 3 blocks share their modules"):
        interchange_context(looped, pairs, 1)
    with pytest.raises(ValueError, match="Linear cannot be used for interventions"):
        interchange_context(nn.Linear(2, 1), pairs, 0)
