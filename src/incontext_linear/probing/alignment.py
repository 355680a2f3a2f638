"""Distributed alignment search: which variable of an algorithm do a layer's states hold, and use?

At a layer and a set of positions an orthonormal basis Q is learned such that exchanging the states
along it, h_r + QQᵀ(h_d − h_r), gives the answer that a causal model predicts (Geiger et al. 2023,
"Finding alignments between interpretable causal variables and distributed neural representations").
One search serves all ranks: in every step each pair is exchanged along the first r columns, for one
r of the list. The searches of all causal models at a place run stacked.

`alignment_scores` defines what is reported, `alignment_controls` what it is compared with, and
`alignment_rule` when a variable counts as found.

Shape letters: C searches, B pairs, H width, R largest rank.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import TaskConfig
from incontext_linear.learner.base import ContinuableLearner
from incontext_linear.probing.alignment_config import AlignmentConfig, SearchConfig
from incontext_linear.probing.alignment_controls import (
    natural_span,
    random_bases,
    read_directions,
    split_bases,
    unnaturalness,
)
from incontext_linear.probing.alignment_scores import (
    AnswerFit,
    Counterfactuals,
    Scale,
    ceiling_shares,
    mean_share,
    share_table,
)
from incontext_linear.probing.causal_models import CausalModel, build_causal_models
from incontext_linear.probing.exchange import (
    LayerPairs,
    PromptPairs,
    exchange,
    frozen,
    layer_pairs,
)
from incontext_linear.tasks import generator

Cell = tuple[int, str, str]
"""Layer, positions, causal model."""
FEW = 256
"""Pairs that gradients and regressions of edited answers are taken on."""


@dataclass(frozen=True)
class Search:
    """What stays the same at all places of one learner.

    Attributes:
        model: the learner, frozen.
        models: the causal models by name.
        config: ranks, pairs, steps.
        ranks: ascending.
        seed: of starts, batches and intervals.
        train: counterfactuals of the pairs that searches and regressions are fitted on.
        test: those of the pairs that score.
        scales: by the causal model's name.
    """

    model: ContinuableLearner
    models: Mapping[str, CausalModel]
    config: AlignmentConfig
    ranks: tuple[int, ...]
    seed: int
    train: Counterfactuals
    test: Counterfactuals
    scales: Mapping[str, Scale]

    @property
    def num_fitted(self) -> int:
        """Pairs that searches are fitted on; the rest of ``train`` chooses among restarts."""
        return self.config.num_train_pairs


@dataclass(frozen=True)
class Place:
    """One layer and set of positions: the states of the pairs that are fitted, and that score."""

    positions: str
    train: LayerPairs
    test: LayerPairs

    @cached_property
    def span(self) -> Float[Tensor, "width varying"]:
        """The directions in which natural states vary here."""
        return natural_span(self.train, self.positions)


def align(
    model: ContinuableLearner | nn.Module,
    task: TaskConfig,
    config: AlignmentConfig,
    seed: int,
    cells: Collection[Cell] | None = None,
    shuffle: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Search for every causal model's variable in every layer and at all positions.

    Args:
        model: the learner, on the device.
        task: what prompts are drawn from.
        config: causal models, places, ranks, pairs.
        seed: of prompts, searches and intervals.
        cells: only these (layer, positions, model); None: all.
        shuffle: the control in which each pair is given the next one's counterfactual.
        dtype: of prompts and states: the learner's.
        device: where the prompts are drawn.

    Returns:
        One row a layer, positions, model and rank, with `share_table`'s columns and ``changed``
        (what exchanging whole states changes, in units of the answers' variance), ``searched``,
        ``ceiling``, ``whole_states`` (the share when whole states are exchanged), ``random``
        (the mean share of random subspaces of this rank), ``read`` and ``dormant`` (the shares of
        the subspace's parts that later layers read and do not), ``read_rank`` and ``unnatural``.

    Raises:
        ValueError: if k examples leave no query.
    """
    seen = config.examples_for(task.dim, task.num_examples)
    size = config.num_train_pairs + config.num_validation_pairs
    fitted, scored = (
        PromptPairs.draw(task, number, seen, seed, f"alignment {part}", dtype, device)
        for part, number in (("search", size), ("test", config.num_test_pairs))
    )
    network, found = frozen(model), None
    tables: list[pd.DataFrame] = []
    for train, test in zip(layer_pairs(network, fitted), layer_pairs(network, scored), strict=True):
        if found is None:
            found = _prepare(network, (fitted, train), (scored, test), config, seed, shuffle)
            ceilings = ceiling_shares(network, found.models, scored, found.train, found.test)
        if config.layers is not None and train.layer not in config.layers:
            continue
        for positions in config.positions:
            names = _asked(found, train.layer, positions, cells)
            if names:
                tables.append(_align_at(found, Place(positions, train, test), names))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(ceiling=table["model"].map(ceilings), examples_seen=seen)


