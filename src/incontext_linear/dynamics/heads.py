"""Where heads look while training: when the ones that look back at the context appear.

In the interleaved prompt x₁ y₁ x₂ y₂ … two steps are needed before a query can use an example, as
in an induction circuit (Olsson et al. 2022): a y-token must take in its own x (a previous-token
head), and the query's x-token must look back at the y-tokens. A head's score for a way of looking
is the attention that goes there beyond what evenly spread attention gives, as a share of what is
left to give: 0 for even attention, 1 if all of it goes there, negative if less than even.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.config import resolve_device
from incontext_linear.dynamics.trajectories import Trajectories
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.transformer import Transformer, as_transformer
from incontext_linear.tasks import Xs, Ys

LABEL_TO_INPUT, QUERY_TO_LABELS, QUERY_TO_INPUTS = (
    "label_to_input",
    "query_to_labels",
    "query_to_inputs",
)
KINDS = (LABEL_TO_INPUT, QUERY_TO_LABELS, QUERY_TO_INPUTS)
"""Ways of looking back: y_i at x_i; the query at earlier labels; the query at earlier inputs."""
MATCHING = "matching"
"""Beside them: how far the query's attention to y_i follows (x_q · x_i)², as a correlation."""


@dataclass(frozen=True)
class _Pattern:
    """A way of looking back: which tokens look, and where to."""

    looking: Bool[Tensor, " token"]
    target: Bool[Tensor, "token token"]

    def excess(self, attention: Float[Tensor, "*batch token token"]) -> Float[Tensor, "*batch"]:
        """Mean over the looking tokens of (share − even) / (1 − even)."""
        tokens = torch.arange(len(self.looking), device=attention.device)
        visible = (tokens[None, :] <= tokens[:, None]).double()
        even = (visible * self.target).sum(-1) / visible.sum(-1)
        share = (attention * self.target).sum(-1)
        return ((share - even) / (1 - even))[..., self.looking].mean(-1)


def _patterns(num_tokens: int, device: torch.device) -> dict[str, _Pattern]:
    tokens = torch.arange(num_tokens, device=device)
    is_label = tokens % 2 == 1
    query = ~is_label & (tokens > 0)
    before = tokens[None, :] < tokens[:, None]
    own_input = tokens[None, :] == tokens[:, None] - 1
    return {
        LABEL_TO_INPUT: _Pattern(is_label, own_input),
        QUERY_TO_LABELS: _Pattern(query, before & is_label),
        QUERY_TO_INPUTS: _Pattern(query, before & ~is_label),
    }


@torch.no_grad()
def head_scores(
    model: Transformer, xs: Xs, ys: Ys, prompts_at_once: int = 64
) -> dict[str, Float[Tensor, "layer head"]]:
    """Every head's score for each of `KINDS`, and its `MATCHING`, as means over prompts."""
    totals: dict[str, Tensor] = {}
    for batch in zip(xs.split(prompts_at_once), ys.split(prompts_at_once), strict=True):
        attention = model.attention_weights(*batch).double()  # (L, B, M, T, T)
        found = {
            name: pattern.excess(attention)
            for name, pattern in _patterns(attention.shape[-1], attention.device).items()
        }
        found[MATCHING] = _matching(attention, batch[0])
        for name, values in found.items():
            totals[name] = totals.get(name, 0) + values.sum(1)
    return {name: total / len(xs) for name, total in totals.items()}


def _matching(
    attention: Float[Tensor, "layer batch head token token"], xs: Xs
) -> Float[Tensor, "layer batch head"]:
    """Correlation over the labels seen, at the last query, of attention with (x_q · x_i)²."""
    to_labels = attention[:, :, :, -1, 1::2]
    likeness = (xs[:, :-1].double() @ xs[:, -1, :, None].double()).squeeze(-1).square()
    first = to_labels - to_labels.mean(-1, keepdim=True)
    second = (likeness - likeness.mean(-1, keepdim=True))[None, :, None]
    size = first.norm(dim=-1) * second.norm(dim=-1)
    return (first * second).sum(-1) / size.clamp_min(1e-30)


def head_table(trajectories: Trajectories, xs: Xs, ys: Ys, device: str) -> pd.DataFrame:
    """Scores of every head at every step: ``seed``, ``step``, ``kind``, ``layer``, ``head``,
    ``score``; layers and heads count from 1.
    """
    where, rows = resolve_device(device), []
    xs, ys = xs.to(where), ys.to(where)
    for seed in trajectories.seeds:
        for step, learner in trajectories.learners(seed):
            scores = head_scores(as_transformer(on_device(learner.model, where)), xs, ys)
            for kind, values in scores.items():
                for (layer, head), score in np.ndenumerate(values.cpu().numpy()):
                    rows.append((seed, step, kind, layer + 1, head + 1, float(score)))
    return pd.DataFrame(rows, columns=["seed", "step", "kind", "layer", "head", "score"])


def strongest_heads(table: pd.DataFrame) -> pd.DataFrame:
    """The largest score of any head: ``seed``, ``kind``, ``step``, ``score``, ``layer``,
    ``head``.
    """
    best = table.groupby(["seed", "kind", "step"], sort=False)["score"].idxmax()
    return table.loc[best, ["seed", "kind", "step", "score", "layer", "head"]].reset_index(
        drop=True
    )


def appearances(
    strongest: pd.DataFrame, looking_back: float, kinds: Sequence[str] = KINDS
) -> pd.DataFrame:
    """From which snapshot on some head looks back so, until the end.

    Returns:
        ``kind``, ``seed``, ``step`` (not a number if there is none at the end), and ``layer`` of
        the strongest head at the last step.
    """
    rows = []
    for (kind, seed), table in strongest.groupby(["kind", "seed"], sort=False):
        if kind not in kinds:
            continue
        ordered = table.sort_values("step")
        short = np.flatnonzero(ordered["score"].to_numpy() < looking_back)
        first = short[-1] + 1 if len(short) else 0
        there = first < len(ordered)
        step = float(ordered["step"].iloc[first]) if there else float("nan")
        rows.append((kind, seed, step, int(ordered["layer"].iloc[-1])))
    return pd.DataFrame(rows, columns=["kind", "seed", "step", "layer"])
