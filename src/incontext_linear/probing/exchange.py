"""Pairs of prompts, and what a learner answers after part of its states were exchanged.

A recipient's states in one layer are changed towards a donor's along a subspace, at a set of
positions, and the later layers run on. The donor keeps its own query, so that the query's token
differs in what it asks and in what it has read. All functions take many subspaces at once.

Shape letters: C subspaces, B pairs, T = 2k + 1 tokens, H width, R rank, L layers.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from incontext_linear.config import TaskConfig
from incontext_linear.learner.base import ContinuableLearner, predict_from, residual_streams
from incontext_linear.learner.transformer import Block, Transformer
from incontext_linear.probing.causal_models import Examples
from incontext_linear.tasks import draw_prompts

POSITIONS = ("query", "y_tokens", "x_tokens", "context")
"""Where states are exchanged: the query's token, the context's y-tokens, its x-tokens, both."""


def positions_mask(kind: str, num_tokens: int) -> Bool[Tensor, " token"]:
    """The tokens of a kind among x₁ y₁ … x_k y_k x', the last of which is the query's.

    Raises:
        ValueError: if the kind is not one of `POSITIONS`.
    """
    if kind not in POSITIONS:
        raise ValueError(f"unknown positions {kind!r}; allowed: {', '.join(map(repr, POSITIONS))}")
    token = torch.arange(num_tokens)
    query = token == num_tokens - 1
    if kind == "query":
        return query
    kinds = {"y_tokens": token % 2 == 1, "x_tokens": token % 2 == 0}
    return kinds.get(kind, ~query) & ~query


@dataclass(frozen=True)
class PromptPairs:
    """Recipients and donors: different prompts, all of them, so that pairs are independent."""

    recipient: Examples
    donor: Examples

    @classmethod
    def draw(
        cls,
        task: TaskConfig,
        num_pairs: int,
        examples_seen: int,
        seed: int,
        stream: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "PromptPairs":
        """Draw new pairs with k examples each; streams of different names share no prompts."""
        prompts = draw_prompts(task, 2 * num_pairs, seed, 0, stream, device)
        xs, ys, k = prompts.xs.to(dtype), prompts.ys.to(dtype), examples_seen
        parts = [
            Examples(xs[half, :k], ys[half, :k], xs[half, k])
            for half in (slice(num_pairs), slice(num_pairs, None))
        ]
        return cls(*parts)

    def __len__(self) -> int:
        return len(self.recipient.ys)


def prompt_of(examples: Examples) -> tuple[Tensor, Tensor]:
    """xs (B, k+1, d) and ys (B, k+1) of a prompt that ends with the query."""
    xs = torch.cat((examples.xs, examples.query[:, None]), dim=1)
    return xs, torch.nn.functional.pad(examples.ys, (0, 1))


def frozen(model: ContinuableLearner | nn.Module) -> ContinuableLearner:
    """A copy whose weights take no gradient, so that a search pays for its subspaces alone."""
    if not isinstance(model, nn.Module):
        return model
    return cast(ContinuableLearner, copy.deepcopy(model).eval().requires_grad_(False))


@dataclass(frozen=True)
class LayerPairs:
    """The states of all pairs in one layer, and what the learner answers unchanged.

    Attributes:
        layer: number of layers behind the states, 0 being the embedding.
        recipient: (B, T, H).
        donor: (B, T, H).
        later_context: the recipients' streams at the context's tokens from this layer on, each
            (B, T − 1, H): what the query's token will read if it alone is changed.
        unchanged: the learner's answers to the recipients (B,).
    """

    layer: int
    recipient: Float[Tensor, "batch token width"]
    donor: Float[Tensor, "batch token width"]
    later_context: tuple[Tensor, ...]
    unchanged: Float[Tensor, " batch"]

    def __getitem__(self, rows: Tensor | slice) -> "LayerPairs":
        return LayerPairs(
            self.layer,
            self.recipient[rows],
            self.donor[rows],
            tuple(stream[rows] for stream in self.later_context),
            self.unchanged[rows],
        )

    def __len__(self) -> int:
        return len(self.unchanged)


@torch.no_grad()
def layer_pairs(model: ContinuableLearner, pairs: PromptPairs) -> Iterator[LayerPairs]:
    """The states of the pairs, layer after layer, the embedding first."""
    streams = [hidden for _, hidden in residual_streams(model, *prompt_of(pairs.recipient))]
    unchanged = answers_from(model, streams[-1], len(streams) - 1)
    context = tuple(hidden[:, :-1] for hidden in streams)
    donors = residual_streams(model, *prompt_of(pairs.donor))
    for layer, donor in donors:
        yield LayerPairs(layer, streams[layer], donor, context[layer:], unchanged)


def answers_from(
    model: ContinuableLearner, hidden: Float[Tensor, "batch token width"], layer: int
) -> Float[Tensor, " batch"]:
    """What the query's token answers if the learner goes on from the states of a layer."""
    if not isinstance(model, Transformer) or layer == len(model.blocks):
        return predict_from(model, hidden, layer)[:, -1]
    blocks = [cast(Block, block) for block in model.blocks]
    for block in blocks[layer:-1]:
        hidden = block(hidden)
    return model.read(blocks[-1](hidden, tokens=slice(-1, None)))[:, 0]


