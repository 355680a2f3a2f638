"""The nearest predictor at every axis value and number of examples, by what margin, and the heat
map.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from incontext_linear.phase_diagram.resampling import EACH, Resamples
from incontext_linear.phase_diagram.variants import NOISE_AXIS
from incontext_linear.statistics import interval

DIAGONAL_TOLERANCE = 0.05


def _labelled(resamples: Resamples, each: bool = True) -> pd.DataFrame:
    """One row an axis value and column: the value's own columns, ``scope`` and ``examples_seen``.

    ``row`` and ``column`` are positions in the arrays.
    """
    columns = [c for c, scope in enumerate(resamples.scopes) if each or scope != EACH]
    table = resamples.values.assign(row=range(len(resamples.values)))
    table = table.merge(pd.DataFrame({"column": columns}), how="cross")
    seen = resamples.examples_seen[table["row"], table["column"]]
    return table.assign(
        scope=[resamples.scopes[c] for c in table["column"]],
        examples_seen=pd.Series(seen, dtype="Int64").where(lambda k: k > 0),
    )


def divergence_table(resamples: Resamples, confidence: float) -> pd.DataFrame:
    """SPD of the learner to each predictor at every axis value and column.

    Returns:
        ``axis``, ``axis_value``, ``coordinate``, ``seeds``, ``prompts``, ``scope``,
        ``examples_seen`` (missing for the mean), ``predictor``, ``mean``, ``low``, ``high``.
    """
    cells = _labelled(resamples)
    low, high = interval(resamples.resampled, confidence)
    at = (cells["row"].to_numpy(), cells["column"].to_numpy())
    tables = [
        cells.assign(predictor=name, mean=mean[at], low=low[..., p][at], high=high[..., p][at])
        for p, (name, mean) in enumerate(
            zip(resamples.predictors, np.moveaxis(resamples.observed, -1, 0), strict=True)
        )
    ]
    return pd.concat(tables, ignore_index=True).drop(columns=["row", "column"])


def nearest(
    spds: Float[np.ndarray, "*resample value column predictor"],
    coincide: Bool[np.ndarray, "value column predictor predictor"],
) -> Int[np.ndarray, "*resample value column"]:
    """Position of the nearest predictor; of those that coincide with it, the one listed first."""
    first = coincide.argmax(-1)  # a predictor coincides with itself, so there is always one
    values, columns = np.indices(first.shape[:2])
    return first[values, columns, spds.argmin(-1)]


def nearest_table(resamples: Resamples, confidence: float) -> pd.DataFrame:
    """Which predictor the learner is nearest to, and by what margin, at every axis value and
    column.

    The margin is SPD(runner-up) / SPD(nearest), where predictors that coincide with the nearest are
    no rivals of it. In a resample it is the smallest SPD of all rivals, whichever has it, over the
    SPD of the
    predictor that is nearest as observed: below 1 another one is nearer there.

    Returns:
        The columns of `divergence_table` up to ``examples_seen``, ``nearest``, ``coincident``
        (names that coincide with it, comma-separated), ``runner_up`` (missing without a rival),
        ``spd``, ``margin``,
        ``low``, ``high``, ``certainty`` (share of resamples in which no rival is nearer) and
        ``clear`` (the margin's interval lies above 1).
    """
    best = nearest(resamples.observed, resamples.coincide)
    values, columns = np.indices(best.shape)
    rivals = np.where(resamples.coincide[values, columns, best], np.inf, resamples.observed)
    others = np.where(resamples.coincide[values, columns, best], np.inf, resamples.resampled).min(
        -1
    )
    floor = np.finfo(float).tiny
    spd = resamples.observed[values, columns, best]
    has_rival = np.isfinite(rivals.min(-1))
    draws = others / np.maximum(resamples.resampled[:, values, columns, best], floor)
    low, high = interval(np.where(has_rival, draws, 1.0), confidence)
    margin = np.where(has_rival, rivals.min(-1) / np.maximum(spd, floor), np.nan)
    cells = _labelled(resamples)
    at = (cells["row"].to_numpy(), cells["column"].to_numpy())
    names = np.array(resamples.predictors, dtype=object)
    table = cells.assign(
        nearest=names[best[at]],
        coincident=[
            ", ".join(names[(group & (np.arange(len(names)) != p))])
            for group, p in zip(resamples.coincide[*at, best[at]], best[at], strict=True)
        ],
        runner_up=np.where(has_rival, names[rivals.argmin(-1)], None)[at],
        spd=spd[at],
        margin=margin[at],
        low=np.where(has_rival, low, np.nan)[at],
        high=np.where(has_rival, high, np.nan)[at],
        certainty=(draws >= 1).mean(0)[at],
        clear=(has_rival & (low > 1))[at],
    )
    return table.drop(columns=["row", "column"])


def heat_map_table(
    resamples: Resamples, penalties: Mapping[str, float], confidence: float
) -> pd.DataFrame:
    """Learners × predictors: SPD, each row's minimum and, for a noise axis, the diagonal λ = σ²/τ².

    On a noise axis the predictors are the ridges in the order of λ (one for each λ), on others all
    of them.

    Args:
        resamples: of a sweep.
        penalties: λ of each ridge, as `ridge_penalties` finds them.
        confidence: of the intervals.

    Returns:
        For the mean over k and the named points: the columns of `divergence_table`, ``penalty``
        (NaN where the predictor is no ridge), ``minimum`` (the row's smallest SPD), ``share`` (of
        resamples in which it is), ``diagonal`` (λ is within 5 % of the row's σ²/τ²).
    """
    chosen = _ridges(resamples, penalties) if resamples.axis == NOISE_AXIS else []
    on_noise_axis = len(chosen) > 1
    names = chosen if on_noise_axis else list(resamples.predictors)
    keep = [resamples.predictors.index(name) for name in names]
    observed, draws = resamples.observed[..., keep], resamples.resampled[..., keep]
    least, low_high = draws.argmin(-1), interval(draws, confidence)
    cells = _labelled(resamples, each=False)
    at = (cells["row"].to_numpy(), cells["column"].to_numpy())
    tables = []
    for p, name in enumerate(names):
        penalty = penalties.get(name, np.nan)
        ratio = cells["coordinate"]
        tables.append(
            cells.assign(
                predictor=name,
                mean=observed[..., p][at],
                low=low_high[0][..., p][at],
                high=low_high[1][..., p][at],
                penalty=penalty,
                minimum=(observed.argmin(-1) == p)[at],
                share=(least == p).mean(0)[at],
                diagonal=on_noise_axis & ((ratio - penalty).abs() <= DIAGONAL_TOLERANCE * ratio),
            )
        )
    return pd.concat(tables, ignore_index=True).drop(columns=["row", "column"])


def _ridges(resamples: Resamples, penalties: Mapping[str, float]) -> list[str]:
    """Names of ridges by λ, the first listed of each λ."""
    by_penalty: dict[float, str] = {}
    for name in resamples.predictors:
        if name in penalties:
            by_penalty.setdefault(penalties[name], name)
    return [by_penalty[penalty] for penalty in sorted(by_penalty)]
