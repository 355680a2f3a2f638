"""The one bootstrap: resampling counts over prompts and seeds, and the intervals made from them.

Every interval of the project comes from here. Squared prediction differences (SPD, paper section 4)
have heavy tails near k = d: the worst prompt in a thousand holds a quarter to a third of the mean,
so a percentile interval of 1,024 prompts covers the mean in 65 to 80 of 100 samples where it says
95. `mean_interval` therefore studentises on the log scale and lets the upper limit look past the
largest value seen, by a generalised Pareto tail. `docs/reference/statistics.md` has formulas and
measured coverage.

Why not `scipy.stats.bootstrap`: it draws its resamples anew in every call, so columns and
predictors would not share them (and drawing is most of the cost); it holds resamples × samples ×
columns values at once (32 GB for 100,000 prompts and 40 columns, or a loop over batches); and it
has no studentised interval, no tails, and no nested or crossed resampling. The tests compare with
it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt
from scipy import special, stats

from incontext_linear.config import BootstrapConfig

LARGEST = 1e300
"""What an infinite value counts as: that of an algorithm that diverged."""
FEW = 20
"""Fewer samples than this (seeds, say) get Student's t in place of a bootstrap of them."""
TAIL_SIZE = 32
"""The tail is fitted to the TAIL_SIZE largest values; to the √n largest of fewer than 1,024."""
TAIL_PRIOR = 0.75
"""Prior of the tail's shape ξ on (0, 1): density ∝ (1 − ξ)^TAIL_PRIOR."""
FEWEST_EXCESSES = 10
"""With fewer distinct samples above the threshold no tail is fitted."""

_BLOCK = 2**22  # numbers of a block of resampling counts, as float64: 32 MiB
_KEPT = 2**27  # counts that are kept between calls; more are drawn again, block by block
_COLUMNS = 64  # columns worked on together
_SHAPES = (np.arange(48) + 0.5) / 48  # grid of ξ
_RATES = np.geomspace(1e-3, 50, 64)  # grid of θ = ξ/σ, in units of 1 / (the median excess)


@dataclass(frozen=True)
class Draws:
    """How often each sample is drawn in each resample; equal draws are equal counts.

    Counts are drawn block by block, so that 100,000 prompts fit; of moderate size they are kept, so
    that many predictors share one draw at no cost.

    Attributes:
        num_samples: n.
        num_resamples: R.
        entropy: what the counts follow from.
        sizes: number of samples drawn in each resample; None: n in all.
    """

    num_samples: int
    num_resamples: int
    entropy: tuple[int, ...]
    sizes: tuple[int, ...] | None = None

    def blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "block sample"]]]:
        """Counts of a few resamples at a time, with their place among all."""
        small = self.num_samples * self.num_resamples <= _KEPT
        for rows, counts in _kept(self) if small else _drawn(self):
            yield rows, counts.astype(float)

    def counts(self) -> Float[np.ndarray, "resample sample"]:
        """All counts at once; R × n numbers."""
        return np.concatenate([counts for _, counts in self.blocks()])

    def sums(
        self, values: Float[np.ndarray, "sample column"]
    ) -> Float[np.ndarray, "resample column"]:
        """Σ counts · values in every resample."""
        if len(values) != self.num_samples:
            raise ValueError(
                f"values has {len(values)} samples; allowed: {self.num_samples}, as drawn"
            )
        total = np.empty((self.num_resamples, values.shape[1]))
        for rows, counts in self.blocks():
            total[rows] = counts @ values
        return total


