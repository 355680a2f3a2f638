"""The chapter on shifts: which candidates survive, where each holds, and the layers' filters."""

from typing import Any

import pandas as pd

from incontext_linear.figures.filters import FAMILY_LABELS
from incontext_linear.figures.identification import HOME, hardest, pooled
from incontext_linear.figures.interactive import heat_map
from incontext_linear.figures.words import algorithm_name, shift_name
from incontext_linear.report.content import (
    Answer,
    Chapter,
    Number,
    Results,
    Shown,
    records,
    with_interval,
)

SOURCE = "learner"
LEFT = (0.01, 1.0)
"""Shares left unexplained at which the colours of the domain end."""


def identification(results: Results) -> Chapter | None:
    """Candidates under shifts of the prompts' distribution, and the verdict."""
    names = ("identification_distances", "identification_domain", "identification_evidence")
    if not results.has(*names, "verdict_text"):
        return None
    distances, domain, evidence = (_of_learner(results.table(name)) for name in names)
    said = dict(
        part.split(": ", 1) for part in results.tables["verdict_text"].strip().split("\n\n")
    )
    table = pooled(distances)
    reference = _reference(table, evidence)
    lead = [
        "Candidates are fitted to the learner on its training distribution; their free numbers are "
        "then frozen, and both are followed to other distributions. Agreement at home alone does "
        "not tell candidates apart.",
        said[SOURCE],
    ]
    lead += [
        f"Control ({shift_name(name)}): {words}" for name, words in said.items() if name != SOURCE
    ]
    short = said[SOURCE].partition(" Ruled out:")[0]
    shown = [
        _domain(table, domain, reference),
        _map(table, domain),
        _survivors(evidence),
    ]
    if results.has("filter_scores"):
        shown.append(_filters(results.table("filter_scores")))
    return Chapter(tuple(lead), tuple(shown), _numbers(distances, reference), Answer(short, rank=2))


def _of_learner(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["source"] == SOURCE]


def _reference(table: pd.DataFrame, evidence: pd.DataFrame) -> str:
    """The candidate that the domain is of: as `Verdict.reference`."""
    survivors = evidence.loc[evidence["survives"].astype(bool), "candidate"].tolist()
    if survivors:
        return survivors[0]
    near = evidence.loc[evidence["near_at_home"].astype(bool), "candidate"].tolist()
    home = table[table["shift"] == HOME].set_index("candidate")["distance"]
    return str((home.loc[near] if near else home).idxmin())


def _numbers(distances: pd.DataFrame, reference: str) -> tuple[Number, ...]:
    home = distances[(distances["shift"] == HOME) & (distances["candidate"] == reference)]
    power = home["learner_power"].clip(lower=1e-30)
    explained = home.assign(
        mean=1 - home["distance"] / power,
        low=1 - home["high"] / power,
        high=1 - home["low"] / power,
    )
    row = records(explained.nsmallest(1, "mean"))[0]
    label = (
        f"Variance of the learner's predictions that {algorithm_name(reference)} explains at home, "
        f"at the worst k = {row['examples_seen']}"
    )
    return (Number.of(label, row, percent=True),)


def _domain(table: pd.DataFrame, domain: pd.DataFrame, reference: str) -> Shown:
    """Rows: shifts; columns: their strengths in order."""
    cells = table[table["candidate"] == reference].sort_values("strength")
    cells = cells[cells["shift"].isin(domain["shift"])]
    place = cells.groupby("shift").cumcount() + 1
    cells = cells.assign(
        place=place,
        row=[shift_name(shift) for shift in cells["shift"]],
        text=["·" if value == -1.0 else f"{value:g}" for value in cells["strength"]],
    )
    rows = [shift_name(shift) for shift in domain["shift"] if shift in set(cells["shift"])]
    left, text = (
        cells.pivot(index="row", columns="place", values=v).loc[rows] for v in ("left", "text")
    )
    figure = heat_map(
        left, "strength number", "shift", "share not explained",
        log=True, limits=LEFT, text=text.fillna(""), scale="OrRd",
    )  # fmt: skip
    name = algorithm_name(reference)
    caption = (
        f"The share of the learner's predictions that one candidate does not explain ({name}). A "
        "row is a shift of the prompts' distribution, a cell one of its strengths (written in the "
        "cell; a dot: the shift has none). The palest cells are explained to 99 % or more; the "
        "darker, the more is left."
    )
    return Shown(f"Domain of validity: {name}", caption, "domain", figure)


def _map(table: pd.DataFrame, domain: pd.DataFrame) -> Shown:
    grid = hardest(table, [name for name in domain["shift"] if name in set(table["shift"])])
    grid.columns = pd.Index([algorithm_name(str(name)) for name in grid.columns])
    nearest = [(row, values.idxmin()) for row, values in grid.iterrows()]
    figure = heat_map(
        grid, "candidate", "shift", "distance, share of Var(y)", log=True, limits=(1e-6, 10.0),
        marked=nearest,
    )  # fmt: skip
    caption = (
        "Distance of the learner to every candidate: at home, and under each shift at the strength "
        "that is hardest for the best candidate. A circle marks the nearest. A candidate that the "
        "learner follows is nearest in every row."
    )
    return Shown("Every candidate, shift by shift", caption, "domain", figure)


def _survivors(evidence: pd.DataFrame) -> Shown:
    rows = [
        {
            "candidate": row["member"],
            "survives": "yes" if row["survives"] else "no",
            "strongest evidence against it": "–" if row["survives"] else _against(row),
        }
        for row in records(evidence)
    ]
    caption = (
        "Each candidate with its fitted numbers. The ratio says how many times further the "
        "candidate is than the rival, or, of symmetries, than its distance at home accounts for."
    )
    return Shown("Who survives", caption, "domain", table=pd.DataFrame(rows))


def _against(row: dict[str, Any]) -> str:
    nearer = f", nearer: {algorithm_name(row['rival'])}" if row["rival"] else ""
    ratio = with_interval(row, ("ratio", "low", "high"))
    return f"{row['kind']}, {shift_name(str(row['where']))}: {ratio}{nearer}"


def _filters(scores: pd.DataFrame) -> Shown:
    chosen = scores[scores["readout"] == scores["readout"].iloc[0]]
    chosen = chosen.assign(family=chosen["family"].str.removeprefix("scaled_"))
    grid = chosen.pivot_table(index="layer", columns="family", values="misfit")
    names = [name for name in FAMILY_LABELS if name in grid.columns]
    best = [
        (str(layer), FAMILY_LABELS[str(values.idxmin())])
        for layer, values in grid[names].iterrows()
    ]
    labelled = grid[names].rename(columns=FAMILY_LABELS)
    figure = heat_map(labelled, "family", "layer", "misfit", log=True, marked=best)
    caption = (
        "What each layer would answer, as a filter of the eigenvalues of XᵀX: squared error of the "
        "families fitted to it over that of the best filter of any shape (1 is perfect). A circle "
        "marks the family that fits best. Layers where filters explain little say nothing; the "
        "table filter_shares has that share."
    )
    return Shown("The layers as spectral filters", caption, "filter", figure)
