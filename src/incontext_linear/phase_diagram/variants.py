"""Which of a sweep's variants make a phase diagram: one axis varies, others are fixed, runs are
finished.

A variant is one run of the sweep, described by the record that the sweep leaves beside its outputs:
``axes`` (swept parameter → value), ``seed``, ``status`` ("done" or not), ``error`` and
``parameters`` (all).
"""

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

import pandas as pd

from incontext_linear.config import TaskConfig, flatten
from incontext_linear.predictors import build_predictors
from incontext_linear.predictors.least_squares import PenalizedLeastSquares

NOISE_AXIS = "task.noise_std"
SHARED = ("task", "model", "training", "data_generation", "baselines")
"""Branches of the parameters that all variants of a sweep share, but for the axes."""
Record = Mapping[str, Any]


class PhaseDiagramError(ValueError):
    """What was asked for cannot be drawn from this sweep."""


def list_variants(
    records: Mapping[str, Record],
    complete: Collection[str],
    axis: str | None,
    where: Mapping[str, Any],
) -> pd.DataFrame:
    """Every variant at the fixed values, and whether it can be used.

    Args:
        records: folder → the variant's record.
        complete: the folders that hold the learner's and the baselines' predictions.
        axis: the swept parameter to draw; None: the only one that varies.
        where: values of other swept parameters.

    Returns:
        One row a variant, sorted by value and seed: ``folder``, ``axis``, ``axis_value``,
        ``coordinate`` (where the value is drawn: σ²/τ² for the noise, the value itself otherwise),
        ``dim``, ``seed``,
        ``status``, ``used`` and ``reason`` (why it is not used, else empty).

    Raises:
        PhaseDiagramError: if the axis or a fixed value does not exist, if several parameters vary,
            or if an axis is not numeric; the message names the parameter, what was given and what
            is allowed.
    """
    chosen = _at_fixed_values(records, where)
    axis = _choose_axis(chosen, axis)
    chosen = {folder: record for folder, record in chosen.items() if axis in record["axes"]}
    rows, taken = [], {}
    for folder, record in sorted(chosen.items()):
        cell = (record["axes"][axis], record["seed"])
        reason = _why_not(record, folder in complete, taken.get(cell))
        if not reason:
            taken[cell] = folder
        rows.append(_row(folder, record, axis, reason))
    return pd.DataFrame(rows).sort_values(["axis_value", "seed"], ignore_index=True)


def _at_fixed_values(records: Mapping[str, Record], where: Mapping[str, Any]) -> dict[str, Record]:
    chosen = dict(records)
    for name, value in where.items():
        allowed = _values(records, name)
        if not allowed:
            raise PhaseDiagramError(
                f"phase_diagram.where: {name!r} is not an axis of this sweep; "
                f"allowed: {_axes(records)}"
            )
        meant = [known for known in allowed if known == value or _nearly(known, value)]
        if not meant:
            raise PhaseDiagramError(
                f"phase_diagram.where: {name}={value!r} is not in this sweep; allowed: "
                f"{_joined(allowed)}"
            )
        exact = value if value in allowed else meant[0]
        chosen = {
            folder: record for folder, record in chosen.items() if record["axes"].get(name) == exact
        }
    if not chosen:
        raise PhaseDiagramError(
            f"phase_diagram.where: no variant of this sweep has {dict(where)} at once"
        )
    return chosen


def _nearly(known: Any, given: Any) -> bool:
    """0.333 on the command line means the sweep's 1/3."""
    return (
        isinstance(known, Real)
        and isinstance(given, Real)
        and math.isclose(known, given, rel_tol=2e-3)
    )


def _choose_axis(records: Mapping[str, Record], axis: str | None) -> str:
    names = list(dict.fromkeys(name for record in records.values() for name in record["axes"]))
    if axis is None:
        varying = [name for name in names if len(_values(records, name)) > 1] or names
        if len(varying) != 1:
            raise PhaseDiagramError(
                f"phase_diagram.axis: several parameters vary in this sweep, {', '.join(varying)}; "
                "name one of them, and fix the others by phase_diagram.where"
            )
        axis = varying[0]
    if axis not in names:
        raise PhaseDiagramError(
            f"phase_diagram.axis: {axis!r} is not an axis of this sweep; allowed: {_axes(records)}"
        )
    records = {folder: record for folder, record in records.items() if axis in record["axes"]}
    wrong = [v for v in _values(records, axis) if isinstance(v, bool) or not isinstance(v, Real)]
    if wrong:
        raise PhaseDiagramError(
            f"phase_diagram.axis: {axis} has the values {_joined(wrong)}; allowed: numbers"
        )
    for name in dict.fromkeys(name for record in records.values() for name in record["axes"]):
        # What goes along with the axis, as a number of heads with the width, needs no fixing.
        if name != axis and not _follows(records, name, axis):
            raise PhaseDiagramError(
                f"phase_diagram.where: {name} varies beside the axis {axis}; "
                f"fix it to one of {_joined(_values(records, name))}"
            )
    return axis