def _drawn(draws: Draws) -> Iterator[tuple[slice, UInt[np.ndarray, "block sample"]]]:
    """The counts, each block from a stream of its own."""
    size = max(1, _BLOCK // draws.num_samples)
    for block, start in enumerate(range(0, draws.num_resamples, size)):
        stop = min(start + size, draws.num_resamples)
        # The length ends the entropy: NumPy takes [1] and [1, 0] for the same.
        rng = np.random.default_rng([*draws.entropy, block, len(draws.entropy)])
        sizes = (
            np.full(draws.num_resamples, draws.num_samples) if draws.sizes is None else draws.sizes
        )
        sizes = np.asarray(sizes[start:stop])
        chosen = rng.integers(draws.num_samples, size=sizes.sum())
        chosen += np.repeat(np.arange(stop - start) * draws.num_samples, sizes)
        counts = np.bincount(chosen, minlength=(stop - start) * draws.num_samples)
        kind = np.min_scalar_type(counts.max())
        yield slice(start, stop), counts.astype(kind).reshape(stop - start, -1)


@lru_cache(maxsize=2)
def _kept(draws: Draws) -> list[tuple[slice, UInt[np.ndarray, "block sample"]]]:
    return list(_drawn(draws))


def sample_draws(num_samples: int, num_resamples: int, seed: int) -> Draws:
    """Draw n of n samples with replacement, R times; the same arguments give the same counts.

    Raises:
        ValueError: if there is no sample.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} cannot be resampled; allowed: at least 1")
    return Draws(num_samples, num_resamples, (seed,))


def nested_draws(
    seeds: Sequence[int], position: int, num_prompts: int, num_resamples: int, seed: int
) -> Draws:
    """Draw seeds, and within each drawn seed its prompts (Davison and Hinkley 1997, section 3.8).

    A seed that is drawn twice gets two draws of its prompts, one that is not gets none. The same
    arguments give the same counts, so axis values of a sweep with the same seeds share all draws.

    Args:
        seeds: the seeds that are resampled together, sorted.
        position: which of them the counts are for.
        num_prompts: its number of prompts P.
        num_resamples: R.
        seed: of the draws.

    Returns:
        Counts over P prompts. With S seeds of P prompts each, those of all seeds sum to S · P.
    """
    if not 0 <= position < len(seeds):
        raise ValueError(f"position={position} names no seed; allowed: 0 to {len(seeds) - 1}")
    drawn = sample_draws(len(seeds), num_resamples, seed).counts()[:, position]
    sizes = tuple((drawn.astype(int) * num_prompts).tolist())
    return Draws(num_prompts, num_resamples, (seed, len(seeds), *seeds, position), sizes)


def nested_weights(
    seeds: Sequence[int], position: int, num_prompts: int, num_resamples: int, seed: int
) -> Float[np.ndarray, "resample prompt"]:
    """`nested_draws` as weights: a resample's mean is the sum over seeds of weights @ values.

    Over all seeds the weights of a resample sum to 1, each drawn seed having an equal part.
    """
    draws = nested_draws(seeds, position, num_prompts, num_resamples, seed)
    return draws.counts() / (len(seeds) * num_prompts)


def crossed_means(
    values: Float[np.ndarray, "seed prompt column"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample column"]:
    """Means of each column over seeds and prompts, both resampled, where all seeds share prompts.

    The same seeds and prompts are drawn for every column, and for every array of the same shape:
    differences of resampled means are paired. With one seed only prompts vary.
    """
    num_seeds, num_prompts, num_columns = values.shape
    by_prompt = np.moveaxis(values, 1, 0).reshape(num_prompts, -1)
    sums = sample_draws(num_prompts, num_resamples, seed).sums(by_prompt)
    seeds = Draws(num_seeds, num_resamples, (seed, 1)).counts()
    by_seed = sums.reshape(num_resamples, num_seeds, num_columns)
    return np.einsum("rs,rsc->rc", seeds, by_seed) / (num_seeds * num_prompts)


def interval(
    resamples: Float[np.ndarray, "resample ..."], confidence: float, discrete: bool = False
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Percentile interval over resamples, NaN left out.

    Args:
        resamples: a statistic in every resample.
        confidence: level.
        discrete: whether the statistic takes separate values (layers, steps): its limits are then
            values that it took, and none between them.
    """
    tail = (1 - confidence) / 2
    method = "inverted_cdf" if discrete else "linear"
    missing = np.isnan(resamples)
    if not missing.any():
        limits = np.quantile(resamples, [tail, 1 - tail], axis=0, method=method)
        return np.asarray(limits[0]), np.asarray(limits[1])
    empty = missing.all(0)
    known = np.where(empty, 0.0, resamples)
    limits = np.nanquantile(known, [tail, 1 - tail], axis=0, method=method)
    low, high = np.where(empty, np.nan, limits)
    return np.asarray(low), np.asarray(high)


def few_seeds_factor(num_seeds: int, confidence: float) -> float:
    """How much longer an interval over resampled seeds must be than its percentiles say.

    Resampling S seeds understates their variance by (S − 1)/S and takes normal for Student's
    quantiles (Hesterberg 2015); the factor is t_{S−1} / z · √(S / (S − 1)), and 1 for one seed,
    whose interval is about prompts alone.
    """
    if num_seeds < 2:
        return 1.0
    level = (1 + confidence) / 2
    wider = stats.t.ppf(level, num_seeds - 1) / stats.norm.ppf(level)
    return float(wider * np.sqrt(num_seeds / (num_seeds - 1)))


def seeds_interval(
    resamples: Float[np.ndarray, "resample ..."],
    observed: Float[np.ndarray, "..."],
    num_seeds: int,
    confidence: float,
    log: bool = False,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Percentile interval over resampled seeds, lengthened about the observed value for few of
    them.

    Args:
        resamples: a statistic in every (nested or crossed) resample.
        observed: its value in the data.
        num_seeds: S.
        confidence: level.
        log: lengthen on the log scale; for positive statistics, such as means of SPD or ratios.
    """
    factor = few_seeds_factor(num_seeds, confidence)
    low, high = interval(resamples, confidence)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if log:
            return observed * (low / observed) ** factor, observed * (high / observed) ** factor
        return observed + factor * (low - observed), observed + factor * (high - observed)


def argmin_shares(
    resamples: Float[np.ndarray, "resample ... candidate"],
) -> Float[np.ndarray, "... candidate"]:
    """Share of resamples in which each candidate is the least; of equals the one listed first.

    A share says how the choice would vary with other prompts (and seeds, if those are resampled);
    it is no probability that the candidate is the right one.
    """
    least = resamples.argmin(-1)
    return np.stack([(least == c).mean(0) for c in range(resamples.shape[-1])], axis=-1)


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
    for start in range(0, values.shape[1], _COLUMNS):
        some = np.clip(values[:, start : start + _COLUMNS], -LARGEST, LARGEST).astype(float)
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
    ordered = np.sort(values.T, axis=1)  # NaN comes last
    number = (~np.isnan(values)).sum(0)
    rank = stats.binom.ppf(bootstrap.tail, number, 0.5)
    rank = np.where(number > 0, rank, 0).astype(int).clip(1)

    def at(position: np.ndarray) -> np.ndarray:
        """The value at a position of each column; NaN where the column has none."""
        return np.take_along_axis(ordered, position.clip(0)[:, None], axis=1)[:, 0]

    middle = (at((number - 1) // 2) / 2) + (at(number // 2 * (number > 0)) / 2)
    exact = at((number - 1) // 2)
    middle = np.where(number % 2 == 1, exact, middle)
    return middle, at(rank - 1), at(number - rank)


@dataclass(frozen=True)
class _Columns:
    """Columns in units of their largest magnitude, and what their intervals need."""

    scaled: Float[np.ndarray, "sample column"]
    """0 where nothing is present."""
    present: Bool[np.ndarray, "sample column"]
    number: Int[np.ndarray, " column"]
    unit: Float[np.ndarray, " column"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "sample column"]) -> "_Columns":
        """Scale each column, so that no square overflows and intervals scale with the values."""
        present = ~np.isnan(values)
        filled = np.where(present, values.clip(-LARGEST, LARGEST), 0.0)
        unit = np.abs(filled).max(0)
        unit[unit == 0] = 1.0
        return cls(filled / unit, present, present.sum(0), unit)

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
        return np.where(self.present, self.scaled - self.mean, 0.0)

    @cached_property
    def error(self) -> Float[np.ndarray, " column"]:
        """Standard error of the mean; 0 for a single value, which says nothing of it."""
        return np.sqrt((self.centred**2).sum(0) / ((self.number - 1).clip(1) * self.number.clip(1)))


def _mean_with_limits(
    values: Float[np.ndarray, "sample column"], draws: Draws, bootstrap: BootstrapConfig
) -> Float[np.ndarray, "limit column"]:
    """Mean, low and high of each column."""
    columns = _Columns.of(values)
    mean, log, number = columns.mean, columns.log, columns.number
    quantiles = _student(number, bootstrap)
    below = above = np.full(len(mean), np.nan)
    if len(values) >= FEW:
        studentised, lower, upper = _resample_means(columns, draws)
        quantiles = _studentised_quantiles(studentised, number, bootstrap)
        below = np.where(log, np.nan, _quantiles(lower, [bootstrap.tail])[0])
        above = _quantiles(upper, [1 - bootstrap.tail])[0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = quantiles * columns.error
        low, high = np.where(log, mean * np.exp(-shift / mean), mean - shift)[::-1]
    # One value beyond all others leaves resamples with next to no error, and no limit at all; in
    # these units the largest value is 1.
    low, high = low.clip(-1.0), high.clip(max=1.0)
    enough = number >= FEW
    low = np.fmin(np.minimum(low, mean), np.where(enough, below, np.nan))
    high = np.fmax(np.maximum(high, mean), np.where(enough, above, np.nan))
    return np.vstack((mean, low, high)) * columns.unit


def _student(
    number: Int[np.ndarray, " column"], bootstrap: BootstrapConfig
) -> Float[np.ndarray, "side column"]:
    """Student's quantiles; 0 for a single value."""
    quantile = stats.t.ppf(1 - bootstrap.tail, (number - 1).clip(1))
    return np.where(number > 1, np.vstack((-quantile, quantile)), 0.0)


def _studentised_quantiles(
    studentised: Float[np.ndarray, "resample column"],
    number: Int[np.ndarray, " column"],
    bootstrap: BootstrapConfig,
) -> Float[np.ndarray, "side column"]:
    """Quantiles of a studentised statistic over the resamples; of Student's t for few samples."""
    known = np.where(np.isfinite(studentised), studentised, np.nan)
    drawn = np.nan_to_num(_quantiles(known, [bootstrap.tail, 1 - bootstrap.tail]))
    return np.where(number >= FEW, drawn, _student(number, bootstrap))


def _quantiles(
    draws: Float[np.ndarray, "resample column"], levels: list[float]
) -> Float[np.ndarray, "level column"]:
    """Quantiles of each column over the resamples that have a value; NaN where none has."""
    missing = np.isnan(draws)
    if not missing.any():
        return np.quantile(draws, levels, axis=0)
    empty = missing.all(0)
    return np.where(empty, np.nan, np.nanquantile(np.where(empty, 0, draws), levels, axis=0))


Resampled = Float[np.ndarray, "resample column"]


def _resample_means(columns: _Columns, draws: Draws) -> tuple[Resampled, Resampled, Resampled]:
    """Studentised means, and means with the lower and with the upper tail drawn from its model.

    Studentised: (m* − m)/se*, and where a column is on the log scale (log m* − log m)/(se*/m*); not
    finite in a resample without spread.
    """
    mean, log, centred = columns.mean, columns.log, columns.centred
    squares = centred**2
    complete, present = columns.present.all(), columns.present.astype(float)
    upper_tail = _Tail.fit(columns.scaled, columns.number, draws)
    lower_tail = None if log.all() else _Tail.fit(-columns.scaled, columns.number, draws)
    studentised, lower, upper = np.empty((3, draws.num_resamples, len(mean)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for rows, counts in draws.blocks():
            number = counts.sum(1)[:, None] if complete else counts @ present
            shift = counts @ centred / number
            variance = np.maximum(counts @ squares / number - shift**2, 0)
            error = np.sqrt(variance / (number - 1))
            drawn = mean + shift
            logs = np.log(drawn / mean) * drawn / error
            studentised[rows] = np.where(log, logs, shift / error)
            upper[rows] = drawn + upper_tail.change(rows, counts) / number
            lower[rows] = (
                drawn if lower_tail is None else drawn - lower_tail.change(rows, counts) / number
            )
    return studentised, lower, upper


@dataclass(frozen=True)
class _Tail:
    """A generalised Pareto tail above each column's threshold u ≥ 0.

    The mean of a resample is that of min(x, u), plus the share of samples above u times the mean
    excess; the last is drawn from its posterior instead of averaged over the resample.
    """

    places: Int[np.ndarray, "column place"]
    """Samples with the largest values of each column."""
    excess: Float[np.ndarray, "column place"]
    """By how much each of them is above the column's threshold; 0 where it is not."""
    mean_excess: Float[np.ndarray, "resample column"]
    """NaN for a column without a tail."""

    @classmethod
    def fit(
        cls,
        values: Float[np.ndarray, "sample column"],
        number: Int[np.ndarray, " column"],
        draws: Draws,
    ) -> "_Tail":
        """Threshold below the `TAIL_SIZE` largest values; no tail for columns with few above it.

        Args:
            values: of which the positive ones have a tail; 0 where nothing is present.
            number: how many are present.
            draws: of which the tail's draws follow.
        """
        positive = np.maximum(values, 0.0).T
        count = np.ceil(np.sqrt(number)).astype(int).clip(max=min(TAIL_SIZE, len(values) - 1))
        largest = int(count.max(initial=0)) + 1
        places = np.argpartition(positive, -largest, axis=1)[:, -largest:]
        found = np.take_along_axis(positive, places, axis=1)
        threshold = np.take_along_axis(np.sort(found, axis=1)[:, ::-1], count[:, None], axis=1)
        excess = (found - threshold).clip(0)
        excess[(excess > 0).sum(1) < FEWEST_EXCESSES] = 0
        return cls(places, excess, _draw_mean_excess(excess, draws))

    def change(
        self, rows: slice, counts: Float[np.ndarray, "block sample"]
    ) -> Float[np.ndarray, "block column"]:
        """What to add to resampled sums: the tail's excesses in place of those that were drawn."""
        drawn = np.take(counts, self.places, axis=1)  # (block, column, place)
        above = np.einsum("bcp,cp->bc", drawn, (self.excess > 0).astype(float))
        return above * self.mean_excess[rows] - np.einsum("bcp,cp->bc", drawn, self.excess)


def _draw_mean_excess(
    excess: Float[np.ndarray, "column place"], draws: Draws
) -> Float[np.ndarray, "resample column"]:
    """Draw E(x − u | x > u) = σ/(1 − ξ) from its posterior, given excesses above u; NaN without
    any.

    With θ = ξ/σ and S(θ) = Σ log(1 + θ(x − u)) the log likelihood of m excesses is
    m log θ − m log ξ − (1 + 1/ξ) S(θ); the prior is uniform in log θ, and (1 − ξ)^TAIL_PRIOR in ξ.
    The posterior is summed on a grid. Each column uses the same levels, so columns stay paired.
    """
    rng = np.random.default_rng([*draws.entropy, draws.num_samples, 0, 1])
    levels = (rng.permutation(draws.num_resamples) + 0.5) / draws.num_resamples
    drawn = np.full((draws.num_resamples, len(excess)), np.nan)
    candidates = (_SHAPES / (_RATES[:, None] * (1 - _SHAPES))).ravel()
    order = candidates.argsort()
    for column, places in enumerate(excess):
        known = places[places > 0]
        if not len(known):
            continue
        unit = np.median(known)
        logs = np.log1p(_RATES[:, None] * (known / unit)).sum(1)[:, None]
        posterior = len(known) * np.log(_RATES[:, None] / _SHAPES) - (1 + 1 / _SHAPES) * logs
        posterior += TAIL_PRIOR * np.log1p(-_SHAPES)
        weights = special.softmax(posterior).ravel()[order].cumsum()
        chosen = np.searchsorted(weights, levels).clip(max=len(order) - 1)
        drawn[:, column] = candidates[order][chosen] * unit
    return drawn


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
            shift = _studentised_quantiles(studentised, found.number, bootstrap) * found.error
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
            quantiles = _studentised_quantiles(studentised, found.number, bootstrap)
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
        below = np.where(enough, center + _quantiles(down, [bootstrap.tail])[0], np.nan)
        above = np.where(enough, center + _quantiles(up, [1 - bootstrap.tail])[0], np.nan)
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
    for start in range(0, numerator.shape[1], _COLUMNS):
        xs, ys = (part[:, start : start + _COLUMNS] for part in pair)
        missing = np.isnan(xs) | np.isnan(ys)
        first, second = (_Columns.of(np.where(missing, np.nan, part)) for part in (xs, ys))
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
    tail = _Tail.fit(positive, number, draws)
    plain, modelled = np.empty((2, draws.num_resamples, values.shape[1]))
    for rows, counts in draws.blocks():
        sums = counts @ positive
        plain[rows] = sums / number.clip(1) - mean
        modelled[rows] = (sums + tail.change(rows, counts)) / number.clip(1) - mean
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
