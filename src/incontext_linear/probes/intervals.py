"""Bootstrap over prompts and seeds together, so that whatever is derived from means gets its interval."""

import numpy as np
import pandas as pd
from jaxtyping import Float


def crossed_means(
    values: Float[np.ndarray, "seed prompt column"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample column"]:
    """Means of each column over seeds and prompts, both resampled with replacement.

    The same seeds and prompts are drawn for every column, and for every array of the same shape: differences
    of resampled means are paired. With one seed only prompts vary; with a few, the spread over seeds is
    understated by the bootstrap's usual factor (S−1)/S.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_prompts, _ = values.shape
    prompts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples)
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    by_seed = np.einsum("rp,spc->rsc", prompts / num_prompts, values, optimize=True)
    return np.einsum("rs,rsc->rc", seeds / num_seeds, by_seed)


def interval(
    resamples: Float[np.ndarray, "resample column"], confidence: float
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Percentile interval of each column."""
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
    """Ratio of two means, prompts resampled together in both: columns ``mean``, ``low``, ``high``."""
    rng = np.random.default_rng(seed)
    num_prompts = len(numerator)
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples)
    low, high = interval((counts @ numerator) / (counts @ denominator), confidence)
    return pd.DataFrame({"mean": numerator.sum(0) / denominator.sum(0), "low": low, "high": high})
