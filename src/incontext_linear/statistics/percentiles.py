"""Percentile intervals over resamples of a statistic, and shares of the arg min among them."""

import numpy as np
from jaxtyping import Float


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
    from scipy import special

    level = (1 + confidence) / 2
    wider = special.stdtrit(num_seeds - 1, level) / special.ndtri(level)
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
