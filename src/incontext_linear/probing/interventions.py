"""Does the learner use what a probe reads? Change it, and see whether the prediction follows.

The states of one prompt (the recipient) are changed in one layer towards another's (the donor), the
later layers run on, and the prediction for the recipient's query is compared with its unchanged
value ŷ_r and with ŷ_d, the one behind the donor's examples. With ŷ_e the changed prediction,

    moved fraction = E[(ŷ_e − ŷ_r)(ŷ_d − ŷ_r)] / E[(ŷ_d − ŷ_r)²]   0: unmoved, 1: the donor's answer
    distance left  = E[(ŷ_e − ŷ_d)²] / E[(ŷ_d − ŷ_r)²]             1: unmoved, 0: the donor's answer

`docs/reference/probing.md` says what a positive and a null result mean, and how much an edit
can move at all. An intervention is a small class (`Intervention`) that the parameters name; the
module's own are `minimal_edit`, `pattern_edit`, `interchange_attended` and `interchange_context`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.config import BootstrapConfig, import_dotted
from incontext_linear.learner.base import (
    ContinuableLearner,
    check_learner,
    predict_from,
    residual_streams,
)
from incontext_linear.learner.saved import Learner
from incontext_linear.probing.config import INTERVENTIONS, RANDOM, ProbingConfig
from incontext_linear.probing.readouts import MAKE_PROBES, LinearReadout, unpack_readout
from incontext_linear.probing.selection import FITTED_ON, Selection, identify
from incontext_linear.statistics import ratio_interval
from incontext_linear.tasks import Xs, Ys, generator

NO_TARGET = "all"
"""Target, in tables, of an intervention that follows no probe."""


@dataclass(frozen=True)
class LayerStates:
    """What an intervention is given at one layer: hidden states (B, T, H), the query's token last.

    With B pairs and N other prompts, none of which is in a pair.
    """

    recipient: Float[Tensor, "batch token width"]
    donor: Float[Tensor, "batch token width"]
    others: Float[Tensor, "other token width"]
    """Of prompts that the probes were fitted on: to estimate on, never of the pairs themselves."""
    readout: LinearReadout | None
    """The layer's linear probe of the target; None for interventions that follow no probe."""
    rng: torch.Generator

    @property
    def change(self) -> Float[Tensor, "batch size"]:
        """Δv: what the probe reads of the donor, minus what it reads of the recipient."""
        return self.readout.decode(self.donor) - self.readout.decode(self.recipient)

    @property
    def context(self) -> Bool[Tensor, " token"]:
        """All tokens before the query's own, which comes to hold the answer that any layer would
        pass on.
        """
        num_tokens = self.recipient.shape[1]
        return torch.arange(num_tokens, device=self.recipient.device) < num_tokens - 1


class Intervention(ABC):
    """A change of the recipients' hidden states in one layer.

    A class of one's own is named in the parameters by its dotted path; it is made without
    arguments.
    """

    follows_probe = True
    """Whether it is made for each target, with the target's probe; otherwise once."""
    limited_by_probe = False
    """Whether it changes no more than what the probe reads: its ceiling is then lower."""

    @abstractmethod
    def __call__(self, states: LayerStates) -> Float[Tensor, "batch token width"]:
        """The recipients' hidden states as they are after it."""


@dataclass(frozen=True)
class MinimalEdit(Intervention):
    """The smallest change that makes the probe read the donor's value.

    The read-out is linear in all positions together, v̂ = Σₜ αₜ Mᵀhₜ + b. Of all δ with Σₜ αₜ Mᵀδₜ
    = Δv, the one of least Σₜ‖δₜ‖² is δₜ = αₜ/‖α‖² · M(MᵀM)⁻¹Δv: in the read-out's own space, and
    only where the probe looks.
    """

    limited_by_probe = True

    def __call__(self, states: LayerStates) -> Float[Tensor, "batch token width"]:
        readout = states.readout
        profile = readout.attention / readout.attention.square().sum()
        direction = states.change @ torch.linalg.pinv(readout.matrix)  # (B, H)
        return states.recipient + profile[:, None] * direction[:, None]


