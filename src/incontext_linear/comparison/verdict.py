"""From tables to an answer: which candidates survive, in a table, in numbers and in words.

What survives all evidence (`evidence`) is *indistinguishable* from the learner where it was
measured, no more; the words say that. If nothing survives, the answer is "none of these", with what
is nearest at home. A survivor that the learner leaves under some shift, for something that no
candidate does, is named within its domain alone, and not with confidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from incontext_linear.comparison.conditions import HOME
from incontext_linear.comparison.evidence import (
    Evidence,
    Thresholds,
    against_each,
    separating,
    strongest_cells,
    with_distances,
)
from incontext_linear.predictors.validation import Number
from incontext_linear.tables import rows_of

ROUNDING = 1e-12
"""A share that is smaller is 0, as of the answer 0, which explains nothing."""
MOST_PLACES = 6
"""Where nobody explains the learner at more places, they are counted instead of listed."""


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
        numbers |= {f"{row.family}.{row.number}": float(row.value) for row in rows_of(own)}
        for row in rows_of(self.domain):
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
        explained = self.explained_at_home if abs(self.explained_at_home) > ROUNDING else 0.0
        share = f"{100 * explained:.3g} %"
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
        some = ended[ended["low"] < ended["high"]]
        bounds = [_bounds(row) for row in rows_of(some)]
        if bounds:
            start = "and" if held else f"in the mean over k it explains {limit}"
            parts.append(f"{start} within these bounds only: {', '.join(bounds)}")
        text = _capital(", ".join(parts)) + "." if parts else ""
        nowhere = [_plain(row.shift) for row in rows_of(ended[~(ended["low"] < ended["high"])])]
        if nowhere:
            text += f" At every strength tried it explains less under {_listed(nowhere)}."
        return text.strip()

    def _unexplained(self) -> str:
        if not self.nobody:
            return ""
        places = [f"{_plain(shift)} {strength:g}" for shift, strength in self.nobody]
        if len(places) > MOST_PLACES:
            count = len(places) - 1
            return (
                f"No candidate explains half of the variance at {places[0]} and {count} other "
                "strengths of shifts."
            )
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
    confirmed: pd.DataFrame | None = None,
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
        confirmed: `strongest_cells`, measured again on other prompts; None: cells count as they
            were first measured, which flatters the strongest of many.
    """
    limits = thresholds or Thresholds()
    if confirmed is None:
        confirmed = strongest_cells(distances, separations, limits)
    pairs = with_distances(distances, separations)
    ruled_out = against_each(members, distances, confirmed, symmetries, structure, limits)
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


def _share_separated(pairs: pd.DataFrame, members: list[str], limits: Thresholds) -> float:
    pairs = pairs[pairs["first"].isin(members) & pairs["second"].isin(members)]
    apart = pairs.assign(apart=separating(pairs, limits)).groupby(["first", "second"])["apart"]
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
    """Where the learner leaves the candidate on an ordinary prompt.

    By medians: a descent that diverges under a shift multiplies the least error in its fitted step
    size on one prompt in a hundred, and the mean is that prompt's.
    """
    rows = distances[distances["candidate"] == candidate]
    left = rows["median_low"] * rows["label_variance"]
    at_home = (rows["median"] * rows["label_variance"])[rows["shift"] == HOME].max()
    power = rows["learner_power"] * rows["label_variance"]
    departs = left > limits.growth * at_home + (1 - limits.explained) * power
    pairs = rows[departs & rows["strength"].notna()][["shift", "strength"]].drop_duplicates()
    return tuple((row.shift, float(row.strength)) for row in rows_of(pairs))


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
