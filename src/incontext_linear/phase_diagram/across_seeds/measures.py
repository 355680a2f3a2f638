"""What was measured of one variant's learner, as arrays that can be averaged over seeds.

Where a variant keeps values prompt by prompt (predictions, implicit weights, probe errors) they are
read as such, so that prompts can be resampled with the seeds. Of the other evidence (interventions,
nearest steps, filters, verdicts) a variant keeps only its own means.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from incontext_linear.tables import LEARNER, predictions_by_name

LARGEST = 1e150
"""Of a value: what is not finite, of an algorithm that diverged, counts as so much."""

FOUND = "variable found"
"""1 in a training where the rule finds the variable, else 0: its mean is a share of trainings."""

Readers = Mapping[str, Callable[[], Any]]
"""A variant's files by their place in its folder, such as ``08_reporting/causality``."""


class Values(NamedTuple):
    """One measure of one learner."""

    measure: str
    index: pd.DataFrame
    """A row a column of the values: ``series`` (an algorithm, a target, a method) and ``position``
    (examples seen, or layer).
    """
    values: Float[np.ndarray, "prompt column"]
    """One row only, where prompts are not kept."""


SUMMARIES = {
    "causality": ("08_reporting/causality", ("method", "target", "examples_seen"), "fraction"),
    "nearest steps": (
        "08_reporting/nearest_steps",
        ("algorithm", "examples_seen"),
        "nearest_steps",
    ),
    "selectivity": (
        "08_reporting/selectivity",
        ("target", "kind", "hidden_units", "examples_seen"),
        "selectivity",
    ),
    "filters": ("08_reporting/filter_scores", ("family", "readout"), "ratio"),
}
"""Measure → table, the columns that name a series, the column of the values; all by layer."""


def read_measures(tables: Readers, tensors: Readers) -> list[Values]:
    """All that a variant's folder holds of what can be averaged over seeds.

    Args:
        tables: its tables by place, each read when called.
        tensors: its safetensors files by place.
    """
    found = _comparison(tables, tensors)
    if "07_model_output/probe_errors" in tables:
        found.append(_probes(tables["07_model_output/probe_errors"]()))
    for measure, (place, names, value) in SUMMARIES.items():
        if place in tables:
            table = tables[place]()
            if value in table:
                found.append(_summary(measure, table, names, value))
    if "08_reporting/alignment_verdicts" in tables:
        found += _variables(tables["08_reporting/alignment_verdicts"]())
    if "08_reporting/identification_evidence" in tables:
        found.append(_verdict(tables["08_reporting/identification_evidence"]()))
    return found


def _comparison(tables: Readers, tensors: Readers) -> list[Values]:
    """SPD, squared error, ILWD and linearity at every prompt and number of examples."""
    found: list[Values] = []
    places = [f"07_model_output/{name}_predictions" for name in ("learner", "baseline")]
    if all(place in tables for place in places):
        learner, others = (predictions_by_name(tables[place]()) for place in places)
        (own,) = learner.values()
        found.append(_curves("SPD", {name: (own - p).square() for name, p in others.items()}))
        if "05_model_input/evaluation_prompts" in tensors:
            ys = tensors["05_model_input/evaluation_prompts"]()["ys"].double()
            everyone = {LEARNER: own} | others
            errors = {name: (p - ys).square() for name, p in everyone.items()}
            found.append(_curves("squared error", errors))
    places = [f"07_model_output/{name}_weights" for name in ("learner", "baseline")]
    if all(place in tensors for place in places):
        learner, others = (tensors[place]() for place in places)
        differences = {
            name: (learner["weights"].double() - weights.double()).square().sum(-1)
            for name, weights in others.items()
        }
        found.append(_curves("ILWD", differences))
        found.append(_curves("R²", {LEARNER: learner["r_squared"]}))
    return found


def _curves(measure: str, values: Mapping[str, torch.Tensor]) -> Values:
    """Values (B, n) by name, from one example seen on: before, all predict 0."""
    arrays = [value[:, 1:].double().numpy() for value in values.values()]
    positions = range(1, arrays[0].shape[1] + 1)
    index = pd.DataFrame(
        [(name, k) for name in values for k in positions], columns=["series", "position"]
    )
    return Values(measure, index, _finite(np.concatenate(arrays, axis=1)))


def _finite(values: Float[np.ndarray, "prompt column"]) -> Float[np.ndarray, "prompt column"]:
    """Infinite values as `LARGEST`; what is missing stays so."""
    return np.nan_to_num(values, nan=np.nan, posinf=LARGEST, neginf=-LARGEST).clip(
        -LARGEST, LARGEST
    )


def _probes(errors: pd.DataFrame) -> Values:
    """Probe errors (shares of the target's variance) at every test prompt, the mean over refits."""
    named = errors.assign(
        series=_series(errors, ("target", "kind", "hidden_units", "examples_seen"))
    )
    wide = named.pivot_table(
        index="prompt", columns=["series", "layer"], values="squared_error", sort=False
    )
    index = wide.columns.to_frame(index=False).rename(columns={"layer": "position"})
    return Values("probe error", index, wide.to_numpy(dtype=float))


def _summary(measure: str, table: pd.DataFrame, names: tuple[str, ...], value: str) -> Values:
    index = pd.DataFrame({"series": _series(table, names), "position": table["layer"].astype(int)})
    return Values(measure, index, table[value].to_numpy(dtype=float)[None])


def _verdict(evidence: pd.DataFrame) -> Values:
    """1 for each candidate that survives all evidence about the learner, 0 for the others."""
    own = evidence[evidence["source"] == "learner"] if "source" in evidence else evidence
    index = pd.DataFrame({"series": own["candidate"].astype(str), "position": 0})
    return Values("survives", index, own["survives"].to_numpy(dtype=float)[None])


def _variables(verdicts: pd.DataFrame) -> list[Values]:
    """The share of each causal model's counterfactual, and 1 where its variable was found, at the
    places that are read.
    """
    searched = verdicts[verdicts["share"].notna()]
    searched = searched.assign(found=(searched["verdict"] == "found").astype(float))
    names = ("model", "positions")
    return [
        _summary("share of the counterfactual", searched, names, "share"),
        _summary(FOUND, searched, names, "found"),
    ]


def _series(table: pd.DataFrame, names: tuple[str, ...]) -> pd.Series:
    """The columns that name a series, in one: ``moment, linear, k = 11``."""
    parts: list[pd.Series] = []
    for name in (name for name in names if name in table):
        text = table[name].astype(str)
        if name == "examples_seen":
            text = "k = " + text
        if name == "hidden_units":
            text = text.where(table[name] != 0, "").where(table[name] == 0, text + " units")
        parts.append(text)
    rows = zip(*parts, strict=True)
    joined = [", ".join(part for part in row if part) for row in rows]
    return pd.Series(joined, index=table.index, dtype="string")
