"""Through which heads, and from which tokens, does the query's token read its context?

An edge is a layer, a head and a kind of context token (x or y): what the query's token reads there.
Exchanging an edge gives the query the keys and values of the donor's tokens of that kind, in that
head alone, while the context's own streams stay the recipient's (path patching, Wang et al. 2023).
A small set of edges that carries the donor's answer, and without which all others together do not,
is what the query reads through.

Shape letters: S sets of edges, B pairs, L layers, M heads, T context tokens, C channels a head, H
width.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.learner.base import (
    ContinuableLearner,
    LayeredLearner,
    residual_streams,
)
from incontext_linear.learner.devices import device_of
from incontext_linear.learner.transformer import Block, Transformer, as_transformer
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.probing.alignment_config import PathsConfig
from incontext_linear.probing.exchange import PromptPairs, answers_from, frozen, prompt_of
from incontext_linear.statistics import ratio_interval
from incontext_linear.tasks import draw_prompts, generator

KINDS = ("x_tokens", "y_tokens")
EdgeSets = Bool[Tensor, "set layer head kind"]


class ReadTokens(NamedTuple):
    """Keys and values of a prompt's context tokens in one layer, (B, M, T, C) each."""

    keys: Float[Tensor, "batch head token channel"]
    values: Float[Tensor, "batch head token channel"]


@dataclass(frozen=True)
class QueryReading:
    """The query's token of the recipients, free to read either prompt's context edge by edge."""

    model: Transformer
    query: Float[Tensor, "batch width"]
    """The recipients' query behind the embedding."""
    recipient: tuple[ReadTokens, ...]
    donor: tuple[ReadTokens, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Transformer, pairs: PromptPairs) -> "QueryReading":
        """Run both prompts of every pair, and keep what their context tokens offer to be read."""
        query = model.embed(*prompt_of(pairs.recipient))[:, -1]
        offered = [_offered(model, *prompt_of(part)) for part in (pairs.recipient, pairs.donor)]
        return cls(model, query, *offered)

    @torch.no_grad()
    def answers(self, sets: EdgeSets) -> Float[Tensor, "set batch"]:
        """Answers after every edge of a set was exchanged."""
        sets = sets.to(self.query.device)
        hidden = self.query.expand(len(sets), -1, -1)  # (S, B, H)
        kind = torch.arange(self.recipient[0].keys.shape[2], device=sets.device) % 2
        for layer, (own, other) in enumerate(zip(self.recipient, self.donor, strict=True)):
            block = cast(Block, self.model.blocks[layer])
            exchanged = sets[:, layer][:, :, kind][:, None]  # (S, 1, M, T)
            hidden = _read(block, hidden, own, other, exchanged)
        return self.model.read(hidden)


def _offered(model: Transformer, xs: Tensor, ys: Tensor) -> tuple[ReadTokens, ...]:
    offered = []
    entering = zip(
        model.blocks, residual_streams(cast(LayeredLearner, model), xs, ys), strict=False
    )
    for block, (_, hidden) in entering:
        block = cast(Block, block)
        _, key, value = block.attention.heads(block.attention_norm(hidden[:, :-1]))
        offered.append(ReadTokens(key.transpose(1, 2), value.transpose(1, 2)))
    return tuple(offered)


def _read(
    block: Block,
    hidden: Float[Tensor, "set batch width"],
    own: ReadTokens,
    other: ReadTokens,
    exchanged: Bool[Tensor, "set 1 head token"],
) -> Float[Tensor, "set batch width"]:
    """One layer at the query's token, reading the donor's tokens where edges are exchanged."""
    query, own_key, own_value = block.attention.heads(block.attention_norm(hidden))
    scale = query.shape[-1] ** -0.5
    scores = [torch.einsum("sbmc,bmtc->sbmt", query, part.keys) for part in (own, other)]
    chosen = torch.where(exchanged, scores[1], scores[0]) * scale
    itself = (query * own_key).sum(-1, keepdim=True) * scale
    weights = torch.cat((chosen, itself), dim=-1).softmax(-1)
    seen = weights[..., :-1]
    mixed = (
        torch.einsum("sbmt,bmtc->sbmc", seen * ~exchanged, own.values)
        + torch.einsum("sbmt,bmtc->sbmc", seen * exchanged, other.values)
        + weights[..., -1:] * own_value
    )
    hidden = hidden + block.attention.project_out(mixed.flatten(-2))
    return hidden + block.mlp(hidden)