@dataclass(frozen=True)
class PatternEdit(Intervention):
    """The change that goes along with the probe's reading across other prompts, at all positions.

    δₜ = Cov(hₜ, v̂) Cov(v̂)⁻¹ Δv: what the states would be expected to differ by, had the probe
    read another value (Haufe et al. 2014: a decoder's filter is not the pattern it detects). It
    changes the reading by Δv too; of all edits that do, it is the smallest in the metric of the
    states' covariance.

    Covariances come from prompts that are in no pair: among N prompts, a pair's own part in the
    estimate is about D/N of the whole difference of donor and recipient, which would move the
    prediction by as much.
    """

    limited_by_probe = True

    def __call__(self, states: LayerStates) -> Float[Tensor, "batch token width"]:
        centred = states.others - states.others.mean(0)
        decoded = states.readout.decode(states.others)
        decoded = decoded - decoded.mean(0)
        covariance = torch.einsum("bth,bd->thd", centred, decoded)
        loadings = covariance @ torch.linalg.pinv(decoded.mT @ decoded)
        return states.recipient + torch.einsum("thd,bd->bth", loadings, states.change)


@dataclass(frozen=True)
class RandomDirection(Intervention):
    """A random direction with another edit's norm at every position: that edit's control."""

    of: Intervention

    @property
    def follows_probe(self) -> bool:
        """As the other edit does."""
        return self.of.follows_probe

    def __call__(self, states: LayerStates) -> Float[Tensor, "batch token width"]:
        edit = self.of(states) - states.recipient
        direction = torch.randn(len(edit), 1, edit.shape[2], generator=states.rng).to(edit)
        scaled = direction / direction.norm(dim=-1, keepdim=True)
        return states.recipient + edit.norm(dim=-1, keepdim=True) * scaled


@dataclass(frozen=True)
class InterchangeAttended(Intervention):
    """The donor's states at the fewest context tokens that hold a share of the probe's attention
    to the context.
    """

    share: float = 0.9

    def __call__(self, states: LayerStates) -> Float[Tensor, "batch token width"]:
        positions = torch.zeros_like(states.context)
        positions[:-1] = attended_positions(states.readout.attention[:-1], self.share)
        return torch.where(positions[:, None], states.donor, states.recipient)


@dataclass(frozen=True)
class InterchangeContext(Intervention):
    """The donor's states at all tokens before the query: how much of the answer is still open."""

    follows_probe = False

    def __call__(self, states: LayerStates) -> Float[Tensor, "batch token width"]:
        return torch.where(states.context[:, None], states.donor, states.recipient)


def attended_positions(
    attention: Float[Tensor, " token"], share: float = 0.9
) -> Bool[Tensor, " token"]:
    """The fewest positions that together hold at least ``share`` of the attention."""
    weights, order = attention.sort(descending=True)
    needed = weights.cumsum(0) - weights < share * weights.sum()
    return torch.zeros_like(attention, dtype=torch.bool).scatter(0, order, needed)


_OWN: dict[str, Intervention] = dict(
    zip(
        INTERVENTIONS,
        (MinimalEdit(), PatternEdit(), InterchangeAttended(), InterchangeContext()),
        strict=True,
    )
)


def build_interventions(methods: Iterable[str]) -> dict[str, Intervention]:
    """The interventions that the parameters name, in their order.

    Args:
        methods: names of the module's own or dotted paths; with ``_random`` behind it, the random
            direction of that one's norm.

    Raises:
        ValueError: if a dotted path leads to no intervention.
    """
    return {name: _build(name) for name in methods}


def _build(name: str) -> Intervention:
    if name in _OWN:
        return _OWN[name]
    if name.endswith(RANDOM):
        return RandomDirection(_build(name.removesuffix(RANDOM)))
    try:
        kind = import_dotted(name)
    except ValueError as error:
        raise ValueError(
            f"cannot import or make the intervention {name!r} ({error}); allowed: the path of a "
            "class that is made without arguments"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Intervention)):
        raise ValueError(
            f"{name!r} is not an intervention; allowed: a subclass of {Intervention.__module__}."
            f"{Intervention.__name__}"
        )
    try:
        return kind()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"cannot import or make the intervention {name!r} ({error}); allowed: the path of a "
            "class that is made without arguments"
        ) from error


