"""Distributed alignment search: which variable of an algorithm do a layer's states hold, and use?

At a layer and a set of positions an orthonormal basis Q is learned such that exchanging the states
along it, h_r + QQᵀ(h_d − h_r), gives the answer that a causal model predicts (Geiger et al. 2023,
"Finding alignments between interpretable causal variables and distributed neural representations").
`alignment_search` says how it is learned; the searches of all causal models at a place run stacked.

`alignment_scores` defines what is reported, `alignment_controls` what it is compared with, and
`alignment_rule` when a variable counts as found.
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
from incontext_linear.probing.alignment_config import AlignmentConfig
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
from incontext_linear.probing.alignment_search import SearchPairs, learn_bases
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
        """Pairs that searches are fitted on; the rest of ``train`` chooses among starts."""
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
        the subspace's parts that later layers read and do not; NaN where its share is not above
        0), ``read_rank`` and ``unnatural``.

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
    bases = _best_bases(search, place, names)
    scored = _score(search, place, names, bases)
    return pd.concat((table, scored), axis=1)


def _best_bases(
    search: Search, place: Place, names: Sequence[str]
) -> dict[int, Float[Tensor, "search width rank"]]:
    """Learn a basis for each model and rank; among starts the best on validation pairs."""
    pairs = SearchPairs(
        place.train,
        place.positions,
        place.span,
        torch.stack([search.train[name] for name in names]),
        torch.stack([search.scales[name].variance for name in names]),
    )
    fitted, chosen = pairs[: search.num_fitted], pairs[search.num_fitted :]
    rng = generator(search.seed, f"alignment at the {place.positions}", place.train.layer)
    return learn_bases(search.model, fitted, chosen, search.ranks, search.config.search, rng)


def _score(
    search: Search, place: Place, names: Sequence[str], bases: Mapping[int, Tensor]
) -> pd.DataFrame:
    """Rows of all models and ranks: shares with intervals, and the controls beside them."""
    config, span = search.config, place.span.shape[1]
    few = place.train[:FEW]
    with torch.enable_grad():
        read = read_directions(search.model, few, place.positions, config.read_share, place.span)
    rng = generator(search.seed, "random subspaces", place.test.layer)
    # All ranks that reach the span's are the whole span, and are scored once.
    different = {min(rank, span): bases[rank] for rank in search.ranks}
    scored = {
        rank: _score_rank(search, place, names, shown, read, rng)
        for rank, shown in different.items()
    }
    ordered = [scored[min(rank, span)][at] for at in range(len(names)) for rank in search.ranks]
    terms, controls = zip(*ordered, strict=True)
    shares = share_table(terms, config.rule.unique, config.bootstrap, search.seed)
    return pd.concat((shares, pd.DataFrame(controls)), axis=1).assign(read_rank=read.shape[1])


def _score_rank(
    search: Search,
    place: Place,
    names: Sequence[str],
    shown: Float[Tensor, "search width rank"],
    read: Float[Tensor, "width read"],
    rng: torch.Generator,
) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    """The terms of each model's shares, and its controls, at one rank."""
    few, test, rank = place.train[:FEW], search.test, shown.shape[2]
    fitted = exchange(search.model, few, place.positions, shown)
    edited = exchange(search.model, place.test, place.positions, shown)
    drawn = random_bases(search.config.num_random, place.span, rank, rng)
    at_random = exchange(search.model, place.test, place.positions, drawn)
    unnatural = unnaturalness(place.train.recipient, place.test, place.positions, shown)
    on_few = Counterfactuals(
        search.train.names, search.train.values[:, :FEW], search.train.unchanged[:FEW]
    )
    rows = []
    for at, name in enumerate(names):
        scale = search.scales[name]
        fit = AnswerFit.fit(name, fitted[at], on_few)
        random = sum(mean_share(scale, row, test) for row in at_random) / len(at_random)
        controls = {"random": random, "unnatural": unnatural[at].item()}
        controls |= _parts_shares(search, place, scale, shown[at], edited[at], read)
        rows.append((scale.terms(edited[at], fit, test), controls))
    return rows


def _parts_shares(
    search: Search,
    place: Place,
    scale: Scale,
    basis: Float[Tensor, "width rank"],
    answers: Float[Tensor, " batch"],
    read: Float[Tensor, "width read"],
) -> dict[str, float]:
    """The shares of what later layers read of a subspace, and of what is dormant; NaN where the
    subspace itself has none, so that nothing can be a dormant direction's doing.
    """
    share = mean_share(scale, answers, search.test)
    if share <= 0:
        return {"read": float("nan"), "dormant": float("nan")}
    if read.shape[1] == place.span.shape[1]:  # all of it is read
        dormant = mean_share(scale, search.test.unchanged, search.test)
        return {"read": share, "dormant": dormant}
    parts = torch.cat(split_bases(basis[None], read))
    split = exchange(search.model, place.test, place.positions, parts)
    readable, dormant = (mean_share(scale, part, search.test) for part in split)
    return {"read": readable, "dormant": dormant}
