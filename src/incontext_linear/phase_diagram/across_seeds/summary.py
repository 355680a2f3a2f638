"""Means over seeds, with intervals: nested over seeds and prompts where prompts are kept.

The unit of inference is the training. Seeds are resampled, and within each drawn seed its prompts
(`statistics.nested_weights`); the percentiles are lengthened for few seeds
(`statistics.seeds_interval`). Where a variant keeps only its own means, the interval is Student's
over the seeds' values, which hold the noise of their prompts too. With one seed an interval is over
prompts alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from incontext_linear.config import BootstrapConfig
from incontext_linear.phase_diagram.across_seeds.measures import FOUND, Values
from incontext_linear.statistics import mean_interval, nested_weights, seeds_interval

FEW_SEEDS = 5
"""With fewer, an interval over seeds is wide and its level uncertain: it is said."""
KEYS = ["series", "position"]


def summarize_seeds(
    learners: Mapping[int, Sequence[Values]], bootstrap: BootstrapConfig, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every measure that all learners have, as mean over them, and of each alone.

    Args:
        learners: seed of the training → what was measured.
        bootstrap: level and number of resamples.
        seed: of the resamples.

    Returns:
        Means: ``measure``, ``series``, ``position``, ``mean``, ``low``, ``high``, ``sd`` (of the
        seeds' means; NaN for one), ``seeds``, ``prompts`` (in all), ``over`` ("seeds and prompts",
        "seeds" or "prompts"). And single learners: ``measure``, ``series``, ``position``, ``seed``,
        ``mean``.
    """
    chosen = sorted(learners)
    by_measure = [{values.measure: values for values in learners[one]} for one in chosen]
    shared = [name for name in by_measure[0] if all(name in own for own in by_measure)]
    tables = [
        _summarize(
            {one: own[name] for one, own in zip(chosen, by_measure, strict=True)}, bootstrap, seed
        )
        for name in shared
    ]
    means, singles = zip(*tables, strict=True)
    return pd.concat(means, ignore_index=True), pd.concat(singles, ignore_index=True)


def _summarize(
    found: Mapping[int, Values], bootstrap: BootstrapConfig, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One measure, at the places that all learners have."""
    measure = next(iter(found.values())).measure
    index = _common([values.index for values in found.values()])
    arrays = [_at(values, index) for values in found.values()]
    by_seed = np.stack([_mean(array) for array in arrays])
    prompts = [len(array) for array in arrays]
    if max(prompts) > 1:
        mean, low, high = _nested(arrays, sorted(found), bootstrap, seed)
        over = "seeds and prompts" if len(found) > 1 else "prompts"
    else:
        mean, low, high = _over_seeds(by_seed, measure, bootstrap, seed)
        over = "seeds"
        if len(found) == 1:
            low, high = np.full((2, len(mean)), np.nan)
    sd = by_seed.std(0, ddof=1) if len(found) > 1 else np.full(len(mean), np.nan)
    numbers = {"mean": mean, "low": low, "high": high, "sd": sd, "seeds": len(found)}
    table = index.assign(**numbers, prompts=sum(prompts), over=over)
    single = pd.concat(
        [index.assign(seed=one, mean=own) for one, own in zip(found, by_seed, strict=True)],
        ignore_index=True,
    )
    table.insert(0, "measure", measure)
    single.insert(0, "measure", measure)
    return table, single


def _over_seeds(
    by_seed: Float[np.ndarray, "seed column"], measure: str, bootstrap: BootstrapConfig, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and their limits: Student's, and Wilson's of a share of trainings, which lies between 0
    and 1.
    """
    if measure != FOUND:
        table = mean_interval(by_seed, bootstrap, seed)
        return table["mean"].to_numpy(), table["low"].to_numpy(), table["high"].to_numpy()
    from scipy.stats import binomtest  # a second to load

    limits = [
        binomtest(int(count), len(by_seed)).proportion_ci(bootstrap.confidence, "wilson")
        for count in by_seed.sum(0)
    ]
    low, high = np.array(limits).reshape(-1, 2).T
    return by_seed.mean(0), low, high


def _common(indices: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows that all have, in the order of the first."""
    common = indices[0]
    for other in indices[1:]:
        common = common.merge(other.drop_duplicates(), on=KEYS, how="inner")
    return common.reset_index(drop=True)


def _at(values: Values, index: pd.DataFrame) -> Float[np.ndarray, "prompt column"]:
    places = pd.MultiIndex.from_frame(values.index)
    return values.values[:, places.get_indexer(pd.MultiIndex.from_frame(index))]


def _mean(values: Float[np.ndarray, "prompt column"]) -> Float[np.ndarray, " column"]:
    """Mean over the prompts that have a value; NaN where none has."""
    present = ~np.isnan(values)
    total = np.where(present, values, 0.0).sum(0)
    return np.where(present.any(0), total / present.sum(0).clip(1), np.nan)


def _nested(
    arrays: Sequence[Float[np.ndarray, "_ column"]],
    seeds: Sequence[int],
    bootstrap: BootstrapConfig,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds and its interval over seeds and prompts."""
    total, weight = np.zeros((2, bootstrap.num_resamples, arrays[0].shape[1]))
    for position, values in enumerate(arrays):
        weights = nested_weights(seeds, position, len(values), bootstrap.num_resamples, seed)
        present = ~np.isnan(values)
        total += weights @ np.where(present, values, 0.0)
        weight += weights @ present.astype(float)
    resamples = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    mean = np.stack([_mean(values) for values in arrays]).mean(0)
    positive = all(bool((np.nan_to_num(values) >= 0).all()) for values in arrays)
    low, high = seeds_interval(resamples, mean, len(seeds), bootstrap.confidence, log=positive)
    return mean, low, high


def describe_seeds(num_seeds: int) -> str:
    """How many trainings an interval stands on, and whether that is few."""
    if num_seeds == 1:
        return "1 seed: intervals are over prompts alone"
    few = f" (fewer than {FEW_SEEDS}: intervals are wide and uncertain)"
    return f"{num_seeds} seeds{few if num_seeds < FEW_SEEDS else ''}"
