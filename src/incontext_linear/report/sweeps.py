"""The chapter on a finished sweep: which algorithm is nearest along its axis."""

import pandas as pd

from incontext_linear.figures.interactive import Panel, curves, heat_map
from incontext_linear.figures.words import algorithm_name
from incontext_linear.phase_diagram.resampling import EACH, MEAN
from incontext_linear.report.content import (
    SEEDS,
    Answer,
    Chapter,
    Number,
    Results,
    Shown,
    records,
    with_interval,
)


def phase_diagram(results: Results) -> Chapter | None:
    """Distances along the axis of a sweep, the nearest algorithm in each cell, and transitions."""
    if not results.has("phase_divergences", "phase_nearest"):
        return None
    divergences, nearest = results.table("phase_divergences"), results.table("phase_nearest")
    axis = str(divergences["axis"].iloc[0])
    seeds = int(divergences["seeds"].max())
    mean = divergences[divergences["scope"] == MEAN]
    lead = (
        f"A finished sweep along {axis}, {seeds} seeds a value. Intervals are over seeds and "
        "prompts. Variants never run are not reported here.",
    )
    panel = Panel(
        mean, "axis_value", "predictor", "SPD, mean over k", axis, "SPD", log_y=True,
        log_x=bool((mean["axis_value"] > 0).all()),
    )  # fmt: skip
    shown = [
        Shown("Distance along the axis", _DISTANCE, "spd", curves([panel])),
        _nearest_map(nearest, axis),
    ]
    if results.has("phase_transitions") and len(results.table("phase_transitions")):
        shown.append(_transitions(results.table("phase_transitions"), axis))
    at = nearest[nearest["scope"] == MEAN]
    words = "; ".join(
        f"at {axis} = {row['axis_value']:g} {algorithm_name(str(row['nearest']))}"
        for row in records(at)
    )
    answer = Answer(f"Nearest in the mean over k, among the algorithms listed: {words}.", rank=2)
    return Chapter(lead, tuple(shown), _numbers(mean, axis), answer)


def _numbers(mean: pd.DataFrame, axis: str) -> tuple[Number, ...]:
    return tuple(
        Number.of(
            f"SPD to least squares, mean over k, at {axis} = {row['axis_value']:g}",
            row,
            over=f"{SEEDS} and prompts",
        )
        for row in records(mean[mean["predictor"] == "ols"])
    )


def _nearest_map(nearest: pd.DataFrame, axis: str) -> Shown:
    cells = nearest[nearest["scope"] == EACH].sort_values("axis_value")
    cells = cells.assign(
        row=[f"{value:g}" for value in cells["axis_value"]],
        name=[algorithm_name(str(name)) for name in cells["nearest"]],
    )
    rows = list(dict.fromkeys(cells["row"]))
    wide = {
        column: cells.pivot(index="row", columns="examples_seen", values=column).loc[rows]
        for column in ("margin", "name")
    }
    figure = heat_map(
        wide["margin"], "examples seen, k", axis, "margin", log=True, scale="Blues",
        hover=wide["name"].fillna(""),
    )  # fmt: skip
    return Shown("The nearest algorithm", _NEAREST, "nearest", figure)


def _transitions(transitions: pd.DataFrame, axis: str) -> Shown:
    rows = [
        {
            "number of examples": MEAN if row["scope"] == MEAN else f"k = {row['examples_seen']}",
            "from": algorithm_name(str(row["before"])),
            "to": algorithm_name(str(row["after"])),
            axis: with_interval(row, ("location", "low", "high")),
        }
        for row in records(transitions)
    ]
    return Shown("Where it changes", _CHANGES, "nearest", table=pd.DataFrame(rows))


_DISTANCE = (
    "Squared prediction difference to each algorithm, mean over the numbers of examples, along the "
    "axis. Where two curves cross the nearest algorithm changes."
)
_NEAREST = (
    "The nearest algorithm at each value of the axis and each number of examples (the pointer "
    "names it); colour: by what factor it is nearer than the next."
)
_CHANGES = "Values of the axis at which the nearest algorithm changes, with intervals."