class Pairs(NamedTuple):
    """k examples each, and the recipient's query after both: xs (B, k+1, d), ys (B, k+1)."""

    recipient: tuple[Tensor, Tensor]
    donor: tuple[Tensor, Tensor]


def pair_prompts(xs: Xs, ys: Ys, examples_seen: int) -> Pairs:
    """Pair the first half of the prompts with the second: recipients, and donors of the examples.

    No prompt is in two pairs, so pairs are independent and may be resampled as such. Of an odd
    number the last prompt is left out.

    Raises:
        ValueError: if there are fewer than two prompts.
    """
    half, k = len(xs) // 2, examples_seen
    if half < 1:
        raise ValueError(
            f"{len(xs)} test prompts give no pair of a recipient and a donor; allowed: at least 2 "
            "(probing.fit.test_fraction of the probing prompts)"
        )
    own, others = slice(half), slice(half, 2 * half)
    donor_xs = torch.cat((xs[others, :k], xs[own, k : k + 1]), dim=1)
    donor_ys = torch.cat((ys[others, :k], ys[own, k : k + 1]), dim=1)
    return Pairs((xs[own, : k + 1], ys[own, : k + 1]), (donor_xs, donor_ys))


class Movements(NamedTuple):
    """Predictions for the recipients' queries; interventions by (method, target, layer)."""

    recipient: Tensor
    """Unchanged, (B,)."""
    donor: Tensor
    """Behind the donors' examples, (B,)."""
    edited: dict[tuple[str, str, int], Tensor]
    """After every intervention, (B,)."""
    norms: dict[tuple[str, str, int], float]
    """Mean norm of the change of the hidden states, as a share of the distance from recipient to
    donor.
    """
    ceilings: dict[tuple[str, str, int], float]
    """The fraction that it can move at most, about; NaN where that is not known."""


@torch.no_grad()
def intervene(
    model: ContinuableLearner,
    pairs: Pairs,
    others: tuple[Float[Tensor, "other example dim"], Float[Tensor, "other example"]],
    methods: Mapping[str, Intervention],
    readouts: Mapping[str, Mapping[int, LinearReadout]],
    layers: Sequence[int],
    rng: torch.Generator,
) -> Movements:
    """Predictions for the recipients' queries after every intervention.

    Args:
        model: the learner.
        pairs: recipients and donors.
        others: xs and ys of prompts that are in no pair, as long.
        methods: the interventions by name, as `build_interventions` makes them.
        readouts: target → layer → the linear probe whose reading is replaced by the donor's.
        layers: where to intervene, 0 being the embedding.
        rng: draws the random directions.
    """
    start, goal = (predict_from(model, model.embed(*prompts), 0)[:, -1] for prompts in pairs)
    edited, norms, ceilings = {}, {}, {}
    streams = (residual_streams(model, *prompts) for prompts in (*pairs, others))
    for (layer, recipient), (_, donor), (_, other) in zip(*streams, strict=True):
        if layer not in layers:
            continue
        distance = (donor - recipient).flatten(1).norm(dim=1).mean()
        probes = {target: by_layer[layer] for target, by_layer in readouts.items()}
        given = LayerStates(recipient, donor, other, None, rng)
        exchanged = predict_from(model, InterchangeContext()(given), layer)[:, -1]
        still_open = _moved_fraction(start, goal, exchanged)
        for (method, target), intervention in _applications(methods, probes).items():
            readout = probes.get(target)
            hidden = intervention(LayerStates(recipient, donor, other, readout, rng))
            name = method, target, layer
            edited[name] = predict_from(model, hidden, layer)[:, -1]
            moved = (hidden - recipient).flatten(1).norm(dim=1).mean()
            norms[name] = (moved / distance).item()
            ceilings[name] = _ceiling(intervention, readout, still_open)
    return Movements(start, goal, edited, norms, ceilings)


def _applications(
    methods: Mapping[str, Intervention], targets: Iterable[str]
) -> dict[tuple[str, str], Intervention]:
    """(method, target) → intervention: those that follow no probe once, the others for each."""
    once = {(m, NO_TARGET): i for m, i in methods.items() if not i.follows_probe}
    return once | {
        (m, target): i for target in targets for m, i in methods.items() if i.follows_probe
    }