def _prepare(
    model: ContinuableLearner,
    fitted: tuple[PromptPairs, LayerPairs],
    scored: tuple[PromptPairs, LayerPairs],
    config: AlignmentConfig,
    seed: int,
    shuffle: bool,
) -> Search:
    models, algorithm = build_causal_models(config.models), config.algorithm.build()
    train, test = (
        Counterfactuals.of(models, pairs, states.unchanged, algorithm)
        for pairs, states in (fitted, scored)
    )
    if shuffle:
        train, test = train.shuffled(), test.shuffled()
    dim, width = fitted[0].recipient.query.shape[-1], fitted[1].recipient.shape[-1]
    scales = {name: Scale.fit(name, train) for name in models}
    ranks = config.ranks_for(dim, width)
    return Search(model, models, config, ranks, seed, train, test, scales)


def _asked(
    search: Search, layer: int, positions: str, cells: Collection[Cell] | None
) -> tuple[str, ...]:
    return tuple(
        name
        for name, causal in search.models.items()
        if (positions == "query" or not causal.in_query_only)
        and (cells is None or (layer, positions, name) in cells)
    )


@torch.no_grad()
def _align_at(search: Search, place: Place, names: Sequence[str]) -> pd.DataFrame:
    """All causal models at one place."""
    width, test = place.test.recipient.shape[-1], search.test
    identity = torch.eye(width).to(place.test.recipient)[None]
    whole = exchange(search.model, place.test, place.positions, identity)[0]
    changed = ((whole - test.unchanged).square().mean() / test.unchanged.var()).item()
    index = pd.MultiIndex.from_product((names, search.ranks), names=["model", "rank"])
    table = index.to_frame(index=False)
    table.insert(0, "positions", place.positions)
    table.insert(0, "layer", place.test.layer)
    shares = {name: mean_share(search.scales[name], whole, test) for name in names}
    table = table.assign(
        changed=changed,
        searched=changed >= search.config.least_change,
        whole_states=table["model"].map(shares),
    )
    if changed < search.config.least_change:
        return table
    with torch.enable_grad():
        bases = _best_bases(search, place, names)
    scored = _score(search, place, names, bases)
    return pd.concat((table, scored), axis=1)


def _best_bases(
    search: Search, place: Place, names: Sequence[str]
) -> Float[Tensor, "search width rank"]:
    """Learn a basis for each model; of several restarts the best on validation pairs."""
    wanted = torch.stack([search.train[name] for name in names])
    scale = torch.stack([search.scales[name].variance for name in names])
    fitted, chosen = slice(search.num_fitted), slice(search.num_fitted, None)
    settings, found, errors = search.config.search, [], []
    for restart in range(settings.restarts):
        bases = learn_bases(
            search.model,
            place.train[fitted],
            place.positions,
            place.span,
            wanted[:, fitted],
            scale,
            search.ranks,
            settings,
            search.seed + restart,
        )
        found.append(bases)
        with torch.no_grad():
            answers = torch.stack(
                [
                    exchange(search.model, place.train[chosen], place.positions, bases[:, :, :rank])
                    for rank in search.ranks
                ]
            )
        errors.append((answers - wanted[:, chosen]).square().mean((0, 2)))
    best = torch.stack(errors).argmin(0)
    return torch.stack(found)[best, torch.arange(len(names), device=best.device)]


