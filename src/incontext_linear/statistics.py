"""The one bootstrap: over prompts, over seeds, or both, so that whatever is derived from means gets
its interval.
"""

import warnings

import numpy as np
import pandas as pd
from jaxtyping import Float


def crossed_means(
    values: Float[np.ndarray, "seed prompt column"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample column"]:
    """Means of each column over seeds and prompts, both resampled with replacement.

    The same seeds and prompts are drawn for every column, and for every array of the same shape:
    differences of resampled means are paired. With one seed only prompts vary; with a few, the
    spread over seeds is understated by the bootstrap's usual factor (S−1)/S.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_prompts, _ = values.shape
    prompts = rng.multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples
    )
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    by_seed = np.einsum("rp,spc->rsc", prompts / num_prompts, values, optimize=True)
    return np.einsum("rs,rsc->rc", seeds / num_seeds, by_seed)


def interval(
    resamples: Float[np.ndarray, "resample ..."], confidence: float
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Percentile interval over the first axis: low and high of each column."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resamples, [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_ratio(
    numerator: Float[np.ndarray, "prompt column"],
    denominator: Float[np.ndarray, "prompt column"],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Ratio of two means, prompts resampled together in both: columns ``mean``, ``low``,
    ``high``.
    """
    rng = np.random.default_rng(seed)
    num_prompts = len(numerator)
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples)
    low, high = interval((counts @ numerator) / (counts @ denominator), confidence)
    return pd.DataFrame({"mean": numerator.sum(0) / denominator.sum(0), "low": low, "high": high})


def bootstrap_mean(
    values: Float[np.ndarray, "sample column"], confidence: float, num_resamples: int, seed: int
) -> pd.DataFrame:
    """Mean of each column with a percentile bootstrap interval over samples (prompts, or seeds).

    NaN values are left out of a column; a column without values gives NaN. Infinite values, of an
    algorithm that diverged, count as 1e300. Whole rows are resampled, so the columns of one
    resample belong together.

    Args:
        values: (samples, columns).
        confidence: level of the interval, such as 0.95.
        num_resamples: bootstrap resamples.
        seed: the same seed gives the same interval.

    Returns:
        One row a column: ``mean``, ``low``, ``high``.
    """
    rng = np.random.default_rng(seed)
    num_samples = len(values)
    present = ~np.isnan(values)
    filled = np.nan_to_num(values, nan=0.0, posinf=1e300, neginf=-1e300)
    counts = rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=num_resamples)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "All-NaN slice", RuntimeWarning
        )  # a column without values
        resampled = (counts @ filled) / (counts @ present.astype(float))
        mean = filled.sum(0) / present.sum(0)
        tail = (1 - confidence) / 2
        low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return pd.DataFrame({"mean": mean, "low": low, "high": high})
