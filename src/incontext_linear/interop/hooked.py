"""A learner with TransformerLens's hook points: ``run_with_cache``, ``run_with_hooks``.

TransformerLens 4 keeps `HookedRootModule` and `HookPoint` for networks that are not language
models. A tensor passes one hook point under the name that it has had since TransformerLens 1, and
then one under the name that version 4 prefers, such as ``blocks.0.hook_resid_pre`` and
``blocks.0.hook_in``: both are in the cache, and an edit at either is followed.

The learner's own modules do the work, so as long as no hook changes anything every number is the
learner's to the bit: of `incontext_linear.learner.base.residual_streams`,
`incontext_linear.learner.transformer.Transformer.attention_weights` and
`incontext_linear.learner.base.predict_from`.

Shape letters: B prompts, T tokens, M heads, C channels a head, H width, U units of the MLP.
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import (  # pyright: ignore[reportMissingImports]
    ActivationCache,
    HookedRootModule,
)
from transformer_lens.hook_points import HookPoint  # pyright: ignore[reportMissingImports]

from incontext_linear.learner.attention import causal_scores
from incontext_linear.learner.base import ContinuableLearner, check_learner
from incontext_linear.learner.transformer import Attention, Block, Transformer
from incontext_linear.tasks import Xs, Ys

STREAMS = {
    "hook_resid_pre": "hook_in",  # (B, T, H)
    "hook_resid_post": "hook_out",  # (B, T, H)
}
"""Hook points of every block: name → name in TransformerLens 4."""

ATTENTION = {
    "attn.hook_q": "attn.q.hook_out",  # (B, T, M, C), turned already where positions are rotary
    "attn.hook_k": "attn.k.hook_out",  # (B, T, M, C), likewise
    "attn.hook_v": "attn.v.hook_out",  # (B, T, M, C)
    "attn.hook_attn_scores": "attn.hook_attn_scores",  # (B, M, T, T)
    "attn.hook_pattern": "attn.hook_pattern",  # (B, M, T, T)
    "attn.hook_z": "attn.o.hook_in",  # (B, T, M, C)
    "hook_attn_out": "attn.hook_out",  # (B, T, H)
    "hook_resid_mid": "ln2.hook_in",  # (B, T, H)
}
"""Those of the transformer's layers."""

MLP = {
    "mlp.hook_pre": "mlp.in.hook_out",  # (B, T, U)
    "mlp.hook_post": "mlp.out.hook_in",  # (B, T, U)
    "hook_mlp_out": "mlp.hook_out",  # (B, T, H)
}
"""Those of layers that have an MLP."""

NAMES = STREAMS | ATTENTION | MLP


