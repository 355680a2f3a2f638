"""From tables to an answer: which candidates survive, on which evidence the others do not.

Rules, each with a threshold in `Thresholds`:

1. A cell (shift × strength × k) rules a candidate out if another one explains the learner there,
the
   cell separates the two, and the learner is nearer to the other by a factor, at the lower end of
   the ratio's interval.
2. A symmetry rules it out if the learner breaks what the candidate has, or the other way round, by
   more than the candidate's distance to the learner at home can account for.
3. At home it is ruled out if it leaves too much of Var(y), or if what it leaves is explained by
other
   candidates: nearest is not near.

What survives all of them is *indistinguishable* from the learner where it was measured, no more;
the words say that. If nothing survives, the answer is "none of these", with what is nearest at
home. A survivor that the learner leaves under some shift, for something that no candidate does, is
named within its domain alone, and not with confidence.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from pydantic import PositiveFloat

from incontext_linear.comparison.conditions import BY_CONTEXT, HOME
from incontext_linear.comparison.symmetries import LEARNER, SYMMETRIES
from incontext_linear.config import Config, OpenFraction
from incontext_linear.predictors.validation import Number


class Thresholds(Config):
    """What counts as evidence."""

    margin: PositiveFloat = 2.0
    """Two candidates are separated if they differ by this many times the learner's distance to the
    nearer one."""
    ratio: PositiveFloat = 2.0
    """How many times nearer the other candidate must be, at the lower end of the interval."""
    usable: OpenFraction = 0.5
    """Share of the learner's predictions that the nearer one must explain for a cell to count."""
    symmetry_ratio: PositiveFloat = 4.0
    """How far a violation must exceed what the distance at home accounts for."""
    explained: OpenFraction = 0.99
    """Share of the learner's predictions that is as good as all of them."""
    growth: PositiveFloat = 4.0
    """How many times what a candidate leaves at home, at the worst k, it may leave elsewhere."""
    left_at_home: OpenFraction = 0.05
    """Share of Var(y), mean over k, that a candidate may leave at home."""


@dataclass(frozen=True)
class Evidence:
    """The strongest single piece of evidence against a candidate.

    Attributes:
        against: the candidate.
        kind: ``condition``, ``symmetry`` or ``home``.
        where: shift or symmetry.
        strength: the shift's; nan where there is none.
        examples_seen: k.
        rival: whom the learner follows instead; empty where there is none.
        ratio: how many times further the candidate is than what it is compared with.
        low: lower end of its interval over prompts.
        high: upper end.
    """

    against: str
    kind: str
    where: str
    strength: float
    examples_seen: int
    rival: str
    ratio: float
    low: float
    high: float

    def words(self, labels: Mapping[str, str]) -> str:
        """One clause."""
        numbers = f"{_short(self.ratio)} [{_short(self.low)}, {_short(self.high)}]"
        place = self.where.replace("_", " ")
        if not math.isnan(self.strength):
            place += f" {self.strength:g}"
        if self.kind == "condition":
            rival = _rival_words(self.rival, labels)
            return f"{place}, k = {self.examples_seen}: {rival} is {numbers} times nearer"
        if self.kind == "symmetry":
            says = SYMMETRIES[self.where].words if self.where in SYMMETRIES else place
            return f"k = {self.examples_seen}: only one of the two {says} ({numbers} times apart)"
        share = (
            f"{_short(100 * self.ratio)} % [{_short(100 * self.low)}, {_short(100 * self.high)}]"
        )
        if self.kind == "structure":
            return (
                f"at home, k = {self.examples_seen}: other candidates explain {share} of the "
                "learner's predictions that it does not"
            )
        return f"at home it leaves {share} of Var(y)"


def _rival_words(name: str, members: Mapping[str, str]) -> str:
    """A rival without its numbers, which the table has."""
    family = name.removesuffix(BY_CONTEXT)
    words = re.sub(r" \([^()]*=[^()]*\)$", "", members.get(family, family))
    return words if name == family else f"{words} with other numbers at each k"