def exchanged_rows(positions: str, pairs: LayerPairs) -> Tensor | slice:
    """The tokens whose states an exchange changes, as an index of (B, T, H)'s second axis."""
    if positions == "query":
        return slice(-1, None)
    mask = positions_mask(positions, pairs.recipient.shape[1])
    return mask.nonzero()[:, 0].to(pairs.recipient.device)


def exchange(
    model: ContinuableLearner,
    pairs: LayerPairs,
    positions: str,
    bases: Float[Tensor, "subspace width rank"],
) -> Float[Tensor, "subspace batch"]:
    """Answers after the states were exchanged along each subspace: h_r + QQᵀ(h_d − h_r).

    Args:
        model: the learner.
        pairs: states of one layer.
        positions: one of `POSITIONS`; one subspace is shared by all tokens of the kind.
        bases: orthonormal columns Q (C, H, R).
    """
    rows = exchanged_rows(positions, pairs)
    change = (pairs.donor - pairs.recipient)[:, rows]
    coordinates = torch.einsum("bth,chr->cbtr", change, bases)
    edit = torch.einsum("cbtr,chr->cbth", coordinates, bases)
    return answers_of_edited(model, pairs, positions, pairs.recipient[:, rows] + edit)


def answers_of_edited(
    model: ContinuableLearner,
    pairs: LayerPairs,
    positions: str,
    edited: Float[Tensor, "subspace batch row width"],
) -> Float[Tensor, "subspace batch"]:
    """Answers if the recipients' states at some positions are these, and all others stay.

    Args:
        model: the learner.
        pairs: states of one layer.
        positions: one of `POSITIONS`.
        edited: the states at its tokens, in their order.
    """
    if positions == "query" and all(hasattr(block, "from_context") for block in model.blocks):
        return _answers_of_queries(model, edited[:, :, 0], pairs)
    rows = exchanged_rows(positions, pairs)
    hidden = pairs.recipient.expand(len(edited), -1, -1, -1).clone()
    hidden[:, :, rows] = edited
    return answers_from(model, hidden.flatten(0, 1), pairs.layer).unflatten(0, hidden.shape[:2])


def _answers_of_queries(
    model: ContinuableLearner, queries: Float[Tensor, "subspace batch width"], pairs: LayerPairs
) -> Float[Tensor, "subspace batch"]:
    """The same where nothing but the query's token is changed: no other token is run again."""
    hidden = queries.transpose(0, 1)[:, None]  # (B, 1 prefix, C, H)
    num_context = pairs.recipient.shape[1] - 1
    visible = torch.ones(1, num_context, dtype=torch.bool, device=queries.device)
    for block, context in zip(model.blocks[pairs.layer :], pairs.later_context[:-1], strict=True):
        hidden = cast(Block, block).from_context(hidden, context, visible)
    return model.read(hidden[:, 0]).transpose(0, 1)
