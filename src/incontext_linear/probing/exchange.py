"""Pairs of prompts, and what a learner answers after part of its states were exchanged.

A recipient's states in one layer are changed towards a donor's along a subspace, at a set of
positions, and the later layers run on. The donor keeps its own query, so that the query's token
differs in what it asks and in what it has read. All functions take many subspaces at once.

Shape letters: C subspaces, B pairs, T = 2k + 1 tokens, H width, R rank, L layers.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from incontext_linear.config import TaskConfig
from incontext_linear.learner.base import ContinuableLearner, predict_from, residual_streams
from incontext_linear.learner.devices import one_thread
from incontext_linear.learner.transformer import Block, Transformer
from incontext_linear.probing.causal_models import Examples
from incontext_linear.tasks import draw_prompts

TOKENS_IN_CACHE = 640
"""Tokens that a CPU runs through the layers at once: of more, what a layer computes no longer fits
into a core's cache, and of fewer, the weights are read too often.
"""
NUMBERS_AT_ONCE = 2**27
"""Numbers in the streams that any other device keeps at once: a few times as much memory, however
large the learner is.
"""
POSITIONS = ("query", "y_tokens", "x_tokens", "context")
"""Where states are exchanged: the query's token, the context's y-tokens, its x-tokens, both."""


def positions_mask(kind: str, num_tokens: int) -> Bool[Tensor, " token"]:
    """The tokens of a kind among x₁ y₁ … x_k y_k x', the last of which is the query's.

    Raises:
        ValueError: if the kind is not one of `POSITIONS`.
    """
    mask = torch.zeros(num_tokens, dtype=torch.bool)
    mask[exchanged_rows(kind)] = True
    return mask


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
    *blocks, last = (cast(Block, block) for block in list(model.blocks)[layer:])
    for block in blocks:
        hidden = block(hidden)
    # What the other tokens hold behind the last layer, nothing reads.
    return model.read(last.at_last(hidden))


def _all_visible(context: Float[Tensor, "batch token width"]) -> Bool[Tensor, "prefix token"]:
    return torch.ones(1, context.shape[1], dtype=torch.bool, device=context.device)


def exchanged_rows(positions: str) -> slice:
    """The tokens whose states an exchange changes, as an index of (B, T, H)'s second axis.

    Raises:
        ValueError: if the positions are not one of `POSITIONS`.
    """
    rows = {
        "query": slice(-1, None),
        "y_tokens": slice(1, -1, 2),
        "x_tokens": slice(0, -1, 2),
        "context": slice(0, -1),
    }
    if positions not in rows:
        raise ValueError(
            f"unknown positions {positions!r}; allowed: {', '.join(map(repr, POSITIONS))}"
        )
    return rows[positions]


@torch.no_grad()
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
    rows = exchanged_rows(positions)
    change, recipient = (pairs.donor - pairs.recipient)[:, rows], pairs.recipient[:, rows]

    def answers(subspaces: slice, batch: slice) -> tuple[Tensor]:
        few = bases[subspaces]
        coordinates = torch.einsum("bth,chr->cbtr", change[batch], few)
        edited = recipient[batch] + torch.einsum("cbtr,chr->cbth", coordinates, few)
        return (answers_of_edited(model, pairs[batch], positions, edited),)

    return in_parts(answers, positions, len(bases), pairs)[0]


def in_parts(
    compute: Callable[[slice, slice], tuple[Tensor, ...]],
    positions: str,
    num_subspaces: int,
    pairs: LayerPairs,
    num_streams: int = 1,
) -> tuple[Tensor, ...]:
    """What is computed of every subspace and pair, a few of them at a time.

    Args:
        compute: tensors (C', B', …) of a range of subspaces and a range of pairs.
        positions: one of `POSITIONS`.
        num_subspaces: C.
        pairs: B of them.
        num_streams: how many streams of a prompt are kept at once: 1, or all that a gradient needs.

    Returns:
        The tensors (C, B, …).
    """
    tokens, device = pairs.recipient.shape[1], pairs.recipient.device
    numbers = pairs.recipient.shape[2] * num_streams
    limit = TOKENS_IN_CACHE if device.type == "cpu" else max(1, NUMBERS_AT_ONCE // numbers)
    if positions == "query":  # all queries of a pair read one context
        number, width = num_subspaces, max(1, limit // (tokens + num_subspaces))
    else:
        width = min(len(pairs), max(1, limit // tokens))
        number = max(1, limit // (tokens * width))
    subspaces = [
        slice(at, min(at + number, num_subspaces)) for at in range(0, num_subspaces, number)
    ]
    batches = [slice(at, at + width) for at in range(0, len(pairs), width)]
    cells = [(few, batch) for few in subspaces for batch in batches]
    found = _side_by_side(compute, cells) if device.type == "cpu" else [compute(*c) for c in cells]
    per_batch = len(batches)
    rows = [found[at : at + per_batch] for at in range(0, len(found), per_batch)]
    joined = [[torch.cat(part, 1) for part in zip(*row, strict=True)] for row in rows]
    return tuple(torch.cat(part) for part in zip(*joined, strict=True))


def _side_by_side(
    compute: Callable[[slice, slice], tuple[Tensor, ...]], cells: Sequence[tuple[slice, slice]]
) -> list[tuple[Tensor, ...]]:
    """Parts are too small to be shared by cores, so each core computes parts of its own."""
    threads, wants_gradient = torch.get_num_threads(), torch.is_grad_enabled()
    if threads == 1 or len(cells) == 1:
        return [compute(*cell) for cell in cells]

    def part(cell: tuple[slice, slice]) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(wants_gradient):  # each thread has its own switch
            return compute(*cell)

    with one_thread(), ThreadPoolExecutor(threads) as pool:
        return [*pool.map(part, cells)]


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
    rows = exchanged_rows(positions)
    hidden = pairs.recipient.expand(len(edited), -1, -1, -1).clone()
    hidden[:, :, rows] = edited
    return answers_from(model, hidden.flatten(0, 1), pairs.layer).unflatten(0, hidden.shape[:2])


def _answers_of_queries(
    model: ContinuableLearner, queries: Float[Tensor, "subspace batch width"], pairs: LayerPairs
) -> Float[Tensor, "subspace batch"]:
    """The same where nothing but the query's token is changed: no other token is run again."""
    hidden = queries.transpose(0, 1)[:, None]  # (B, 1 prefix, C, H)
    visible = _all_visible(pairs.recipient[:, :-1])
    for block, context in zip(model.blocks[pairs.layer :], pairs.later_context[:-1], strict=True):
        hidden = cast(Block, block).from_context(hidden, context, visible)
    return model.read(hidden[:, 0]).transpose(0, 1)
