"""The one place where this package resamples: over prompts, all candidates of a cell together."""

import math

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
    count, flat = len(resamples), resamples.flatten(1).T.contiguous()
    # The inverted distribution function: no value between two resamples is made up.
    ranks = [max(1, math.ceil(q * count)) for q in (tail, 1 - tail)]
    low, high = (flat.kthvalue(min(rank, count), dim=1).values for rank in ranks)
    return low.reshape(resamples.shape[1:]), high.reshape(resamples.shape[1:])