def learn_bases(
    model: ContinuableLearner,
    pairs: LayerPairs,
    positions: str,
    span: Float[Tensor, "width varying"],
    wanted: Float[Tensor, "search batch"],
    scale: Float[Tensor, " search"],
    ranks: Sequence[int],
    config: SearchConfig,
    seed: int,
) -> Float[Tensor, "search width rank"]:
    """Learn a basis for each counterfactual, all of them stacked; its first r columns are rank r.

    Args:
        model: the learner, frozen.
        pairs: states of one layer.
        positions: where they are exchanged.
        span: orthonormal columns that the subspaces lie in.
        wanted: the counterfactuals.
        scale: what each one's mean squared error is divided by.
        ranks: ascending.
        config: steps, pairs a step, rate.
        seed: of the start and of the batches.

    Returns:
        Orthonormal columns (C, H, R), R the largest rank that the span has.
    """
    size = span.shape[1]
    most = min(ranks[-1], size)
    rng = generator(seed, f"alignment at the {positions}", pairs.layer)
    raw = torch.randn(len(wanted), size, most, generator=rng).to(span).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    rank_of = torch.tensor(ranks)[torch.arange(config.batch_size) % len(ranks)]
    kept = (torch.arange(most) < rank_of[:, None]).to(raw).expand(len(wanted), -1, -1)
    for _ in range(config.num_steps):
        rows = torch.randint(len(pairs), (config.batch_size,), generator=rng).to(raw.device)
        bases = span @ torch.linalg.qr(raw).Q
        answers = exchange(model, pairs[rows], positions, bases, kept)
        loss = ((answers - wanted[:, rows]).square().mean(1) / scale).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return span @ torch.linalg.qr(raw.detach()).Q


def _score(
    search: Search, place: Place, names: Sequence[str], bases: Float[Tensor, "search width rank"]
) -> pd.DataFrame:
    """Rows of all models and ranks: shares with intervals, and the controls beside them."""
    config, terms, rows = search.config, [], {}
    few = place.train[:FEW]
    with torch.enable_grad():
        read = read_directions(search.model, few, place.positions, config.read_share, place.span)
    rng = generator(search.seed, "random subspaces", place.test.layer)
    for rank in search.ranks:
        shown = bases[:, :, :rank]
        parts = torch.cat((shown, *split_bases(shown, read)))
        edited, readable, dormant = _answers(search, place.test, place, parts).chunk(3)
        fitted = _answers(search, few, place, shown)
        drawn = random_bases(config.num_random, place.span, rank, rng)
        at_random = _answers(search, place.test, place, drawn)
        unnatural = unnaturalness(place.train.recipient, place.test, place.positions, shown)
        for at, name in enumerate(names):
            scale = search.scales[name]
            on_few = Counterfactuals(
                search.train.names, search.train.values[:, :FEW], search.train.unchanged[:FEW]
            )
            fit = AnswerFit.fit(name, fitted[at], on_few)
            rows[name, rank] = {
                "terms": scale.terms(edited[at], fit, search.test),
                "random": sum(mean_share(scale, row, search.test) for row in at_random)
                / len(at_random),
                "read": mean_share(scale, readable[at], search.test),
                "dormant": mean_share(scale, dormant[at], search.test),
                "unnatural": unnatural[at].item(),
            }
    ordered = [rows[name, rank] for name in names for rank in search.ranks]
    terms = [row.pop("terms") for row in ordered]
    shares = share_table(terms, config.rule.unique, config.bootstrap, search.seed)
    return pd.concat((shares, pd.DataFrame(ordered)), axis=1).assign(read_rank=read.shape[1])


def _answers(search: Search, pairs: LayerPairs, place: Place, bases: Tensor) -> Tensor:
    """Answers (C, B) after every exchange, a few subspaces at a time."""
    return torch.cat(
        [exchange(search.model, pairs, place.positions, part) for part in bases.split(4)]
    )
