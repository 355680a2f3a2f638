"""Means and medians over independent samples, with studentised and exact intervals."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from incontext_linear.config import BootstrapConfig
from incontext_linear.statistics.draws import Draws, sample_draws
from incontext_linear.statistics.tails import Tail

LARGEST = 1e300
"""What an infinite value counts as: that of an algorithm that diverged."""
FEW = 20
"""Fewer samples than this (seeds, say) get Student's t in place of a bootstrap of them."""

COLUMNS_AT_ONCE = 64  # columns worked on together

Resampled = Float[np.ndarray, "resample column"]


def mean_interval(
    values: Float[np.ndarray, "sample column"], bootstrap: BootstrapConfig, seed: int
) -> pd.DataFrame:
    """Mean and median of each column over independent samples (prompts), with intervals.

    The mean's interval is a studentised bootstrap, on the log scale where no value is negative; its
    upper limit is then at least that of a bootstrap with a fitted Pareto tail. Fewer than `FEW`
    samples get Student's t on the same scale. The median's interval is the exact one of order
    statistics, for any distribution.

    NaN values are left out of a column; a column without values gives NaN. Infinite values, of an
    algorithm that diverged, count as 1e300. Whole rows are resampled.

    Args:
        values: (samples, columns).
        bootstrap: level and number of resamples.
        seed: the same seed and number of samples give the same resamples.

    Returns:
        One row a column: ``mean``, ``low``, ``high``, ``median``, ``median_low``, ``median_high``.
    """
    if not len(values):
        raise ValueError("values has no samples; allowed: at least 1")
    draws = sample_draws(len(values), bootstrap.num_resamples, seed)
    parts = [np.empty((6, 0))]
    for start in range(0, values.shape[1], COLUMNS_AT_ONCE):
        some = values[:, start : start + COLUMNS_AT_ONCE].astype(float, copy=False)
        if max(np.fmax.reduce(some, axis=None), -np.fmin.reduce(some, axis=None)) > LARGEST:
            some = np.clip(some, -LARGEST, LARGEST)
        parts.append(
            np.vstack((_mean_with_limits(some, draws, bootstrap), *_medians(some, bootstrap)))
        )
    names = ["mean", "low", "high", "median", "median_low", "median_high"]
    return pd.DataFrame(np.concatenate(parts, axis=1).T, columns=names)