def _short(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 1e4 else f"{value:.0e}"


@dataclass(frozen=True)
class Verdict:
    """What the evidence leaves standing.

    Attributes:
        survivors: candidates that nothing rules out, simplest first.
        ruled_out: the others, each with its strongest evidence.
        near_home: candidates that explain the learner at every k at home, nearest first.
        nearest_home: the nearest at home, however far.
        members: name → words with the fitted numbers.
        numbers: the fitted numbers with intervals.
        domain: per shift, the strengths up to which the candidate named explains the learner.
        nobody: (shift, strength) at which no candidate explains half of the learner's predictions.
        departures: (shift, strength) at which the learner leaves the candidate named: what it does
            not explain there is more than at home, and more than a hundredth of the predictions.
        separated: share of pairs of candidates that some cell separates.
        explained_at_home: of the candidate named, the least over k.
        thresholds: what counted.
    """

    survivors: tuple[str, ...]
    ruled_out: dict[str, Evidence]
    near_home: tuple[str, ...]
    nearest_home: str
    members: dict[str, str]
    numbers: pd.DataFrame = field(repr=False)
    domain: pd.DataFrame = field(repr=False)
    nobody: tuple[tuple[str, float], ...]
    departures: tuple[tuple[str, float], ...]
    separated: float
    explained_at_home: float
    thresholds: Thresholds

    @property
    def named(self) -> str | None:
        """The simplest survivor; None: none of these."""
        return self.survivors[0] if self.survivors else None

    @property
    def confident(self) -> bool:
        """Whether the learner follows the candidate named under every shift that was measured."""
        return self.named is not None and not self.departures

    @property
    def reference(self) -> str:
        """The candidate that the domain is of: the one named, or else the nearest at home."""
        near = self.near_home[0] if self.near_home else self.nearest_home
        return self.named or near

    def table(self) -> pd.DataFrame:
        """A row a candidate: whether it survives, and the strongest evidence against it."""
        rows = []
        for name, member in self.members.items():
            evidence = self.ruled_out.get(name)
            row = {"candidate": name, "member": member, "survives": evidence is None}
            row["near_at_home"] = name in self.near_home
            for key in ("kind", "where", "strength", "examples_seen", "rival"):
                row[key] = getattr(evidence, key) if evidence else None
            for key in ("ratio", "low", "high"):
                row[key] = getattr(evidence, key) if evidence else float("nan")
            rows.append(row)
        return pd.DataFrame(rows)

    def scalars(self) -> dict[str, float]:
        """Numbers by which runs can be sorted: the fit at home, the margin, the domain's bounds."""
        numbers = {
            "num_survivors": float(len(self.survivors)),
            "explained_at_home": self.explained_at_home,
            "separated": self.separated,
        }
        weakest = [e.low for e in self.ruled_out.values() if e.kind == "condition"]
        if weakest:
            numbers["margin"] = min(weakest)
        own = self.numbers[self.numbers["family"] == self.reference]
        numbers |= {f"{row.family}.{row.number}": float(row.value) for row in own.itertuples()}
        for row in self.domain.itertuples():
            numbers[f"domain.{row.shift}.low"] = float(row.low)
            numbers[f"domain.{row.shift}.high"] = float(row.high)
        return numbers

    def words(self, num_evidence: int = 4) -> str:
        """One paragraph, which says no more than the tables."""
        sentences = [
            self._answer(),
            self._domain(),
            self._unexplained(),
            self._evidence(num_evidence),
        ]
        return " ".join(sentence for sentence in sentences if sentence)

    def _answer(self) -> str:
        share = f"{100 * self.explained_at_home:.3g} %"
        everywhere = "of the variance of its predictions at every k on the training distribution"
        if self.named is not None:
            scope = (
                "under every shift and symmetry measured"
                if self.confident
                else "within its domain alone"
            )
            text = (
                f"Indistinguishable from {self.members[self.named]} {scope}. It explains at "
                f"least {share} {everywhere}; differences below what it leaves are not seen."
            )
            others = [self.members[name] for name in self.survivors[1:]]
            return f"{text} Not ruled out either: {_listed(others)}." if others else text
        text = "None of these: no candidate survives all evidence."
        if self.near_home:
            return (
                f"{text} {_capital(self.members[self.reference])} explains at least {share} "
                f"{everywhere}, and yet: {self.ruled_out[self.reference].words(self.members)}."
            )
        if self.explained_at_home <= 0:
            share = "none"
        return (
            f"{text} Nearest on the training distribution is {self.members[self.reference]}, which "
            f"explains {share} of the variance of its predictions at the k where it explains least."
        )

    def _domain(self) -> str:
        if self.domain.empty or (self.named is None and not self.near_home):
            return ""
        limit = f"{100 * self.domain['limit'].iloc[0]:.3g} %"
        held = self.domain[self.domain["holds_throughout"]]["shift"].tolist()
        ended = self.domain[~self.domain["holds_throughout"]]
        parts = []
        if held:
            shifts = _listed([_plain(name) for name in held])
            parts.append(f"in the mean over k it explains ≥ {limit} under {shifts}")
        bounds = [_bounds(row) for row in ended.itertuples()]
        if bounds:
            start = "and" if held else f"in the mean over k it explains {limit}"
            parts.append(f"{start} within these bounds only: {', '.join(bounds)}")
        return _capital(", ".join(parts)) + "."

    def _unexplained(self) -> str:
        if not self.nobody:
            return ""
        places = [f"{_plain(shift)} {strength:g}" for shift, strength in self.nobody]
        return f"No candidate explains half of the variance at {_listed(places)}."

    def _evidence(self, count: int) -> str:
        strongest = [e for e in self.ruled_out.values() if e.against != self.reference]
        strongest.sort(key=lambda evidence: -evidence.low)
        clauses = [
            f"{self.members[e.against]} ({e.words(self.members)})" for e in strongest[:count]
        ]
        if not clauses:
            return ""
        more = len(strongest) - len(clauses)
        tail = f"; {more} more are in the table" if more else ""
        return f"Ruled out: {'; '.join(clauses)}{tail}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _bounds(row) -> str:
    if math.isnan(row.low) and math.isnan(row.high):
        return f"{_plain(row.shift)} nowhere"
    if row.low == row.high:
        return f"{_plain(row.shift)} {row.low:g} alone"
    return f"{_plain(row.shift)} {row.low:g} to {row.high:g}"


def judge(
    distances: pd.DataFrame,
    separations: pd.DataFrame,
    symmetries: pd.DataFrame,
    structure: pd.DataFrame,
    numbers: pd.DataFrame,
    members: Mapping[str, str],
    homes: Mapping[str, Number | None],
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Judge a learner.

    Args:
        distances: from `measure_conditions`.
        separations: likewise.
        symmetries: from `measure_symmetries`.
        structure: from `measure_structure`.
        numbers: the fitted numbers with intervals.
        members: name → words of each candidate that can be named, simplest first.
        homes: shift → the strength that changes nothing.
        thresholds: what counts as evidence; None: the defaults.
    """
    limits = thresholds or Thresholds()
    pairs = _with_distances(distances, separations)
    found = [
        *_from_conditions(pairs, limits),
        *_from_symmetries(distances, symmetries, limits),
        *_from_home(distances, structure, limits),
    ]
    ruled_out = {}
    for name in members:
        against = [evidence for evidence in found if evidence.against == name]
        if against:
            ruled_out[name] = max(against, key=_force)
    at_home = distances[(distances["shift"] == HOME) & distances["candidate"].isin(list(members))]
    least = at_home.groupby("candidate", sort=False)["explained"].min()
    mean = at_home.groupby("candidate", sort=False)["distance"].apply(
        lambda values: np.log(values + 1e-12).mean()
    )
    order = list(mean.sort_values(kind="stable").index)
    near = tuple(name for name in order if least[name] >= limits.explained)
    survivors = tuple(name for name in members if name not in ruled_out)
    reference = survivors[0] if survivors else (near or order)[0]
    return Verdict(
        survivors,
        ruled_out,
        near,
        order[0],
        dict(members),
        numbers,
        domain_of_validity(distances, reference, homes, limits.explained),
        _nobody(distances, list(members)),
        _departures(distances, reference, limits),
        _share_separated(pairs, list(members), limits),
        float(least[reference]),
        limits,
    )


def _force(evidence: Evidence) -> tuple[int, float]:
    """Strength of evidence; a ratio of distances is more to the point than a share at home."""
    return (evidence.kind in ("condition", "symmetry"), evidence.low)


CELL = ["shift", "strength", "examples_seen"]


def _with_distances(distances: pd.DataFrame, separations: pd.DataFrame) -> pd.DataFrame:
    """Pairs with the learner's distance to both and its power, from one measurement."""
    columns = [*CELL, "candidate", "distance", "learner_power"]
    # A strength of nan is the same cell: joined on a number that stands for it.
    known = distances[columns].fillna({"strength": -1.0})
    pairs = separations.fillna({"strength": -1.0})
    for side in ("first", "second"):
        renamed = known.rename(columns={"candidate": side, "distance": f"distance_{side}"})
        keep = renamed if side == "first" else renamed.drop(columns="learner_power")
        pairs = pairs.merge(keep, on=[*CELL, side], how="left")
    pairs["nearer"] = pairs[["distance_first", "distance_second"]].min(axis=1)
    return pairs


def _separating(pairs: pd.DataFrame, limits: Thresholds) -> pd.Series:
    return pairs["separation"] > limits.margin * pairs["nearer"].clip(lower=1e-12)


def _from_conditions(pairs: pd.DataFrame, limits: Thresholds) -> list[Evidence]:
    usable = pairs["nearer"] <= (1 - limits.usable) * pairs["learner_power"]
    pairs = pairs[usable & _separating(pairs, limits)]
    found = []
    for loser, rival, sign in (("first", "second", 1), ("second", "first", -1)):
        low = pairs["low"] if sign == 1 else -pairs["high"]
        rows = pairs[(low > math.log(limits.ratio)) & ~pairs[loser].str.endswith(BY_CONTEXT)]
        rows = rows.assign(force=low[rows.index])
        strongest = rows.sort_values("force", ascending=False).groupby(loser, sort=False).head(1)
        for row in strongest.itertuples():
            ends = sorted(math.exp(min(sign * end, 600)) for end in (row.low, row.high))
            found.append(
                Evidence(
                    against=getattr(row, loser),
                    kind="condition",
                    where=row.shift,
                    strength=float("nan") if row.strength == -1.0 else row.strength,
                    examples_seen=int(row.examples_seen),
                    rival=getattr(row, rival),
                    ratio=math.exp(min(sign * row.log_ratio, 600)),
                    low=ends[0],
                    high=ends[1],
                )
            )
    return found


def _from_symmetries(
    distances: pd.DataFrame, symmetries: pd.DataFrame, limits: Thresholds
) -> list[Evidence]:
    at_home = distances[distances["shift"] == HOME].set_index(["candidate", "examples_seen"])
    keys = ["symmetry", "examples_seen"]
    own = symmetries[symmetries["candidate"] == LEARNER].set_index(keys)
    found = []
    for row in symmetries[symmetries["candidate"] != LEARNER].itertuples():
        if row.candidate.endswith(BY_CONTEXT):
            continue
        learner = own.loc[(row.symmetry, row.examples_seen)]
        home = at_home.loc[(row.candidate, row.examples_seen)]
        allowed = row.noise_gain * home["distance"] + 1e-12
        floor = (1 - limits.explained) * home["learner_power"]
        for broken, held in ((learner, row), (row, learner)):
            ratio = broken.violation / (held.violation + allowed)
            low = broken.low / (held.high + allowed)
            if low > limits.symmetry_ratio and broken.low > floor:
                high = broken.high / (held.low + allowed)
                found.append(
                    Evidence(
                        row.candidate,
                        "symmetry",
                        row.symmetry,
                        float("nan"),
                        int(row.examples_seen),
                        "",
                        float(ratio),
                        float(low),
                        float(high),
                    )
                )
    return found


def _from_home(
    distances: pd.DataFrame, structure: pd.DataFrame, limits: Thresholds
) -> list[Evidence]:
    found = []
    at_home = distances[distances["shift"] == HOME]
    for name, rows in at_home.groupby("candidate", sort=False):
        mean, low, high = (float(rows[column].mean()) for column in ("distance", "low", "high"))
        if low > limits.left_at_home:
            found.append(Evidence(name, "home", HOME, float("nan"), 0, "", mean, low, high))
    shares = structure.assign(
        **{
            c: structure[c] / structure["learner_power"].clip(lower=1e-12)
            for c in ("structured", "low", "high")
        }
    )
    material = shares[shares["low"] > 1 - limits.explained].sort_values("low", ascending=False)
    for row in material.groupby("candidate", sort=False).head(1).itertuples():
        found.append(
            Evidence(
                row.candidate,
                "structure",
                HOME,
                float("nan"),
                int(row.examples_seen),
                "",
                row.structured,
                row.low,
                row.high,
            )
        )
    return found


def _share_separated(pairs: pd.DataFrame, members: list[str], limits: Thresholds) -> float:
    pairs = pairs[pairs["first"].isin(members) & pairs["second"].isin(members)]
    apart = pairs.assign(apart=_separating(pairs, limits)).groupby(["first", "second"])["apart"]
    return float(apart.any().mean())


def _nobody(distances: pd.DataFrame, members: list[str]) -> tuple[tuple[str, float], ...]:
    rows = distances[distances["candidate"].isin(members) & distances["strength"].notna()]
    pooled = rows.groupby(["shift", "strength", "candidate"], sort=False).agg(
        {"distance": "sum", "learner_power": "sum"}
    )
    explained = (1 - pooled["distance"] / pooled["learner_power"].clip(lower=1e-30)).groupby(
        ["shift", "strength"], sort=False
    )
    best = explained.max()
    return tuple((shift, float(strength)) for shift, strength in best[best < 0.5].index)


def _departures(
    distances: pd.DataFrame, candidate: str, limits: Thresholds
) -> tuple[tuple[str, float], ...]:
    rows = distances[distances["candidate"] == candidate]
    left = rows["low"] * rows["label_variance"]
    at_home = (rows["distance"] * rows["label_variance"])[rows["shift"] == HOME].max()
    power = rows["learner_power"] * rows["label_variance"]
    departs = left > limits.growth * at_home + (1 - limits.explained) * power
    pairs = rows[departs & rows["strength"].notna()][["shift", "strength"]].drop_duplicates()
    return tuple((row.shift, float(row.strength)) for row in pairs.itertuples())


def domain_of_validity(
    distances: pd.DataFrame, candidate: str, homes: Mapping[str, Number | None], explained: float
) -> pd.DataFrame:
    """How far from home a candidate explains the learner, as a mean over the k looked at.

    Of one that explains less at home, the limit is below that by what the one asked for is below 1.

    Returns:
        A row a shift: ``shift``, ``low`` and ``high``, the outermost strengths reached from home
        without a gap (nan: not even the first), ``holds_throughout``, ``least_explained`` over all
        strengths, and the ``limit``.
    """
    rows = distances[distances["candidate"] == candidate]
    seen = rows[rows["shift"] != HOME]["examples_seen"].unique()
    home_rows = rows[(rows["shift"] == HOME) & rows["examples_seen"].isin(seen)]
    at_home = _mean_explained(home_rows) if len(home_rows) else 1.0
    limit = explained if at_home >= explained else at_home - (1 - explained)
    table = []
    for shift, home in homes.items():
        of_shift = rows[rows["shift"] == shift]
        measured = {
            float(value): _mean_explained(part) for value, part in of_shift.groupby("strength")
        }
        if not measured:
            continue
        if home is not None:
            measured[float(home)] = at_home
        strengths = sorted(measured)
        start = strengths.index(float(home)) if home is not None else 0
        below = _reached(strengths[start::-1], measured, limit)
        above = _reached(strengths[start:], measured, limit)
        everywhere = all(value >= limit for value in measured.values())
        table.append((shift, below, above, everywhere, min(measured.values()), limit))
    columns = ["shift", "low", "high", "holds_throughout", "least_explained", "limit"]
    return pd.DataFrame(table, columns=columns)


def _mean_explained(rows: pd.DataFrame) -> float:
    """Share of the learner's predictions that is explained, every k counting the same.

    Not their sums over k: under label noise least squares predicts so wildly at k = d that no other
    k would count.
    """
    return float(rows["explained"].mean())


def _reached(
    strengths: Sequence[float], measured: Mapping[float, float], explained: float
) -> float:
    last = float("nan")
    for strength in strengths:
        if measured[strength] < explained:
            break
        last = strength
    return last


def over_seeds(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """For how many seeds each candidate survives, is named, and is near at home."""
    names = list(dict.fromkeys(name for verdict in verdicts for name in verdict.members))
    return pd.DataFrame(
        {
            "candidate": names,
            "survives": [sum(name in v.survivors for v in verdicts) for name in names],
            "named": [sum(name == v.named for v in verdicts) for name in names],
            "near_at_home": [sum(name in v.near_home for v in verdicts) for name in names],
            "seeds": len(verdicts),
        }
    )
