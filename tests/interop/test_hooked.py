"""TransformerLens's hooks on a learner: every number is the learner's own."""

from typing import cast

import pytest
import torch
from interop.conftest import SHIPPED
from torch import Tensor, nn

pytest.importorskip("transformer_lens", reason="needs TransformerLens: make interop")

from transformer_lens.model_bridge.generalized_components import (  # pyright: ignore[reportMissingImports]
    AttentionBridge,
    BlockBridge,
    MLPBridge,
)

from incontext_linear.config import LearnerConfig, ModelConfig, TaskConfig
from incontext_linear.interop.hooked import NAMES, HookedLearner
from incontext_linear.learner import Transformer, load_learner
from incontext_linear.learner.base import predict_from, residual_streams
from incontext_linear.learner.registry import build_untrained
from incontext_linear.learner.transformer import Block
from incontext_linear.tasks import draw_prompts

TASK = TaskConfig(dim=2, num_examples=5)
TRANSFORMERS = {
    "paper": {},
    "no norm": {"norm": "none"},
    "no positions": {"positions": "none"},
    "rotary": {"positions": "rotary"},
    "no MLP": {"mlp_width": 0},
}
OTHERS = {
    "joint_transformer": {"num_layers": 2, "num_heads": 2, "width": 8},
    "looped": {"num_layers": 1, "num_loops": 3, "num_heads": 2, "width": 8},
    "linear_attention": {"num_layers": 2},
    "gru": {"num_layers": 2, "width": 8},
    "delta": {"num_layers": 2, "num_heads": 2, "width": 8},
}


def untrained(**options) -> Transformer:
    config = ModelConfig(**{"num_layers": 3, "num_heads": 2, "width": 16, **options})
    return cast(Transformer, build_untrained(TASK, config, torch.Generator().manual_seed(0)))


def of_plain_modules(model: Transformer, xs: Tensor, ys: Tensor) -> dict[str, Tensor]:
    """What PyTorch's own hooks see in the plain learner, by the names of TransformerLens."""
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, before: str | None, after: str | None) -> None:
        def hook(_, inputs, output):
            seen.update({before: inputs[0]} if before else {})
            seen.update({after: output} if after else {})

        handles.append(module.register_forward_hook(hook))

    handles = []
    for layer, block in enumerate(cast(list[Block], model.blocks)):
        at = f"blocks.{layer}."
        keep(block, f"{at}hook_resid_pre", f"{at}hook_resid_post")
        keep(block.attention.project_out, f"{at}attn.hook_z", f"{at}hook_attn_out")
        if block.has_mlp:
            keep(block.mlp_norm, f"{at}hook_resid_mid", None)
            keep(block.mlp_in, None, f"{at}mlp.hook_pre")
            keep(block.mlp_out, f"{at}mlp.hook_post", f"{at}hook_mlp_out")
    for layer, (block, (_, hidden)) in enumerate(
        zip(model.blocks, residual_streams(model, xs, ys), strict=False)
    ):
        attention = cast(Block, block).attention
        heads = attention.heads(cast(Block, block).attention_norm(hidden))
        for name, part in zip("qkv", heads, strict=True):
            seen[f"blocks.{layer}.attn.hook_{name}"] = part
    list(residual_streams(model, xs, ys))  # to the end, for the hooks of the last block
    for handle in handles:
        handle.remove()
    for layer, pattern in enumerate(model.attention_weights(xs, ys)):
        seen[f"blocks.{layer}.attn.hook_pattern"] = pattern
        z = f"blocks.{layer}.attn.hook_z"
        seen[z] = seen[z].unflatten(-1, (model.config.num_heads, -1))
    return seen


