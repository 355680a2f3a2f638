"""Where along an axis the nearest predictor changes, with intervals."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from incontext_linear.phase_diagram.nearest import nearest
from incontext_linear.phase_diagram.resampling import Resamples
from incontext_linear.phase_diagram.variants import NOISE_AXIS
from incontext_linear.statistics import interval


def is_logarithmic(axis: str, coordinates: Iterable[float]) -> bool:
    """Whether the axis is drawn, and interpolated on, by the logarithm: all but the noise, if
    positive.
    """
    return axis != NOISE_AXIS and all(bool(value > 0) for value in coordinates)


def transition_table(resamples: Resamples, confidence: float) -> pd.DataFrame:
    """Where along the axis the nearest predictor changes, in every column.

    Between neighbouring axis values with nearest predictors A and B the change lies where
    log SPD_A − log SPD_B crosses 0, interpolated linearly in the coordinate or its logarithm
    (`is_logarithmic`). There is no change between predictors that coincide at either value. In a
    resample, an A → B change may lie between other values; of several the one closest to the
    observed counts.

    Returns:
        One row a change: ``axis``, ``scope``, ``examples_seen``, ``before``, ``after``,
            ``from_value`` and
        ``to_value`` (axis values beside it), ``location``, ``low``, ``high`` (in the coordinate;
        the interval over those resamples that have this change), ``share`` (of resamples that have
        it) and
        ``left`` (share in which A is nearest at the one value and any other predictor at the next).
    """
    observed = nearest(resamples.observed, resamples.coincide)
    resampled = nearest(resamples.resampled, resamples.coincide)
    rows = []
    for column, value in np.argwhere(observed[:-1].T != observed[1:].T):
        before, after = observed[value : value + 2, column]
        together = resamples.coincide[:, column, before, after]
        if together[value] or together[value + 1]:
            continue
        found = (resampled[:, :-1, column] == before) & (resampled[:, 1:, column] == after)
        found &= ~(together[:-1] | together[1:])
        left = (resampled[:, value, column] == before) & (resampled[:, value + 1, column] != before)
        place = _locate(resamples, column, value, (before, after), found, confidence)
        known = resamples.values["axis_value"]
        rows.append(
            {
                "scope": resamples.scopes[column],
                "examples_seen": resamples.examples_seen[value, column],
                "before": resamples.predictors[before],
                "after": resamples.predictors[after],
                "from_value": known[value],
                "to_value": known[value + 1],
            }
            | dict(zip(("location", "low", "high"), place, strict=True))
            | {"share": found.any(1).mean(), "left": left.mean()}
        )
    return _transition_frame(rows, resamples.axis)


def _locate(
    resamples: Resamples,
    column: int | np.integer,
    value: int | np.integer,
    pair: tuple[int | np.integer, int | np.integer],
    found: Bool[np.ndarray, "resample interval"],
    confidence: float,
) -> tuple[float, float, float]:
    """Place and interval of the change of a pair after the value, in the coordinate."""
    coordinates = resamples.values["coordinate"].to_numpy(dtype=float)
    logarithmic = is_logarithmic(resamples.axis, coordinates)
    scale = np.log(coordinates) if logarithmic else coordinates
    here = float(_crossings(resamples.observed[None, :, column], *pair, scale)[0, value])
    drawn = _crossings(resamples.resampled[:, :, column], *pair, scale)
    places = _closest(np.where(found, drawn, np.nan), here)
    low, high = interval(places, confidence) if len(places) else (np.nan, np.nan)
    return tuple(float(np.exp(x)) if logarithmic else float(x) for x in (here, low, high))


def _crossings(
    spds: Float[np.ndarray, "resample value predictor"],
    before: int | np.integer,
    after: int | np.integer,
    scale: Float[np.ndarray, " value"],
) -> Float[np.ndarray, "resample interval"]:
    """Where log SPD_before = log SPD_after in every interval; only meaningful where the order
    changes.
    """
    logs = np.log(np.maximum(spds[..., [before, after]], np.finfo(float).tiny))
    gap = logs[..., 0] - logs[..., 1]
    rise = gap[:, 1:] - gap[:, :-1]
    part = np.divide(-gap[:, :-1], rise, out=np.full_like(rise, 0.5), where=rise != 0)
    return scale[:-1] + part.clip(0, 1) * np.diff(scale)


def _closest(
    places: Float[np.ndarray, "resample interval"], target: float
) -> Float[np.ndarray, " found"]:
    """Of each resample the place closest to the target; resamples without any are left out."""
    distance = np.where(np.isnan(places), np.inf, np.abs(places - target))
    chosen = np.take_along_axis(places, distance.argmin(1)[:, None], axis=1)[:, 0]
    return chosen[~np.isnan(chosen)]


def _transition_frame(rows: list[dict], axis: str) -> pd.DataFrame:
    names = ("scope", "examples_seen", "before", "after", "from_value", "to_value")
    table = pd.DataFrame(rows, columns=[*names, "location", "low", "high", "share", "left"])
    seen = table["examples_seen"].astype("float64")
    table["examples_seen"] = seen.where(seen > 0).astype("Int64")
    text = dict.fromkeys(["scope", "before", "after"], "string")
    numbers = dict.fromkeys(
        ["from_value", "to_value", "location", "low", "high", "share", "left"], "float64"
    )
    table.insert(0, "axis", axis)
    return table.astype(text | {"axis": "string"} | numbers)
