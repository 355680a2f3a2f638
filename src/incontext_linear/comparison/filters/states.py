"""Every layer's state at the query's token, as an affine map of the query.

A layer's state at the query's token is nearly affine in the query, h(q) ≈ c + A q, where c and A
depend on the context. A vector v that reads the state has implicit weights Aᵀv (the *response*). A
layer may also hold weights that it has not yet multiplied with the query; these are linear in c
(the *content*).

Shape letters: L layers (the embedding is layer 0), B prompts, d dimensions, H width, Q queries.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from incontext_linear.comparison.filters.prompts import FilterPrompts
from incontext_linear.learner.base import Network, can_be_used, residual_streams
from incontext_linear.learner.transformer import Transformer


class QueryStates(NamedTuple):
    """Each layer at the query's token, float64."""

    content: Float[np.ndarray, "layer batch width"]
    """c, less that of the first prompt."""
    response: Float[np.ndarray, "layer batch width dim"]
    """A."""
    curvature: Float[np.ndarray, " layer"]
    """Share of the states' variance over queries that is not affine in the query."""
    lens: Float[np.ndarray, "layer batch dim"]
    """Implicit weights of the read-out, applied at once."""
    skip: Float[np.ndarray, "layer batch dim"]
    """Implicit weights of the last layer and the read-out, applied at once; for the last layer, its
    own answer.
    """


@torch.no_grad()
def query_states(model: Network, prompts: FilterPrompts, prompts_at_once: int = 64) -> QueryStates:
    """Run fresh queries behind each prompt's k examples, and take every layer's state there.

    Args:
        model: the learner.
        prompts: k + 1 examples each, in the dtype and on the device of the learner.
        prompts_at_once: prompts in memory together.

    Raises:
        ValueError: if there are too few queries to determine an affine map.
    """
    num_queries, dim = prompts.queries.shape[1:]
    if num_queries <= dim + 1:
        raise ValueError(
            f"num_queries={num_queries} cannot determine an affine map of dim={dim}; "
            f"allowed: more than {dim + 1}"
        )
    chunks = zip(*(tensor.split(prompts_at_once) for tensor in prompts[:3]), strict=True)
    columns = zip(*(_run(model, *chunk) for chunk in chunks), strict=True)
    content, response, lens, skip, missed, total = (torch.cat(column, dim=1) for column in columns)
    content = content - content[:, :1]
    curvature = missed.sum(1) / total.sum(1)
    return QueryStates(
        *(tensor.cpu().numpy() for tensor in (content, response, curvature, lens, skip))
    )


def _run(model: Network, xs: Tensor, ys: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
    """Content, response, lens and skip of a few prompts, and the curvature as two sums a prompt."""
    rows = []
    for states, answers, skipped in _query_streams(model, xs, ys, queries):
        content, response, missed, total = _affine(queries, states)
        slopes = (_slopes(queries, answer) for answer in (answers, skipped))
        rows.append((content, response, *slopes, missed, total))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _query_streams(
    model: Network, xs: Tensor, ys: Tensor, queries: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each layer's states at the queries' tokens (B, Q, H), what the read-out answers to them
    (B, Q), and what it answers behind the last layer.

    Of the transformer the context is run once for all queries. A network that shows no layers has
    one, whose state is its answer.
    """
    if isinstance(model, Transformer):
        yield from _transformer_streams(model, xs, ys, queries)
        return
    num_queries = queries.shape[1]
    asked = torch.cat((xs[:, None, :-1].expand(-1, num_queries, -1, -1), queries[:, :, None]), 2)
    asked, labels = asked.flatten(0, 1), ys.repeat_interleave(num_queries, dim=0)
    if not can_be_used(model, "interventions"):
        answer = model(asked, labels)[:, -1].unflatten(0, (-1, num_queries))
        yield answer.unsqueeze(-1), answer, answer
        return
    last = list(model.blocks)[-1]
    for layer, hidden in residual_streams(model, asked, labels):
        skipped = hidden if layer == len(model.blocks) else last(hidden)
        states = hidden[:, -1].unflatten(0, (-1, num_queries))
        yield states, model.read(states), model.read(skipped[:, -1]).unflatten(0, (-1, num_queries))


def _transformer_streams(
    model: Transformer, xs: Tensor, ys: Tensor, queries: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    seen = xs.shape[1] - 1
    context = model.embed(xs, ys)[:, : 2 * seen]
    hidden = model.embed_queries(queries, 2 * seen)[:, None]
    visible = torch.ones(1, 2 * seen, dtype=torch.bool, device=xs.device)
    for layer in range(len(model.blocks) + 1):
        if layer:
            block = model.blocks[layer - 1]
            hidden, context = block.from_context(hidden, context, visible), block(context)
        shortcut = hidden
        if layer < len(model.blocks):
            shortcut = model.blocks[-1].from_context(hidden, context, visible)
        yield hidden[:, 0], model.read(hidden[:, 0]), model.read(shortcut[:, 0])


def _slopes(
    queries: Float[Tensor, "batch query dim"], answers: Float[Tensor, "batch query"]
) -> Float[Tensor, "batch dim"]:
    """Implicit weights of answers."""
    return (torch.linalg.pinv(queries.double()) @ answers.double().unsqueeze(-1)).squeeze(-1)


def _affine(
    queries: Float[Tensor, "batch query dim"], states: Float[Tensor, "batch query width"]
) -> tuple[Tensor, ...]:
    """Content (B, H), response (B, H, d), and a prompt's sums of squares missed and in all."""
    design = F.pad(queries.double(), (0, 1), value=1.0)
    # Relative to one query's state first: a constructed network's padding is 1e14.
    reference = states[:, :1].double()
    moved = states.double() - reference
    fitted = torch.linalg.pinv(design) @ moved
    missed = (moved - design @ fitted).square().sum((1, 2))
    total = (moved - moved.mean(1, keepdim=True)).square().sum((1, 2))
    return fitted[:, -1] + reference[:, 0], fitted[:, :-1].mT, missed, total
