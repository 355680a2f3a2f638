"""The strongest evidence against each candidate: what a cell, a symmetry or home rules out.

Rules, each with a threshold in `Thresholds`:

1. A cell (shift × strength × k) rules a candidate out if another one explains the learner there,
   the cell separates the two, and the learner is nearer to the other by a factor, at the lower end
   of the ratio's interval. The strongest cells are chosen on some prompts and judged by
   what others give (`confirmation`).
2. A symmetry rules it out if the learner breaks what the candidate has, or the other way round, by
   more than the candidate's distance to the learner at home can account for.
3. At home it is ruled out if it leaves too much of Var(y), or if what it leaves is explained by
   other candidates: nearest is not near.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from pydantic import PositiveFloat

from incontext_linear.comparison.conditions import BY_CONTEXT, HOME
from incontext_linear.comparison.symmetries import LEARNER, SYMMETRIES
from incontext_linear.config import Config, OpenFraction
from incontext_linear.tables import rows_of, scientific


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
        share = f"{numbers} times"
        if self.ratio < 10:
            ends = f"[{_short(100 * self.low)}, {_short(100 * self.high)}]"
            share = f"{_short(100 * self.ratio)} % {ends} of"
        if self.kind == "structure":
            return (
                f"at home, k = {self.examples_seen}: other candidates explain {share} the "
                "learner's predictions that it does not"
            )
        return f"at home it leaves {share} Var(y)"


def _rival_words(name: str, members: Mapping[str, str]) -> str:
    """A rival without its numbers, which the table has."""
    family = name.removesuffix(BY_CONTEXT)
    words = re.sub(r" \([^()]*=[^()]*\)$", "", members.get(family, family))
    return words if name == family else f"{words} with other numbers at each k"


def _short(value: float) -> str:
    """Two digits, and no ``1.8e+02`` where 180 is meant; 4·10⁶ beyond thousands."""
    if not 1e4 <= abs(value) < math.inf:
        return f"{float(f'{value:.2g}'):g}".replace("-", "−")
    return scientific(value, 0)


def against_each(
    members: Mapping[str, str],
    distances: pd.DataFrame,
    confirmed: pd.DataFrame,
    symmetries: pd.DataFrame,
    structure: pd.DataFrame,
    limits: Thresholds,
) -> dict[str, Evidence]:
    """The strongest evidence against each candidate that some evidence rules out.

    Args:
        members: the candidates that can be ruled out.
        distances: from `measure_conditions`.
        confirmed: from `strongest_cells`, as they came out on other prompts.
        symmetries: from `measure_symmetries`.
        structure: from `measure_structure`.
        limits: what counts as evidence.
    """
    found = [
        *_from_cells(confirmed, limits),
        *_from_symmetries(distances, symmetries, limits),
        *_from_home(distances, structure, limits),
    ]
    ruled_out = {}
    for name in members:
        against = [evidence for evidence in found if evidence.against == name]
        if against:
            ruled_out[name] = max(against, key=_force)
    return ruled_out


def _force(evidence: Evidence) -> tuple[int, float]:
    """Strength of evidence; a ratio of distances is more to the point than a share at home."""
    return (evidence.kind in ("condition", "symmetry"), evidence.low)


CELL = ["shift", "strength", "examples_seen"]


def with_distances(distances: pd.DataFrame, separations: pd.DataFrame) -> pd.DataFrame:
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


def separating(pairs: pd.DataFrame, limits: Thresholds) -> pd.Series:
    return pairs["separation"] > limits.margin * pairs["nearer"].clip(lower=1e-12)


def strongest_cells(
    distances: pd.DataFrame,
    separations: pd.DataFrame,
    thresholds: Thresholds,
    per_candidate: int = 1,
) -> pd.DataFrame:
    """The separating cells that speak most against each candidate, for a closer look at them.

    Args:
        distances: from `measure_conditions`.
        separations: likewise.
        thresholds: what counts as evidence.
        per_candidate: at most so many cells (shift × strength × k) a candidate.

    Returns:
        ``shift``, ``strength``, ``examples_seen``, ``against``, ``rival`` (the candidate that the
        learner follows there instead, its nearest in that cell), ``log_ratio`` of the learner's
        distances to the two, ``low``, ``high``; strongest first.
    """
    pairs = with_distances(distances, separations)
    usable = pairs["nearer"] <= (1 - thresholds.usable) * pairs["learner_power"]
    pairs = pairs[usable & separating(pairs, thresholds)]
    forward = pairs.rename(columns={"first": "against", "second": "rival"})
    backward = pairs.rename(columns={"second": "against", "first": "rival"})
    # The ratio the other way round, and its ends with it.
    turned = {"log_ratio": -pairs["log_ratio"], "low": -pairs["high"], "high": -pairs["low"]}
    cells = pd.concat([forward, backward.assign(**turned)], ignore_index=True)
    speaks = cells["low"] > math.log(thresholds.ratio)
    cells = cells[speaks & ~cells["against"].str.endswith(BY_CONTEXT)]
    cells = cells.sort_values("low", ascending=False, kind="stable")
    cells = cells.drop_duplicates([*CELL, "against"])
    cells = cells.groupby("against", sort=False).head(per_candidate)
    cells["strength"] = cells["strength"].where(cells["strength"] != -1.0)
    columns = [*CELL, "against", "rival", "log_ratio", "low", "high"]
    return cells[columns].reset_index(drop=True)


def _from_cells(cells: pd.DataFrame, limits: Thresholds) -> list[Evidence]:
    cells = cells[cells["low"] > math.log(limits.ratio)]
    return [
        Evidence(
            against=row.against,
            kind="condition",
            where=row.shift,
            strength=float(row.strength),
            examples_seen=int(row.examples_seen),
            rival=row.rival,
            ratio=math.exp(min(row.log_ratio, 600)),
            low=math.exp(min(row.low, 600)),
            high=math.exp(min(row.high, 600)),
        )
        for row in rows_of(cells)
    ]


def _from_symmetries(
    distances: pd.DataFrame, symmetries: pd.DataFrame, limits: Thresholds
) -> list[Evidence]:
    rows = rows_of(distances[distances["shift"] == HOME])
    at_home = {(row.candidate, row.examples_seen): row for row in rows}
    rows = rows_of(symmetries[symmetries["candidate"] == LEARNER])
    own = {(row.symmetry, row.examples_seen): row for row in rows}
    found = []
    for row in rows_of(symmetries[symmetries["candidate"] != LEARNER]):
        if row.candidate.endswith(BY_CONTEXT):
            continue
        learner = own[row.symmetry, row.examples_seen]
        home = at_home[row.candidate, row.examples_seen]
        allowed = row.noise_gain * home.distance + 1e-12
        floor = (1 - limits.explained) * home.learner_power
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
            found.append(Evidence(str(name), "home", HOME, float("nan"), 0, "", mean, low, high))
    shares = structure.assign(
        **{
            c: structure[c] / structure["learner_power"].clip(lower=1e-12)
            for c in ("structured", "low", "high")
        }
    )
    material = shares[shares["low"] > 1 - limits.explained].sort_values("low", ascending=False)
    for row in rows_of(material.groupby("candidate", sort=False).head(1)):
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