def trace_paths(
    model: Transformer,
    task: TaskConfig,
    examples_seen: int,
    config: PathsConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose the edges that the query reads through, and score them on other pairs.

    Edges are added one at a time, each time the one that brings the answer nearest to the donor's,
    until ``config.faithful`` of the donor's answer is explained.

    Args:
        model: the learner.
        task: what prompts are drawn from.
        examples_seen: k.
        config: pairs, how many edges at most, random sets.
        bootstrap: level and number of resamples.
        seed: of prompts and of random sets.

    Returns:
        Edges in the order in which they were chosen: ``order``, ``layer`` (1: the first block),
        ``head``, ``tokens``, ``chosen_share`` (on the pairs that chose). And the sets' scores:
        ``edges`` (``all``, ``chosen``, ``without_chosen``, ``random``, ``without_random``),
        ``number``, ``of``, ``share`` of the donor's answer with ``low`` and ``high`` over pairs; of
        random sets the mean, with the least and largest of them.
    """
    model = as_transformer(cast(nn.Module, frozen(model)))
    size, device = (config.num_pairs, examples_seen, seed), device_of(model)
    drawn = (
        PromptPairs.draw(task, *size, f"paths {part}", device=device)
        for part in ("choice", "score")
    )
    readings = [QueryReading.of(model, pairs) for pairs in drawn]
    shape = len(model.blocks), model.config.num_heads, len(KINDS)
    chosen, rows = _choose(readings[0], shape, config)
    return pd.DataFrame(rows), _score_sets(readings[1], chosen, config, bootstrap, seed)


def _ends(reading: QueryReading, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Answers with no edge and with every edge exchanged."""
    sets = torch.zeros(2, *shape, dtype=torch.bool)
    sets[1] = True
    unchanged, goal = reading.answers(sets)
    return unchanged, goal


def _left_and_whole(answers: Tensor, unchanged: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the donor's answer, and what the unchanged answer leaves of that."""
    slope = (goal * unchanged).sum() / unchanged.square().sum()
    return (answers - goal).square(), (goal - slope * unchanged).square()


def _share(answers: Tensor, unchanged: Tensor, goal: Tensor) -> Tensor:
    left, whole = _left_and_whole(answers, unchanged, goal)
    return 1 - left.mean(-1) / whole.mean()


def _choose(
    reading: QueryReading, shape: tuple[int, ...], config: PathsConfig
) -> tuple[Tensor, list[dict[str, int | float | str]]]:
    unchanged, goal = _ends(reading, shape)
    flat = torch.zeros(int(np.prod(shape)), dtype=torch.bool)
    rows: list[dict[str, int | float | str]] = []
    share = 0.0
    while share < config.faithful and len(rows) < min(config.max_edges, len(flat)):
        free = (~flat).nonzero()[:, 0]
        tried = flat.repeat(len(free), 1)
        tried[torch.arange(len(free)), free] = True
        answers = [reading.answers(part) for part in tried.unflatten(1, shape).split(32)]
        shares = _share(torch.cat(answers), unchanged, goal)
        best = int(shares.argmax())
        share = float(shares[best])
        flat[free[best]] = True
        layer, head, kind = (int(at) for at in np.unravel_index(int(free[best]), shape))
        edge = {"layer": layer + 1, "head": head, "tokens": KINDS[kind]}
        rows.append({"order": len(rows) + 1, **edge, "chosen_share": share})
    return flat.unflatten(0, shape), rows


def _score_sets(
    reading: QueryReading,
    chosen: Bool[Tensor, "layer head kind"],
    config: PathsConfig,
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    shape = tuple(chosen.shape)
    unchanged, goal = _ends(reading, shape)
    number, total = int(chosen.sum()), chosen.numel()
    rng = generator(seed, "random edges")
    drawn = torch.zeros(config.num_random_sets, total, dtype=torch.bool)
    for row in drawn:
        row[torch.randperm(total, generator=rng)[:number]] = True
    at_random = drawn.unflatten(1, shape)
    own = torch.stack((torch.ones_like(chosen), chosen, ~chosen))
    left, whole = _left_and_whole(reading.answers(own), unchanged, goal)
    found = 1 - ratio_interval(
        left.mT.double().cpu().numpy(), whole[:, None].double().cpu().numpy(), bootstrap, seed
    )
    found = found.rename(columns={"mean": "share", "low": "high", "high": "low"})
    controls = [_share(reading.answers(sets), unchanged, goal) for sets in (at_random, ~at_random)]
    limits = pd.DataFrame(
        {"share": part.mean().item(), "low": part.min().item(), "high": part.max().item()}
        for part in controls
    )
    table = pd.concat((found, limits), ignore_index=True)
    table.insert(0, "edges", ["all", "chosen", "without_chosen", "random", "without_random"])
    table.insert(1, "number", [total, number, total - number, number, total - number])
    return table.assign(of=total)[["edges", "number", "of", "share", "low", "high"]]


@torch.no_grad()
def ablate_heads(
    model: Transformer, task: TaskConfig, examples_seen: int, num_prompts: int, seed: int
) -> pd.DataFrame:
    """The effect of replacing each head's output by its mean over prompts, at every token.

    Returns:
        ``layer`` (1: the first block), ``head``, ``spd`` (mean squared difference to ordinary least
        squares behind k examples, in units of the labels' variance), ``intact`` (the same without
        ablation) and ``changed`` (mean squared change of the prediction, in the same units).
    """
    model = as_transformer(cast(nn.Module, frozen(model)))
    prompts = draw_prompts(task, num_prompts, seed, 0, "head ablation", device_of(model))
    xs, ys = (part[:, : examples_seen + 1] for part in (prompts.xs, prompts.ys))
    reference, variance = OrdinaryLeastSquares()(xs, ys)[:, -1], ys.var()
    intact = model(xs, ys)[:, -1]
    rows = []
    entering = zip(
        model.blocks, residual_streams(cast(LayeredLearner, model), xs, ys), strict=False
    )
    for layer, (block, (_, hidden)) in enumerate(entering, start=1):
        block = cast(Block, block)
        attention = block.attention
        mixed = attention.mix(
            attention.project_in(block.attention_norm(hidden)), attention.num_heads
        )
        parts = mixed.unflatten(-1, (attention.num_heads, -1))
        for head in range(attention.num_heads):
            without = parts.clone()
            without[:, :, head] = parts[:, :, head].mean(0)
            after = hidden + attention.project_out(without.flatten(-2))
            answers = answers_from(cast(ContinuableLearner, model), after + block.mlp(after), layer)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "spd": ((answers - reference).square().mean() / variance).item(),
                    "intact": ((intact - reference).square().mean() / variance).item(),
                    "changed": ((answers - intact).square().mean() / variance).item(),
                }
            )
    return pd.DataFrame(rows)


@torch.no_grad()
def classify_attention(
    model: Transformer, task: TaskConfig, examples_seen: int, num_prompts: int, seed: int
) -> pd.DataFrame:
    """Where each head looks, from x-tokens and from y-tokens, as shares of its attention.

    The first example's tokens, which see next to nothing, are left out.

    Returns:
        ``layer``, ``head``, ``from_tokens``, the shares ``itself``, ``own_x`` (a y-token's own x),
        ``x_tokens`` and ``y_tokens`` (of other examples), and ``pattern``: the largest of them, if
        it is at least one half, else ``mixed``.
    """
    prompts = draw_prompts(task, num_prompts, seed, 0, "attention patterns", device_of(model))
    xs, ys = (part[:, : examples_seen + 1] for part in (prompts.xs, prompts.ys))
    weights = model.attention_weights(xs, ys).mean(1)  # (L, M, T, T)
    token = torch.arange(weights.shape[-1], device=weights.device)
    row, column = token[:, None], token
    own_x = (row % 2 == 1) & (column == row - 1)
    masks = {"itself": row == column, "own_x": own_x}
    masks["x_tokens"] = (column % 2 == 0) & ~masks["itself"] & ~own_x
    masks["y_tokens"] = (column % 2 == 1) & ~masks["itself"]
    rows = []
    for first, kind in ((2, "x_tokens"), (3, "y_tokens")):
        seen = weights[:, :, first::2]
        shares = {name: (seen * mask[first::2]).sum(-1).mean(-1) for name, mask in masks.items()}
        for layer, head in np.ndindex(*weights.shape[:2]):
            values = {name: share[layer, head].item() for name, share in shares.items()}
            largest = max(values, key=values.__getitem__)
            pattern = largest if values[largest] >= 0.5 else "mixed"
            place = {"layer": layer + 1, "head": head, "from_tokens": kind}
            rows.append({**place, **values, "pattern": pattern})
    return pd.DataFrame(rows).sort_values(["layer", "head", "from_tokens"], ignore_index=True)