class HookPoints(nn.Module):
    """The hook points of one block, in the tree of modules that their dotted names spell."""

    def __init__(self, names: Iterable[str]):
        super().__init__()
        for name in names:
            for path in (name, NAMES[name]):
                *folders, last = path.split(".")
                where: nn.Module = self
                for folder in folders:
                    if not hasattr(where, folder):
                        where.add_module(folder, nn.Module())
                    where = where.get_submodule(folder)
                where.add_module(last, HookPoint())

    def forward(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor through a hook point under its name, then under that of TransformerLens 4."""
        for path in dict.fromkeys((name, NAMES[name])):
            tensor = self.get_submodule(path)(tensor)
        return tensor


class HookedLearner(HookedRootModule):
    """A learner whose inner tensors TransformerLens caches and edits.

    Every learner that can be intervened on has ``blocks.{i}.hook_resid_pre`` and
    ``hook_resid_post``; the paper's transformer has all of `NAMES`. Layer 0 of the project, the
    embedding, is ``blocks.0.hook_resid_pre``; its layer l is ``blocks.{l−1}.hook_resid_post``.
    The weights are the learner's own, not a copy.

    Args:
        learner: the network, such as ``load_learner(path).model``.

    Attributes:
        learner: the same.
        cfg: the sizes that `ActivationCache` asks for: ``n_layers``, and of the paper's
            transformer ``n_heads``, ``d_head``, ``d_model`` and ``d_mlp``.

    Raises:
        ValueError: if the network cannot be continued from a residual stream.
    """

    def __init__(self, learner: nn.Module):
        super().__init__()
        check_learner(learner, "interventions")
        self.learner = cast(ContinuableLearner, learner)
        self.blocks = nn.ModuleList(HookPoints(_names(block)) for block in self.learner.blocks)
        self.cfg = _sizes(self.learner)
        self.setup()

    def forward(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n), every block run at every token."""
        hidden = self.learner.embed(xs, ys)
        for module, block in zip(self.blocks, self.learner.blocks, strict=True):
            points = cast(HookPoints, module)
            hidden = points("hook_resid_pre", hidden)
            if _is_paper_block(block):
                hidden = _run(cast(Block, block), points, hidden)
            else:
                hidden = block(hidden)
            hidden = points("hook_resid_post", hidden)
        return self.learner.read(hidden[:, self.learner.prediction_tokens(hidden.shape[1])])

    def run_with_cache(
        self, *prompts: Tensor, return_cache_object: bool = True, **options: Any
    ) -> tuple[Ys, Any]:
        """Predictions, and everything that passed a hook point.

        Args:
            prompts: xs (B, n, d) and ys (B, n).
            return_cache_object: an `ActivationCache`, ``cache["pattern", 2]``; False: a dictionary.
            options: of `HookedRootModule.run_with_cache`, such as ``names_filter``.
        """
        predictions, cache = super().run_with_cache(*prompts, **options)
        return predictions, ActivationCache(cache, self) if return_cache_object else cache


def _is_paper_block(block: object) -> bool:
    """Not a subclass, whose attention is another one."""
    return type(block) is Block


def _names(block: object) -> list[str]:
    if not _is_paper_block(block):
        return list(STREAMS)
    return [*STREAMS, *ATTENTION, *(MLP if cast(Block, block).has_mlp else ())]


def _sizes(learner: ContinuableLearner) -> SimpleNamespace:
    sizes = SimpleNamespace(n_layers=len(learner.blocks))
    if isinstance(learner, Transformer):
        config = learner.config
        sizes.n_heads, sizes.d_model, sizes.d_mlp = config.num_heads, config.width, config.mlp_units
        sizes.d_head = config.width // config.num_heads
    return sizes


def _run(
    block: Block, points: HookPoints, hidden: Float[Tensor, "batch token width"]
) -> Float[Tensor, "batch token width"]:
    """`Block.forward`, through the hook points."""
    written = _attend(block.attention, points, block.attention_norm(hidden))
    hidden = points("hook_resid_mid", hidden + points("hook_attn_out", written))
    if not block.has_mlp:
        return hidden
    units = points("mlp.hook_pre", block.mlp_in(block.mlp_norm(hidden)))
    units = points("mlp.hook_post", F.gelu(units, approximate="tanh"))
    return hidden + points("hook_mlp_out", block.mlp_out(units))


def _attend(
    attention: Attention, points: HookPoints, normed: Float[Tensor, "batch token width"]
) -> Float[Tensor, "batch token width"]:
    """`Attention.forward`, through the hook points.

    The learner mixes values by a fused kernel that never forms the pattern, and whose last bits
    are its own. It runs here too; what hooks change in the pattern is added as a difference, which
    is exactly zero where they change nothing.
    """
    query, key, value = (
        points(f"attn.hook_{name}", part.clone())  # a view cannot be edited in place under autograd
        for name, part in zip("qkv", attention.heads(normed), strict=True)
    )
    packed = torch.stack((query, key, value), dim=-3).flatten(-3)
    mixed = attention.mix(packed, attention.num_heads).unflatten(-1, (attention.num_heads, -1))
    scores = causal_scores(query, key)
    pattern = scores.softmax(-1)
    scores = points("attn.hook_attn_scores", scores)
    change = points("attn.hook_pattern", scores.softmax(-1)) - pattern
    mixed = mixed + (change @ value.transpose(1, 2)).transpose(1, 2)
    return attention.project_out(points("attn.hook_z", mixed).flatten(-2))