@torch.no_grad()
def largest_difference(model: Transformer, xs: Tensor, ys: Tensor) -> float:
    """Between the cache, under both names of every tensor, and the plain learner."""
    predictions, cache = HookedLearner(model).run_with_cache(xs, ys)
    expected = of_plain_modules(model, xs, ys)
    assert len(expected) >= 8 * len(model.blocks)
    differences = [(predictions - predict_from(model, model.embed(xs, ys), 0)).abs().max()]
    for name, tensor in expected.items():
        _, layer, place = name.split(".", 2)
        for each in (name, f"blocks.{layer}.{NAMES[place]}"):
            assert cache[each].shape == tensor.shape
            differences.append((cache[each] - tensor).abs().max())
    return float(torch.stack(differences).max())


@pytest.mark.parametrize("options", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_the_cache_is_the_learners_to_the_bit(options: dict):
    prompts = draw_prompts(TASK, 7, seed=0)
    assert largest_difference(untrained(**options), prompts.xs, prompts.ys) == 0


@pytest.mark.parametrize("name", ["small_learner", "learner"])
def test_the_cache_of_shipped_learners_is_theirs_to_the_bit(name: str):
    learner = load_learner(SHIPPED / f"{name}.safetensors")
    prompts = draw_prompts(learner.task, 16, seed=2)
    model = cast(Transformer, learner.model)
    assert largest_difference(model, prompts.xs, prompts.ys) == 0


@pytest.mark.parametrize("kind", OTHERS)
@torch.no_grad()
def test_other_architectures_show_their_streams(kind: str):
    config = LearnerConfig.model_validate({"type": kind, **OTHERS[kind]})
    model = build_untrained(TASK, config, torch.Generator().manual_seed(0))
    prompts = draw_prompts(TASK, 7, seed=0)
    predictions, cache = HookedLearner(model).run_with_cache(prompts.xs, prompts.ys)
    streams = [hidden for _, hidden in residual_streams(model, prompts.xs, prompts.ys)]
    assert torch.equal(predictions, predict_from(model, streams[0], 0))
    assert torch.equal(cache.accumulated_resid(), torch.stack(streams))
    assert len(cache) == 4 * len(model.blocks)


def test_the_newer_names_are_those_that_transformer_lens_gives_the_older_ones():
    aliases = BlockBridge.hook_aliases | {
        f"{part}.{old}": f"{part}.{new}"
        for part, kind in (("attn", AttentionBridge), ("mlp", MLPBridge))
        for old, new in kind.hook_aliases.items()
    }
    renamed = {old: new for old, new in NAMES.items() if old != new}
    assert renamed == {old: aliases[old] for old in renamed}
    assert len(renamed) == 11


def test_the_cache_answers_as_the_library_has_it(small, prompts):
    hooked = HookedLearner(small.model)
    _, cache = hooked.run_with_cache(prompts.xs, prompts.ys, names_filter="blocks.3.hook_out")
    assert list(cache.keys()) == ["blocks.3.hook_out"]
    _, cache = hooked.run_with_cache(prompts.xs, prompts.ys)
    assert torch.equal(cache["resid_post", -1], cache["blocks.3.hook_out"])
    assert cache.stack_activation("pattern").shape == (4, 64, 4, 23, 23)
    _, plain = hooked.run_with_cache(prompts.xs, prompts.ys, return_cache_object=False)
    assert type(plain) is dict


@pytest.mark.parametrize("name", ["hook_resid_post", "hook_out"])
@torch.no_grad()
def test_an_edit_of_a_stream_is_predict_from_the_edited_stream(small, prompts, name: str):
    model, (xs, ys) = small.model, prompts[:2]
    recipient, donor = slice(32), slice(32, 64)
    streams = dict(residual_streams(model, xs, ys))
    edited = streams[2][recipient].clone()
    edited[:, :-1] = streams[2][donor, :-1]

    def exchange(tensor, hook):
        tensor[:, :-1] = streams[2][donor, :-1]

    hooked = HookedLearner(model)
    found = hooked.run_with_hooks(
        xs[recipient], ys[recipient], fwd_hooks=[(f"blocks.1.{name}", exchange)]
    )
    assert torch.equal(found, predict_from(model, edited, 2))
    assert (found - hooked(xs[recipient], ys[recipient])).abs().max() > 0.1


@pytest.mark.parametrize("name", ["attn.hook_pattern", "attn.hook_z", "attn.o.hook_in"])
def test_a_head_without_its_pattern_or_output_is_a_head_that_writes_nothing(small, prompts, name):
    """The reference has zeros in the rows of the head's output matrix."""
    head, width = 1, small.config.width // small.config.num_heads
    without = load_learner(SHIPPED / "small_learner.safetensors").model
    block = cast(Block, without.blocks[2])
    with torch.no_grad():
        block.attention.project_out.weight[:, head * width : (head + 1) * width] = 0

    def silence(tensor, hook):
        where = (slice(None), head) if "pattern" in hook.name else (slice(None), slice(None), head)
        tensor[where] = 0
        return tensor

    found = HookedLearner(small.model).run_with_hooks(
        prompts.xs, prompts.ys, fwd_hooks=[(f"blocks.2.{name}", silence)]
    )
    torch.testing.assert_close(found, without(prompts.xs, prompts.ys), rtol=1e-5, atol=1e-5)
    assert (found - small.model(prompts.xs, prompts.ys)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["attn.hook_q", "attn.k.hook_out", "attn.hook_attn_scores"])
def test_without_queries_keys_or_scores_a_head_averages_what_it_sees(small, prompts, name):
    def flatten(tensor, hook):
        return torch.where(tensor.isinf(), tensor, torch.zeros_like(tensor))

    hooked = HookedLearner(small.model)
    with hooked.hooks(fwd_hooks=[(f"blocks.1.{name}", flatten)]):
        _, cache = hooked.run_with_cache(prompts.xs, prompts.ys)
    seen = torch.arange(1, 24).float()
    uniform = torch.ones(23, 23).tril() / seen[:, None]
    torch.testing.assert_close(cache["pattern", 1], uniform.expand(64, 4, -1, -1))
    mean = cache["v", 1].cumsum(1) / seen[:, None, None]
    torch.testing.assert_close(cache["z", 1], mean, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_learners_and_reach_the_pattern(prompts):
    model = untrained()
    xs, ys = (part[:8] for part in draw_prompts(TASK, 8, seed=3)[:2])
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(xs, ys).square().sum(), parameters)
    hooked, kept = HookedLearner(model), []

    def keep(tensor, hook):
        kept.append(tensor)

    loss = hooked.run_with_hooks(xs, ys, fwd_hooks=[("blocks.1.attn.hook_pattern", keep)])
    loss = loss.square().sum()
    *found, at_pattern = torch.autograd.grad(loss, [*parameters, kept[0]])
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-6)
    step = torch.randn(at_pattern.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    losses = [
        hooked.run_with_hooks(
            xs, ys, fwd_hooks=[("blocks.1.attn.hook_pattern", lambda p, hook, s=s: p + s * step)]
        )
        .double()
        .square()
        .sum()
        for s in (1, -1)
    ]
    slope = (losses[0] - losses[1]) / 2
    torch.testing.assert_close(slope.float(), (at_pattern * step).sum(), rtol=1e-2, atol=1e-5)


def test_hooks_leave_nothing_behind(small, prompts):
    before = small.model(prompts.xs, prompts.ys)
    hooked = HookedLearner(small.model)
    hooked.run_with_hooks(
        prompts.xs, prompts.ys, fwd_hooks=[("blocks.0.hook_in", lambda tensor, hook: 2 * tensor)]
    )
    assert torch.equal(small.model(prompts.xs, prompts.ys), before)
    assert torch.equal(hooked(prompts.xs, prompts.ys), before)
    assert hooked.list_hooks() == {}


def test_a_network_without_streams_is_refused():
    with pytest.raises(ValueError, match=r"Linear cannot be used for interventions: it has no"):
        HookedLearner(nn.Linear(2, 1))
