"""Chapters on the hidden states: what can be read, what is used, and how layers compute."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from incontext_linear.figures.interactive import Panel, curves, heat_map, short
from incontext_linear.figures.words import method_name, program_name, readout_name, target_name
from incontext_linear.probing.config import RANDOM
from incontext_linear.probing.interventions import NO_TARGET
from incontext_linear.report.content import (
    Chapter,
    Number,
    Results,
    Shown,
    records,
    with_interval,
)

LAYER = "layer (0: embedding)"
READOUT = ["kind", "hidden_units"]
SELECTIVITY = ("selectivity", "low", "high")
FRACTION = ("fraction", "low", "high")
CEILING = "ceiling"
MOST_MOVED = 2.0
"""A random direction may throw the prediction far off; the axis stays that of the question."""


def probing(results: Results) -> Chapter | None:
    """What each layer holds, beside controls; and which step of which algorithm it has reached."""
    if not results.has("probe_scores"):
        return None
    scores = _longest(results.table("probe_scores"))
    shown, numbers = [_scores(scores)], ()
    if results.has("selectivity", "control_scores"):
        selectivity = _longest(results.table("selectivity"))
        shown += [_selectivity(selectivity), _controls(selectivity)]
        numbers = _selective(selectivity)
    if results.has("layer_progress", "nearest_steps"):
        shown += _progress(results)
    seen = scores["examples_seen"].max()
    lead = (
        f"Read-outs are trained on every layer's hidden states to give quantities that a learning "
        f"algorithm computes from the {seen} examples of a prompt. That a probe reads a quantity "
        "does not say that the learner uses it: see the next chapter.",
    )
    return Chapter(lead, tuple(shown), numbers)


def causality(results: Results) -> Chapter | None:
    """Whether the prediction follows when a layer's content is replaced."""
    if not results.has("causality"):
        return None
    table = _longest(results.table("causality"))
    lead = (
        "A layer's state is edited so that a probe reads another prompt's value, and it is seen "
        "how far the prediction goes towards that prompt's. A random direction of the same size is "
        "the control. The calibration shows the same edits on a network whose algorithm is known.",
    )
    shown = [_movements(table, "The prediction after an edit", _EDITED)]
    if results.has("calibration_causality"):
        known = _longest(results.table("calibration_causality"))
        known = known[~known["method"].str.endswith(RANDOM)]
        shown.append(_movements(known, "Calibration: a hand-built network", _CALIBRATED))
    if results.has("calibration_scores"):
        scores = _longest(results.table("calibration_scores"))
        panel = _error_panel(scores, "A linear probe on the hand-built network")
        shown.append(Shown("Calibration of the probes", _KNOWN_PROBES, "probe", curves([panel])))
    return Chapter(lead, tuple(shown), _moved(table))


def _longest(table: pd.DataFrame) -> pd.DataFrame:
    """Figures with one panel a target show the longest context."""
    return table[table["examples_seen"] == table["examples_seen"].max()]