def paired_difference(
    first: Float[np.ndarray, "sample column"],
    second: Float[np.ndarray, "sample column"],
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    """`mean_interval` of first − second, sample by sample."""
    return mean_interval(first - second, bootstrap, seed)


def median_interval(
    values: Float[np.ndarray, "sample column"], bootstrap: BootstrapConfig
) -> pd.DataFrame:
    """Median of each column with the exact interval of order statistics, NaN left out.

    The limits are the j-th smallest and j-th largest value, j the largest number for which
    2 P(Binomial(n, 1/2) < j) ≤ 1 − confidence. Below six samples (at 95 %) there is no such j, and
    the interval is the whole range, which covers less.

    Returns:
        One row a column: ``median``, ``median_low``, ``median_high``.
    """
    names = ["median", "median_low", "median_high"]
    return pd.DataFrame(dict(zip(names, _medians(values, bootstrap), strict=True)))


def _medians(
    values: Float[np.ndarray, "sample column"], bootstrap: BootstrapConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, low and high of each column."""
    from scipy import special

    ordered = np.sort(values.T, axis=1)  # NaN comes last
    number = (~np.isnan(values)).sum(0)
    # scipy.stats has this quantile of the binomial distribution too, and takes a second to load.
    rank = np.ceil(special.bdtrik(bootstrap.tail, number, 0.5))
    rank -= special.bdtr(rank - 1, number, 0.5) >= bootstrap.tail  # rounded up from a whole number
    rank = np.where(number > 0, rank, 0).astype(int).clip(1)

    def at(position: np.ndarray) -> np.ndarray:
        """The value at a position of each column; NaN where the column has none."""
        return np.take_along_axis(ordered, position.clip(0)[:, None], axis=1)[:, 0]

    middle = (at((number - 1) // 2) / 2) + (at(number // 2 * (number > 0)) / 2)
    exact = at((number - 1) // 2)
    middle = np.where(number % 2 == 1, exact, middle)
    return middle, at(rank - 1), at(number - rank)


@dataclass(frozen=True)
class Columns:
    """Columns in units of their largest magnitude, and what their intervals need."""

    scaled: Float[np.ndarray, "sample column"]
    """0 where nothing is present."""
    present: Bool[np.ndarray, "sample column"]
    number: Int[np.ndarray, " column"]
    unit: Float[np.ndarray, " column"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "sample column"]) -> "Columns":
        """Scale each column, so that no square overflows and intervals scale with the values."""
        present = ~np.isnan(values)
        scaled = np.where(present, values, 0.0)
        np.clip(scaled, -LARGEST, LARGEST, out=scaled)  # in place: of many samples they are large
        unit = np.maximum(scaled.max(0), -scaled.min(0))
        unit[unit == 0] = 1.0
        scaled /= unit
        return cls(scaled, present, present.sum(0), unit)

    @cached_property
    def mean(self) -> Float[np.ndarray, " column"]:
        """NaN without values."""
        return np.where(self.number > 0, self.scaled.sum(0) / self.number.clip(1), np.nan)

    @cached_property
    def log(self) -> Bool[np.ndarray, " column"]:
        """Whether a column is taken on the log scale: no value is negative."""
        return (self.scaled >= 0).all(0) & (self.mean > 0)

    @cached_property
    def centred(self) -> Float[np.ndarray, "sample column"]:
        """Deviations from the mean; 0 where nothing is present."""
        found = self.scaled - self.mean
        found[~self.present] = 0.0
        return found

    @cached_property
    def squares(self) -> Float[np.ndarray, "sample column"]:
        """Squared deviations."""
        return self.centred**2

    @cached_property
    def error(self) -> Float[np.ndarray, " column"]:
        """Standard error of the mean; 0 for a single value, which says nothing of it."""
        return np.sqrt(self.squares.sum(0) / ((self.number - 1).clip(1) * self.number.clip(1)))


def _mean_with_limits(
    values: Float[np.ndarray, "sample column"], draws: Draws, bootstrap: BootstrapConfig
) -> Float[np.ndarray, "limit column"]:
    """Mean, low and high of each column."""
    columns = Columns.of(values)
    mean, log, number = columns.mean, columns.log, columns.number
    quantiles = _student(number, bootstrap)
    below = above = np.full(len(mean), np.nan)
    if len(values) >= FEW:
        studentised, lower, upper = _resample_means(columns, draws)
        quantiles = studentised_quantiles(studentised, number, bootstrap)
        below = np.where(log, np.nan, known_quantiles(lower, [bootstrap.tail])[0])
        above = known_quantiles(upper, [1 - bootstrap.tail])[0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = quantiles * columns.error
        low, high = np.where(log, mean * np.exp(-shift / mean), mean - shift)[::-1]
    enough = number >= FEW
    # One value beyond all others leaves resamples with next to no error, and no limit at all; in
    # these units the largest value is 1. Of a few samples (seeds) the mean may well lie beyond.
    low = np.where(enough, low.clip(-1.0), low)
    high = np.where(enough, high.clip(max=1.0), high)
    low = np.fmin(np.minimum(low, mean), np.where(enough, below, np.nan))
    high = np.fmax(np.maximum(high, mean), np.where(enough, above, np.nan))
    with np.errstate(over="ignore"):
        return np.vstack((mean, low, high)) * columns.unit


def _student(
    number: Int[np.ndarray, " column"], bootstrap: BootstrapConfig
) -> Float[np.ndarray, "side column"]:
    """Student's quantiles; 0 for a single value."""
    from scipy import special

    quantile = special.stdtrit((number - 1).clip(1), 1 - bootstrap.tail)
    return np.where(number > 1, np.vstack((-quantile, quantile)), 0.0)


def studentised_quantiles(
    studentised: Float[np.ndarray, "resample column"],
    number: Int[np.ndarray, " column"],
    bootstrap: BootstrapConfig,
) -> Float[np.ndarray, "side column"]:
    """Quantiles of a studentised statistic over the resamples; of Student's t for few samples."""
    known = np.where(np.isfinite(studentised), studentised, np.nan)
    drawn = np.nan_to_num(known_quantiles(known, [bootstrap.tail, 1 - bootstrap.tail]))
    return np.where(number >= FEW, drawn, _student(number, bootstrap))


def known_quantiles(
    draws: Float[np.ndarray, "resample column"], levels: list[float]
) -> Float[np.ndarray, "level column"]:
    """Quantiles of each column over the resamples that have a value; NaN where none has."""
    if not np.isnan(draws).any():
        return np.quantile(draws, levels, axis=0)
    # As `numpy.nanquantile`, which works column by column and takes a hundred times as long.
    ordered = np.sort(draws, axis=0)  # NaN comes last
    last = (~np.isnan(draws)).sum(0) - 1
    place = np.multiply.outer(levels, last.clip(0))
    below = place.astype(int)
    low, high = (
        np.take_along_axis(ordered, rows, axis=0) for rows in (below, np.minimum(below + 1, last))
    )
    share = place - below
    step = high - low
    return np.where(share < 0.5, low + step * share, high - step * (1 - share))


def _resample_means(columns: Columns, draws: Draws) -> tuple[Resampled, Resampled, Resampled]:
    """Studentised means, and means with the lower and with the upper tail drawn from its model.

    Studentised: (m* − m)/se*, and where a column is on the log scale (log m* − log m)/(se*/m*); not
    finite in a resample without spread.
    """
    mean, log = columns.mean, columns.log
    upper_tail = Tail.fit(columns.scaled, columns.number, draws)
    lower_tail = None if log.all() else Tail.fit(-columns.scaled, columns.number, draws)
    tails = [tail for tail in (upper_tail, lower_tail) if tail]
    terms = [columns.centred, columns.squares]
    if not columns.present.all():
        terms.append(columns.present.astype(float))
    sums, counts = draws.sums_and_counts(terms, np.concatenate([tail.places for tail in tails]))
    shift, squares, *present = np.split(sums, len(terms), axis=1)
    drawn_places = np.split(counts, len(tails), axis=1)
    number = present[0] if present else float(draws.num_samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = shift / number
        variance = np.maximum(squares / number - shift**2, 0)
        error = np.sqrt(variance / (number - 1))
        drawn = mean + shift
        studentised = np.where(log, np.log(drawn / mean) * drawn / error, shift / error)
        upper = drawn + upper_tail.change(drawn_places[0]) / number
        lower = drawn - lower_tail.change(drawn_places[1]) / number if lower_tail else drawn
    return studentised, lower, upper
