"""Ratios of means over the same samples, plain and as logarithms, with intervals."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from incontext_linear.config import BootstrapConfig
from incontext_linear.statistics.draws import Draws, sample_draws
from incontext_linear.statistics.means import (
    COLUMNS_AT_ONCE,
    FEW,
    Columns,
    Resampled,
    known_quantiles,
    median_interval,
    studentised_quantiles,
)
from incontext_linear.statistics.tails import Tail


def ratio_interval(
    numerator: Float[np.ndarray, "sample column"],
    denominator: Float[np.ndarray, "sample other"],
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    """Ratio of two means over the same samples, with a studentised bootstrap interval and tails.

    Numerators may have either sign. A sample that is NaN in one of the two is left out of both.

    Args:
        numerator: (samples, columns).
        denominator: (samples, columns), or one column for all.
        bootstrap: level and number of resamples.
        seed: of the draws.

    Returns:
        One row a column: ``mean`` (the ratio), ``low``, ``high``.
    """
    limits = [np.empty((3, 0))]
    for found in _ratios(numerator, denominator, bootstrap, seed):
        with np.errstate(divide="ignore", invalid="ignore"):
            studentised = (found.drawn - found.ratio) / found.drawn_error
            shift = studentised_quantiles(studentised, found.number, bootstrap) * found.error
        down, up = found.excess - found.lack_tail, found.excess_tail - found.lack
        limits.append(found.limits(found.ratio, shift, down, up, bootstrap) * found.unit)
    return pd.DataFrame(np.concatenate(limits, axis=1).T, columns=["mean", "low", "high"])


def paired_log_ratio(
    first: Float[np.ndarray, "sample column"],
    second: Float[np.ndarray, "sample other"],
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    """log(mean of first / mean of second) over the same samples, and the median of
    log(first/second).

    Natural logarithms of non-negative values: below 0, first is smaller. Both intervals are paired;
    the median's asks which is smaller for most samples and has no trouble with tails.

    Args:
        first: (samples, columns).
        second: (samples, columns), or one column for all.
        bootstrap: level and number of resamples.
        seed: of the draws.

    Returns:
        One row a column: ``log_ratio``, ``low``, ``high``, ``median``, ``median_low``,
        ``median_high``.

    Raises:
        ValueError: if a value is negative.
    """
    if (first < 0).any() or (second < 0).any():
        raise ValueError("first and second hold negative values; allowed: values of at least 0")
    limits = [np.empty((3, 0))]
    for found in _ratios(first, second, bootstrap, seed):
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(found.ratio)
            studentised = (np.log(found.drawn) - log_ratio) * found.drawn / found.drawn_error
            quantiles = studentised_quantiles(studentised, found.number, bootstrap)
            shift = quantiles * found.error / found.ratio
            up = np.log1p(found.excess_tail / found.ratio) - np.log1p(found.lack / found.ratio)
            down = np.log1p(found.excess / found.ratio) - np.log1p(found.lack_tail / found.ratio)
        limits.append(found.limits(log_ratio, shift, down, up, bootstrap) + np.log(found.unit))
    table = pd.DataFrame(np.concatenate(limits, axis=1).T, columns=["log_ratio", "low", "high"])
    with np.errstate(divide="ignore", invalid="ignore"):
        return table.join(median_interval(np.log(first) - np.log(second), bootstrap))


@dataclass(frozen=True)
class _Ratios:
    """Ratios r of means, by linearisation: r* − r is about the mean of z = (x − r y)/mean(y).

    The mean of z is that of its positive part less that of its negative one, and each has a tail.
    """

    number: Int[np.ndarray, " column"]
    unit: Float[np.ndarray, " column"]
    """What all the rest is to be multiplied by."""
    ratio: Float[np.ndarray, " column"]
    error: Float[np.ndarray, " column"]
    drawn: Resampled
    drawn_error: Resampled
    excess: Resampled
    """Mean of z's positive part, less its observed mean."""
    excess_tail: Resampled
    """The same with the tail drawn from its model."""
    lack: Resampled
    lack_tail: Resampled

    def limits(
        self,
        center: Float[np.ndarray, " column"],
        shift: Float[np.ndarray, "side column"],
        down: Resampled,
        up: Resampled,
        bootstrap: BootstrapConfig,
    ) -> Float[np.ndarray, "limit column"]:
        """The longer of the studentised limits and those with tails, about the center."""
        low, high = (center - shift)[::-1]
        enough = self.number >= FEW
        below = np.where(enough, center + known_quantiles(down, [bootstrap.tail])[0], np.nan)
        above = np.where(enough, center + known_quantiles(up, [1 - bootstrap.tail])[0], np.nan)
        return np.vstack((center, np.fmin(low, below), np.fmax(high, above)))


def _ratios(
    numerator: Float[np.ndarray, "sample column"],
    denominator: Float[np.ndarray, "sample other"],
    bootstrap: BootstrapConfig,
    seed: int,
) -> Iterator[_Ratios]:
    """Ratios of some columns at a time, of the samples and of every resample."""
    draws = sample_draws(len(numerator), bootstrap.num_resamples, seed)
    pair = np.broadcast_arrays(numerator, denominator)
    for start in range(0, numerator.shape[1], COLUMNS_AT_ONCE):
        xs, ys = (part[:, start : start + COLUMNS_AT_ONCE] for part in pair)
        missing = np.isnan(xs) | np.isnan(ys)
        first, second = (Columns.of(np.where(missing, np.nan, part)) for part in (xs, ys))
        xs, ys, number = first.scaled, second.scaled, first.number
        terms = (~missing).astype(float), xs, ys, xs * xs, xs * ys, ys * ys
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, error = _ratio_and_error(*(part.sum(0) for part in terms))
            drawn, drawn_error = _ratio_and_error(*(draws.sums(part) for part in terms))
            residual = (xs - ratio * ys) / second.mean
        residual[~np.isfinite(residual)] = 0
        tails = [_with_tail(part, number, draws) for part in (residual, -residual)]
        unit = first.unit / second.unit
        yield _Ratios(number, unit, ratio, error, drawn, drawn_error, *tails[0], *tails[1])


def _with_tail(
    values: Float[np.ndarray, "sample column"], number: Int[np.ndarray, " column"], draws: Draws
) -> tuple[Resampled, Resampled]:
    """Means of the positive part less its mean, without and with the tail drawn from its model."""
    positive = np.maximum(values, 0.0)
    mean = positive.sum(0) / number.clip(1)
    tail = Tail.fit(positive, number, draws)
    sums, counts = draws.sums_and_counts([positive], tail.places)
    plain, modelled = (part / number.clip(1) - mean for part in (sums, sums + tail.change(counts)))
    return plain, modelled


def _ratio_and_error(
    number: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    xx: np.ndarray,
    xy: np.ndarray,
    yy: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of sums, and its standard error, from the number of samples and sums of products."""
    ratio = x / y
    squares = xx - 2 * ratio * xy + ratio**2 * yy
    lost = 1e-12 * (xx + ratio**2 * yy)  # what rounding leaves of equal terms
    squares = np.where(squares > lost, squares, 0)
    return ratio, np.sqrt(squares * number / (number - 1)) / np.abs(y)