def _by_readout(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    groups = [rows for _, rows in table.groupby(READOUT, sort=False)]
    return [(_readout(rows.iloc[0].to_dict()), rows) for rows in groups]


def _readout(row: Mapping[Any, Any]) -> str:
    return readout_name(row["kind"], row["hidden_units"])


def _error_panel(rows: pd.DataFrame, title: str) -> Panel:
    return Panel(
        rows, "layer", "target", title, LAYER, "squared error / variance",
        ("squared_error", "low", "high"), target_name, log_y=True, levels={"1": 1.0},
    )  # fmt: skip


def _scores(scores: pd.DataFrame) -> Shown:
    panels = [_error_panel(rows, name) for name, rows in _by_readout(scores)]
    caption = (
        "What a read-out of each kind leaves of a target's variance, layer by layer: lower is "
        "better, and the dotted line at 1 is what the target's mean leaves. A panel a read-out; "
        "bands are intervals over prompts."
    )
    return Shown("Probe error", caption, "probe", curves(panels))


def _selectivity(selectivity: pd.DataFrame) -> Shown:
    panels = [
        Panel(
            rows, "layer", "target", name, LAYER,
            "selectivity", SELECTIVITY, target_name, levels={"0": 0.0},
        )
        for name, rows in _by_readout(selectivity)
    ]  # fmt: skip
    caption = (
        "By how much the probe beats the best of its controls. Near 0 the layer holds no more "
        "than an untrained learner, one trained on a single w, or random targets would show."
    )
    return Shown(
        "Selectivity: probes beside their controls", caption, "selectivity", curves(panels)
    )


def _best(selectivity: pd.DataFrame) -> pd.DataFrame:
    """Of each target the layer and read-out with the largest selectivity."""
    known = selectivity.dropna(subset=["selectivity"])
    return known.loc[known.groupby("target", sort=False)["selectivity"].idxmax()]


def _controls(selectivity: pd.DataFrame) -> Shown:
    rows = [
        {
            "target": target_name(row["target"]),
            "layer": row["layer"],
            "read-out": _readout(row),
            "selectivity": with_interval(row, SELECTIVITY),
            "best control": row["best_control"].replace("_", " "),
        }
        for row in records(_best(selectivity))
    ]
    caption = (
        "For each target the layer and read-out at which selectivity is largest. They are chosen "
        "on the prompts that they are scored on, so the values are somewhat too large."
    )
    return Shown("Where each target is read best", caption, "selectivity", table=pd.DataFrame(rows))


def _selective(selectivity: pd.DataFrame) -> tuple[Number, ...]:
    best = records(_best(selectivity).nlargest(1, "selectivity"))
    return tuple(
        Number.of(
            f"Largest selectivity: {target_name(row['target'])}, layer {row['layer']}",
            row,
            SELECTIVITY,
        )
        for row in best
    )


def _progress(results: Results) -> list[Shown]:
    progress, nearest = (_longest(results.table(n)) for n in ("layer_progress", "nearest_steps"))
    shown = []
    for name in dict.fromkeys(nearest["algorithm"]):
        rows = progress[progress["algorithm"] == name]
        grid = rows.pivot(index="layer", columns="steps", values="mean")
        at = nearest[nearest["algorithm"] == name]
        marked = list(zip(at["layer"], at["nearest_steps"], strict=True))
        figure = heat_map(
            grid, "steps m", "layer", "SPD / Var(y)", log=True, marked=marked,
        )  # fmt: skip
        caption = (
            "Difference between what a probe predicts from each layer and m steps of the "
            "algorithm. A circle marks the nearest number of steps; that it grows with the layer "
            "is what several algorithms would show."
        )
        title = f"Layer by layer beside {program_name(str(name))}"
        shown.append(Shown(title, caption, "progress", figure))
    return shown


def _movements(table: pd.DataFrame, title: str, caption: str) -> Shown:
    targets = [name for name in dict.fromkeys(table["target"]) if name != NO_TARGET]
    panels = []
    for target in targets or [NO_TARGET]:
        rows = table[table["target"].isin([target, NO_TARGET])]
        rows = rows.assign(**{name: rows[name].clip(-MOST_MOVED, MOST_MOVED) for name in FRACTION})
        panel = Panel(
            _with_ceiling(rows, target), "layer", "method", f"{target_name(str(target))}",
            LAYER, "moved fraction", FRACTION, _method, levels={"unmoved": 0.0, "donor": 1.0},
        )  # fmt: skip
        panels.append(panel)
    return Shown(title, caption, "moved", curves(panels))


def _with_ceiling(rows: pd.DataFrame, target: str) -> pd.DataFrame:
    """Beside the methods, the most that an edit along the probe could move."""
    ceilings = rows[rows["target"] == target].groupby("layer")["ceiling"].min().dropna()
    ends = dict.fromkeys(FRACTION, ceilings)
    added = pd.DataFrame({"method": CEILING, **ends}).rename_axis("layer").reset_index()
    return pd.concat([rows, added], ignore_index=True)


def _method(name: str) -> str:
    return "most that an edit could move" if name == CEILING else method_name(name)


def _moved(table: pd.DataFrame) -> tuple[Number, ...]:
    """The edit that moves most, beside what could be expected there."""
    edits = table[table["method"].isin(["minimal_edit", "pattern_edit"])].dropna(subset=["ceiling"])
    return tuple(
        Number.of(
            f"Moved by the {method_name(row['method'])} of {target_name(row['target'])} at layer "
            f"{row['layer']}, where a probe reads best (at most {short(float(row['ceiling']))})",
            row,
            FRACTION,
        )
        for row in records(edits[edits["ceiling"] > 0].nlargest(1, "ceiling"))
    )


_EDITED = (
    "0: the prediction stays; 1: it becomes the donor's answer. Interchange of the whole context "
    "says up to which layer the query still reads its context. An edit that stays near 0 while its "
    "ceiling is high says that what the probe reads is not what later layers use. Values beyond "
    "±2 are drawn at the edge."
)
_CALIBRATED = (
    "The same edits on a transformer whose weights carry out gradient descent: what the method "
    "shows where the quantity is known to be used. A null above means little where this is null."
)
_KNOWN_PROBES = (
    "Probe error on the hand-built network: targets that it holds by construction are read with an "
    "error near 0."
)