def _moved_fraction(start: Tensor, goal: Tensor, edited: Tensor) -> float:
    whole = (goal - start).double()
    return (((edited - start) * whole).sum() / whole.square().sum()).item()


def _ceiling(intervention: Intervention, readout: LinearReadout | None, still_open: float) -> float:
    """About what an intervention can move at most: where the context is still to be read, a share.

    Exchanging the whole context moves ``still_open``. An edit of what a probe with R² = ρ reads
    reaches about the share ρ of it.
    """
    if isinstance(intervention, RandomDirection) or readout is None:
        return float("nan")
    if intervention.limited_by_probe:
        return max(readout.r_squared, 0.0) * still_open
    return still_open


def movement_table(movements: Movements, bootstrap: BootstrapConfig, seed: int) -> pd.DataFrame:
    """How far every intervention moves the prediction, with intervals over pairs.

    Returns:
        ``method``, ``target``, ``layer``, the moved fraction (``fraction``, ``low``, ``high``), the
        distance left (``distance``, ``distance_low``, ``distance_high``), the ``norm`` of the
        change and the ``ceiling``, the fraction that it can move at most.
    """
    predictions = torch.stack(list(movements.edited.values()), dim=1).double().cpu().numpy()
    start, goal = (values.double().cpu().numpy()[:, None] for values in movements[:2])
    whole = np.broadcast_to((goal - start) ** 2, predictions.shape)
    fraction = ratio_interval((predictions - start) * (goal - start), whole, bootstrap, seed)
    distance = ratio_interval((predictions - goal) ** 2, whole, bootstrap, seed)
    keys = pd.DataFrame(list(movements.edited), columns=["method", "target", "layer"])
    distance.columns = ["distance", "distance_low", "distance_high"]
    table = pd.concat((keys, fraction.rename(columns={"mean": "fraction"}), distance), axis=1)
    return table.assign(
        norm=[movements.norms[name] for name in movements.edited],
        ceiling=[movements.ceilings[name] for name in movements.edited],
    )


def measure_causality(
    learner: Learner,
    selection: Selection,
    readouts: Mapping[str, Tensor],
    probing: ProbingConfig,
    seed: int,
) -> pd.DataFrame:
    """Change what the layers hold to a donor prompt's, and measure how far the prediction follows.

    Recipients and donors are test prompts, which no probe was fitted on; patterns are estimated on
    those that were.

    Args:
        learner: the learner.
        selection: its prompts, layers and numbers of examples.
        readouts: the linear probes, as `fit_learner` packs them.
        probing: targets, interventions, number of pairs, intervals.
        seed: of the random directions and of the bootstrap.

    Returns:
        `movement_table` with the column ``examples_seen``.

    Raises:
        ValueError: if the read-outs were fitted on another learner or on other prompts, or if one
            is missing.
    """
    fitted_on, given = readouts.get(FITTED_ON), identify(learner, selection)
    if fitted_on is None or not torch.equal(fitted_on.cpu(), given):
        raise ValueError(
            f"the saved probes are of another learner or of other prompts; {MAKE_PROBES}"
        )
    config, split = probing.interventions, selection.split
    model, methods = selection.place(learner), build_interventions(config.methods)
    check_learner(model, "interventions")
    chosen, others = (
        part.to(selection.device) for part in (split.test[: 2 * config.num_pairs], split.train)
    )
    tables = []
    for seen in selection.context_lengths:
        pairs = pair_prompts(selection.xs[chosen], selection.ys[chosen], seen)
        of_others = selection.xs[others, : seen + 1], selection.ys[others, : seen + 1]
        probes = {
            target: {
                layer: unpack_readout(
                    readouts, target, seen, layer, selection.device, selection.num_tokens(seen)
                )
                for layer in selection.layers
            }
            for target in config.targets
        }
        rng = generator(seed, "random directions", seen)
        moved = intervene(model, pairs, of_others, methods, probes, selection.layers, rng)
        table = movement_table(moved, probing.bootstrap, seed)
        table.insert(2, "examples_seen", seen)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