def _follows(records: Mapping[str, Record], name: str, axis: str) -> bool:
    pairs = {(str(r["axes"].get(axis)), str(r["axes"].get(name))) for r in records.values()}
    return len(pairs) == len({value for value, _ in pairs})


def _values(records: Mapping[str, Record], name: str) -> list[Any]:
    found = [record["axes"][name] for record in records.values() if name in record["axes"]]
    return [value for index, value in enumerate(found) if value not in found[:index]]


def _axes(records: Mapping[str, Record]) -> str:
    return (
        ", ".join(dict.fromkeys(name for record in records.values() for name in record["axes"]))
        or "none"
    )


def _joined(values: list[Any]) -> str:
    return ", ".join(map(repr, values))


def _why_not(record: Record, complete: bool, twin: str | None) -> str:
    if record["status"] != "done":
        cause = f" ({record['error']})" if record.get("error") else ""
        return f"its status is {record['status']!r}{cause}"
    if not complete:
        return "its predictions are missing"
    if "parameters" not in record:
        return "its variant.json says no parameters"
    return f"the same cell as {twin}" if twin else ""


def _row(folder: str, record: Record, axis: str, reason: str) -> dict[str, Any]:
    value = record["axes"][axis]
    task = (
        TaskConfig.model_validate(record["parameters"]["task"]) if "parameters" in record else None
    )
    coordinate = float(value)
    if axis == NOISE_AXIS and task is not None and task.prior_std > 0:
        coordinate = (task.noise_std / task.prior_std) ** 2
    return {
        "folder": folder,
        "axis": axis,
        "axis_value": float(value),
        "coordinate": coordinate,
        "dim": task.dim if task else -1,
        "seed": int(record["seed"]),
        "status": record["status"],
        "used": not reason,
        "reason": reason,
    }


def missing_cells(variants: pd.DataFrame) -> list[str]:
    """What a full grid of values and seeds would have and this sweep lacks, a line each, by name.

    Args:
        variants: as `list_variants` returns it.
    """
    lines = [
        f"{row.folder} is not used: {row.reason}"
        for row in variants[~variants["used"]].itertuples()
    ]
    seeds = set(variants["seed"])
    for (axis, value), rows in variants.groupby(["axis", "axis_value"]):
        absent = sorted(seeds - set(rows["seed"]))
        if absent:
            lines.append(f"{axis}={value:g} has no variant of seed {', '.join(map(str, absent))}")
    return lines


def differing_parameters(
    parameters: Collection[Mapping[str, Any]], axes: Collection[str]
) -> list[str]:
    """Parameters that differ between variants and are not an axis, a line each: the sweep was
    changed, and not all of it was run again.

    Args:
        parameters: the parameter tree of every variant used.
        axes: names of the sweep's axes.
    """
    flat = [flatten({branch: tree.get(branch, {}) for branch in SHARED}) for tree in parameters]
    lines = []
    for name in dict.fromkeys(name for tree in flat for name in tree):
        found = list(dict.fromkeys(repr(tree.get(name, "absent")) for tree in flat))
        if len(found) > 1 and name not in axes:
            lines.append(
                f"{name} differs between the variants though it is not an axis: {', '.join(found)}"
            )
    return lines


def ridge_penalties(parameters: Collection[Mapping[str, Any]]) -> dict[str, float]:
    """The λ of every baseline that is ridge regression at one λ in all variants; least squares has
    0.

    A Bayes predictor that takes its noise from the task changes its λ along a noise axis, and is
    none of them.

    Args:
        parameters: the parameter tree of every variant used.
    """
    found: dict[str, set[float]] = {}
    for tree in parameters:
        task = TaskConfig.model_validate(tree["task"])
        for name, spec in tree["baselines"].items():
            if spec is None:
                continue
            kind = str(spec["type"]).rpartition(".")[2]
            if kind not in ("OrdinaryLeastSquares", "Ridge", "BayesPosteriorMean"):
                continue
            predictor = build_predictors({name: spec}, task)[name]
            if isinstance(predictor, PenalizedLeastSquares):
                found.setdefault(name, set()).add(float(predictor.squared_norm_penalty()))
    return {name: values.pop() for name, values in found.items() if len(values) == 1}
