"""The member of each family that is nearest to a learner, and how well its numbers are known.

A family's free numbers minimise the mean over k of log(SPD_k / Var(y)) on calibration prompts of
the training distribution: the logarithm, since SPD spans orders of magnitude over k and its largest
value would decide alone. First on a grid, then by a pattern search around the grid's best. Members
that the training distribution does not tell apart (100 and 200 steps of a descent that has
converged, say) are told apart on calibration prompts of the shifts, so that a family is judged by
its best chance. All numbers are then frozen; everything that is concluded uses other prompts.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.comparison.families import Family, Grid, Member
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.predictors.validation import Number
from incontext_linear.statistics import interval, resampled_means

FLOOR = 1e-12
"""Share of Var(y) that counts as no distance: what rounding leaves."""
CEILING = 1e6
"""Share of Var(y) that stands for a prediction that diverged."""
RESOLUTION = 1e-4
"""Step, in the logarithm of a number, at which the search ends."""


@dataclass(frozen=True)
class Calibration:
    """Prompts that numbers are fitted on, and what the learner predicts there.

    Attributes:
        prefixes: the prompts.
        predictions: the learner's (B, K).
        scale: what squared differences are divided by, such as Var(y); one number, or one a prompt.
    """

    prefixes: Prefixes
    predictions: Float[Tensor, "batch prefix"]
    scale: Float[Tensor, "#batch 1"]

    def first(self, num_prompts: int) -> "Calibration":
        """The first prompts alone."""
        xs, ys = (tensor[:num_prompts] for tensor in (self.prefixes.xs, self.prefixes.ys))
        fewer = Prefixes(xs, ys, self.prefixes.examples_seen)
        scale = self.scale if len(self.scale) == 1 else self.scale[:num_prompts]
        return Calibration(fewer, self.predictions[:num_prompts], scale)

    def distances(
        self, family: Family, members: Sequence[dict[str, Number]]
    ) -> Float[Tensor, "member batch prefix"]:
        """Squared differences to the learner as shares of the scale; divergence is `CEILING`."""
        difference = family.predict(members, self.prefixes) - self.predictions
        shares = difference.square_() / self.scale
        return shares.nan_to_num_(nan=CEILING, posinf=CEILING).clamp_(max=CEILING)


@dataclass(frozen=True)
class FittedFamily:
    """A family's nearest member, and what else was tried.

    Attributes:
        member: the nearest, frozen from here on.
        tried: numbers of every member that was tried.
        distances: of each to the learner (M, B, K), as shares of Var(y).
        tied: how many of those tried are as near as the member on the training distribution.
    """

    member: Member
    tried: list[dict[str, Number]]
    distances: Float[Tensor, "member batch prefix"] = field(repr=False)
    tied: int = 1

    def tables(
        self, confidence: float, num_resamples: int, seed: int
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What is known of the free numbers, over resampled prompts.

        Returns:
            numbers: one row a free number: value, interval, whether an edge was reached.
            contexts: the nearest member at each k alone: does one number hold for all k?
        """
        means = resampled_means(self.distances.cpu().numpy(), num_resamples, seed)
        return self._numbers(means, confidence), self._by_context(means, confidence)

    def _numbers(
        self, means: Float[np.ndarray, "resample member prefix"], confidence: float
    ) -> pd.DataFrame:
        if not self.member.numbers:
            return pd.DataFrame(columns=["family", "number", "value", "low", "high", "at_edge"])
        best = np.log(means + FLOOR).mean(-1).argmin(1)
        return pd.DataFrame(
            [self._row(name, best, confidence) for name in self.member.family.grids]
        )

    def _row(self, name: str, best: np.ndarray, confidence: float) -> dict[str, object]:
        values, grid = self._values(name, best), self.member.family.grids[name]
        low, high = interval(values, confidence, discrete=True)
        value = self.member.numbers[name]
        edge = {round(grid.value(end), 12) for end in grid.ends} & {round(value, 12)}
        return {
            "family": self.member.family.name,
            "number": name,
            "value": float(value),
            "low": float(min(low, value)),
            "high": float(max(high, value)),
            "at_edge": bool(edge),
        }

    def _by_context(
        self, means: Float[np.ndarray, "resample member prefix"], confidence: float
    ) -> pd.DataFrame:
        best = means.argmin(1)
        nearest = self.distances.mean(1).argmin(0)
        rows = []
        for column, k in enumerate(self.member_contexts):
            for name in self.member.family.grids:
                values = self._values(name, best[:, column])
                low, high = map(float, interval(values, confidence, discrete=True))
                value = float(self.tried[int(nearest[column])][name])
                distance = float(self.distances[nearest[column], :, column].mean())
                rows.append((self.member.family.name, k, name, value, low, high, distance))
        columns = ["family", "examples_seen", "number", "value", "low", "high", "distance"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def member_contexts(self) -> range:
        """Numbers of examples seen in calibration: all from 1 on."""
        return range(1, self.distances.shape[-1] + 1)

    def nearest_at(self, examples_seen: Sequence[int]) -> list[dict[str, Number]]:
        """Numbers of the member that is nearest at each k alone."""
        best = self.distances.mean(1).argmin(0)
        return [self.tried[int(best[k - 1])] for k in examples_seen]

    def _values(self, name: str, members: np.ndarray) -> np.ndarray:
        return np.array([float(numbers[name]) for numbers in self.tried])[members]


def fit_family(
    family: Family,
    home: Calibration,
    away: Sequence["Away"] = (),
    tie_tolerance: Number = 0.05,
) -> FittedFamily:
    """Fit a family's free numbers to a learner.

    Args:
        family: what is fitted.
        home: calibration prompts of the training distribution, every k ≥ 1.
        away: calibration prompts of the shifts, which decide between members that are tied.
        tie_tolerance: members are tied if their mean log SPD differs by no more than this.
    """
    search = _Search(family, home)
    grids = family.grids.values()
    starts = list(itertools.product(*(grid.coordinates() for grid in grids)))
    search.try_all(search.screen(starts))
    for start in search.best(2):
        search.descend(start, search.scores)
    for start in _neighbouring_integers(family, search.best(1)[0]):
        search.descend(start, search.scores, integers_stay=True)
    best = search.best(1)[0]
    tied = search.tied(best, tie_tolerance)
    if len(tied) > 1 and away:
        best = _decide_away(search, tied, best, away, tie_tolerance)
    return FittedFamily(
        family.member(search.numbers(best)),
        [search.numbers(point) for point in search.tried],
        torch.stack(list(search.tried.values())),
        len(tied),
    )


Point = tuple[float, ...]


class _Search:
    """Remembers every member tried: coordinates → distances (B, K)."""

    def __init__(self, family: Family, home: Calibration):
        self.family, self.home = family, home
        self.tried: dict[Point, Float[Tensor, "batch prefix"]] = {}
        self._scores: dict[Point, float] = {}

    def numbers(self, point: Point) -> dict[str, Number]:
        pairs = zip(self.family.grids.items(), point, strict=True)
        return {name: grid.value(u) for (name, grid), u in pairs}

    def try_all(self, points: Sequence[Point]) -> None:
        new = [point for point in dict.fromkeys(points) if point not in self.tried]
        if not new:
            return
        distances = self.home.distances(self.family, [self.numbers(point) for point in new])
        scores = (distances.mean(1) + FLOOR).log().mean(-1)
        self._scores |= dict(zip(new, scores.tolist(), strict=True))
        self.tried |= dict(zip(new, distances.float(), strict=True))

    def screen(self, points: list[Point], num_prompts: int = 48, kept: int = 64) -> list[Point]:
        """Those worth a look on all prompts: the best on a few, over all k and at each k."""
        if len(points) <= 2 * kept:
            return points
        few = self.home.first(num_prompts)
        logs = few.distances(self.family, [self.numbers(p) for p in points]).mean(1).log()
        columns = [logs.mean(-1).argsort()[:kept], logs.argsort(0)[: kept // 8].flatten()]
        return [points[i] for i in torch.cat(columns).unique().tolist()]

    def scores(self, points: Sequence[Point]) -> list[float]:
        self.try_all(points)
        return [self._scores[point] for point in points]

    def best(self, count: int) -> list[Point]:
        return sorted(self._scores, key=self._scores.__getitem__)[:count]

    def tied(self, best: Point, tolerance: Number) -> list[Point]:
        limit = self._scores[best] + tolerance
        return [point for point, score in self._scores.items() if score <= limit]

    def descend(
        self,
        start: Point,
        scores: Callable[[Sequence[Point]], list[float]],
        rounds: int = 40,
        integers_stay: bool = False,
    ) -> Point:
        """Pattern search: to the best neighbour, or, where there is none better, by half a step."""
        grids = list(self.family.grids.values())
        steps = [(grid.ends[1] - grid.ends[0]) / (grid.points - 1) for grid in grids]
        if integers_stay:
            pairs = zip(grids, steps, strict=True)
            steps = [0.0 if grid.kind == "integer" else step / 2 for grid, step in pairs]
        for _ in range(rounds // len(grids) if grids else 0):
            moved = [*_moves(steps), *([] if integers_stay else _compensated(grids, start))]
            around = [
                tuple(g.snap(u + move) for g, u, move in zip(grids, start, moves, strict=True))
                for moves in moved
            ]
            around = list(dict.fromkeys(around))
            values = scores(around)
            best = around[int(np.argmin(values))]
            if best == start:
                steps = [step / 2 for step in steps]
                if max(steps) < RESOLUTION:
                    break
            start = best
        return start


def _neighbouring_integers(family: Family, best: Point, largest: int = 64) -> list[Point]:
    """Where to look again with one or two steps more or fewer, each with step sizes of its own.

    A few steps, each of its best size, are so alike that a search by small moves stays with the
    first number of steps it meets.
    """
    grids = list(family.grids.values())
    kinds = [grid.kind for grid in grids]
    if len(set(kinds)) < 2:
        return []
    i = kinds.index("integer")
    value = int(grids[i].value(best[i]))
    starts = []
    for other in range(value - 2, value + 3):
        if other != value and value <= largest and grids[i].low <= other <= grids[i].high:
            change = float(np.log(other / value))
            moved = [
                u - change if kind == "real" else u for u, kind in zip(best, kinds, strict=True)
            ]
            moved[i] = best[i] + change
            starts.append(tuple(g.snap(u) for g, u in zip(grids, moved, strict=True)))
    return starts


def _moves(steps: Sequence[float]) -> list[Point]:
    return list(itertools.product(*((0.0, -step, step) for step in steps)))


def _compensated(grids: Sequence[Grid], start: Point) -> list[Point]:
    """One more or fewer of a whole number, and as much less or more of one of the others.

    Step size times number of steps is what descent depends on most: without these moves a search
    ends where another number of steps would need another step size at once.
    """
    moves = []
    for i, grid in enumerate(grids):
        if grid.kind != "integer" or grid.scale != "log":
            continue
        value = grid.value(start[i])
        for other in (value - 1, value + 1):
            if other < 1:
                continue
            change = float(np.log(other / value))
            alone = [0.0] * len(grids)
            alone[i] = change
            moves.append(tuple(alone))
            for j, kind in enumerate(g.kind for g in grids):
                if kind == "real":
                    moves.append((*alone[:j], -change, *alone[j + 1 :]))
    return moves


def _decide_away(
    search: _Search,
    tied: list[Point],
    best: Point,
    away: Sequence["Away"],
    tolerance: Number,
    limit: int = 32,
) -> Point:
    """Of members that are tied at home, the nearest away from it; no other is looked at."""
    ordered = sorted(tied)
    chosen = [
        ordered[i] for i in np.unique(np.linspace(0, len(tied) - 1, limit).round().astype(int))
    ]
    threshold = search.scores([best])[0] + tolerance
    known: dict[Point, float] = {}

    def scores(points: Sequence[Point]) -> list[float]:
        at_home = dict(zip(points, search.scores(points), strict=True))
        new = [p for p in points if p not in known and at_home[p] <= threshold]
        if new:
            known.update(zip(new, _score_away(search, new, away), strict=True))
        return [known.get(point, np.inf) for point in points]

    values = scores([best, *chosen])
    start = [best, *chosen][int(np.argmin(values))]
    return search.descend(start, scores, rounds=30)


def _score_away(search: _Search, points: Sequence[Point], away: Sequence["Away"]) -> list[float]:
    """Mean log distance over shifts and k; what is off by all there is counts as off by that."""
    members = [search.numbers(point) for point in points]
    total = torch.zeros(len(points), dtype=torch.float64)
    for calibration in away:
        shares = calibration.shares(search.family, members).clamp(max=1)
        total += (shares + 1e-5).log().sum((1, 2)).cpu()
    return total.tolist()


@dataclass(frozen=True)
class Away:
    """Calibration prompts of several shifts, of one length, so that one call predicts them all.

    Attributes:
        joined: their prompts, one shift after the other, each of as many.
        num_shifts: how many there are.
    """

    joined: Calibration
    num_shifts: int

    @classmethod
    def join(cls, calibrations: Sequence[Calibration]) -> list["Away"]:
        """Those of one length and the same k together; differences are in units of each's scale."""
        groups: dict[tuple, list[Calibration]] = {}
        for one in calibrations:
            key = (one.prefixes.ys.shape, one.prefixes.examples_seen)
            groups.setdefault(key, []).append(one)
        return [cls(_joined(group), len(group)) for group in groups.values()]

    def shares(
        self, family: Family, members: Sequence[dict[str, Number]]
    ) -> Float[Tensor, "member shift prefix"]:
        """Mean distance to the learner under each shift."""
        distances = self.joined.distances(family, members)
        return distances.unflatten(1, (self.num_shifts, -1)).mean(2)


def _joined(group: list[Calibration]) -> Calibration:
    xs = torch.cat([one.prefixes.xs for one in group])
    ys = torch.cat([one.prefixes.ys for one in group])
    predictions = torch.cat([one.predictions for one in group])
    scales = torch.cat([one.scale.expand(len(one.predictions), 1) for one in group])
    return Calibration(Prefixes(xs, ys, group[0].prefixes.examples_seen), predictions, scales)
