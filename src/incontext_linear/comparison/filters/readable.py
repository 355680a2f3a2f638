"""Which filters can be read linearly from a layer, and which of them are new there.

On constructed gradient descent the new ones are the steps, one a layer.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.families import FAMILIES, Spectra, fit_family
from incontext_linear.comparison.filters.readouts import ReadoutSplit, read_layer
from incontext_linear.comparison.filters.scores import error_ratios
from incontext_linear.comparison.filters.states import QueryStates

# Families whose members are looked for in the states: one free number each.
READ_FAMILIES = ("ridge", "gradient_flow", "newton", "gradient_descent")


def readable_filters(
    states: QueryStates, spectrum: Spectra, split: ReadoutSplit, config: FilterConfig, seed: int
) -> pd.DataFrame:
    """Which member of each family is read best from a layer, and which is new in it.

    Each member's weights are regressed on the states. ``best`` is the member with the lowest share
    missed on validation prompts; it is no measure of progress by itself, as what an early layer
    held is often still there. ``new`` is the member whose share missed fell most from the layer
    before: for constructed gradient descent, the step that the layer took. Members are on a grid;
    gradient descent has the step size that fits the learner's final weights.

    Returns:
        ``layer``, ``carrier``, ``choice`` (``best`` or ``new``), ``family``, ``value`` (of the free
        number), ``missed`` with ``low`` and ``high``, ``gain`` (share missed in the layer before,
        over this one's) with ``gain_low``, ``gain_high``, and ``ratio`` with ``ratio_low``,
        ``ratio_high``: to the family with the least share missed. All on prompts that chose
        nothing.
    """
    names, values, targets = _targets(states, spectrum, split)
    total = (targets[split.rest] ** 2).sum(1)
    rows = []
    for carrier in ("response", "content"):
        validated = left = None
        for layer in range(len(states.lens)):
            before, left_before = validated, left
            read, errors = read_layer(states, layer, carrier, targets, split)
            validated = errors / (targets[split.validation] ** 2).sum((0, 1))
            left = ((read - targets)[split.rest] ** 2).sum(1)
            left_before = total if left_before is None else left_before
            gains = (np.ones_like(validated) if before is None else before) / validated
            choices = {"best": _lowest(names, validated), "new": _lowest(names, 1 / gains)}
            for choice, chosen in choices.items():
                left_there, before_there, all_there = (
                    part[:, chosen] for part in (left, left_before, total)
                )
                table = _readable_rows(left_there, before_there, all_there, config, seed)
                labels = {"layer": layer, "carrier": carrier, "choice": choice}
                labels |= {"family": names[chosen], "value": values[chosen]}
                rows.append(pd.DataFrame(labels).join(table))
    return pd.concat(rows, ignore_index=True)


def _lowest(names: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The index of the lowest value of each family."""
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    return np.array([indices[values[indices].argmin()] for indices in members])


def _readable_rows(
    left: np.ndarray, before: np.ndarray, total: np.ndarray, config: FilterConfig, seed: int
) -> pd.DataFrame:
    nearest = np.repeat(left[:, [(left.sum(0) / total.sum(0)).argmin()]], left.shape[1], axis=1)
    missed = error_ratios(left, total, config, seed)
    table = missed.rename(columns={"mean": "missed"})
    for name, over in (
        ("gain", error_ratios(before, left, config, seed)),
        ("ratio", error_ratios(left, nearest, config, seed)),
    ):
        table[[name, f"{name}_low", f"{name}_high"]] = over[["mean", "low", "high"]]
    return table


def _targets(
    states: QueryStates, spectrum: Spectra, split: ReadoutSplit
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "batch dim target"]]:
    """Names, free numbers and weights of the members that are looked for."""
    size = float(spectrum.values.max())
    used = split.train | split.validation
    final = spectrum.coordinates(states.lens[-1])[used]
    inside = spectrum.select(used)
    descent = FAMILIES["gradient_descent"]
    fit = fit_family(descent, final, inside, np.ones_like(final), size)
    step_size = fit.number[0]
    names, values, weights = [], [], []
    for name in READ_FAMILIES:
        grid = FAMILIES[name].grid(size)
        if name == "gradient_descent":
            steps = np.unique(grid[:, 1])
            grid = np.stack((np.full(len(steps), step_size), steps), axis=1)
        elif name != "newton":
            grid = grid[::2]
        names += [name] * len(grid)
        values.append(grid[:, -1])
        weights.append(FAMILIES[name].apply(spectrum, grid))
    names.append("least_squares")
    values.append(np.array([np.nan]))
    weights.append(spectrum.solution[None])
    targets = np.moveaxis(spectrum.weights(np.concatenate(weights)), 0, -1)
    return np.array(names), np.concatenate(values), targets
