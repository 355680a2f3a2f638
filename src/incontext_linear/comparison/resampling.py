"""The one place where this package resamples: over prompts, all candidates of a cell together."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def resampled_means(
    values: Float[Tensor, "candidate prompt cell"], num_resamples: int, seed: int
) -> Float[Tensor, "resample candidate cell"]:
    """Bootstrap means over prompts, each resample the same prompts for all candidates and cells.

    Args:
        values: finite, such as squared differences.
        num_resamples: R.
        seed: the same seed gives the same resamples.
    """
    num_prompts = values.shape[1]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), num_resamples)
    weights = torch.from_numpy(counts / num_prompts).to(values)
    return torch.einsum("rp,fpk->rfk", weights, values)


def interval(
    resamples: Float[Tensor, "resample ..."], confidence: float
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Percentile interval over the first axis; its ends are among the resamples."""
    tail = (1 - confidence) / 2
    ordered = resamples.sort(0).values
    last = len(resamples) - 1
    # The inverted distribution function: no value between two resamples is made up.
    low, high = (max(0, int(np.ceil(q * len(resamples))) - 1) for q in (tail, 1 - tail))
    return ordered[min(low, last)], ordered[min(high, last)]
