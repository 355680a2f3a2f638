"""The averaging estimator: the simplest that is right on average when x ~ N(0, I)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.batching import check_prompts, in_chunks, moments_before
from incontext_linear.tasks import Xs, Ys


@dataclass(frozen=True)
class Averaging(LinearPredictor):
    """Mean of y·x over the examples: Xᵀy / k, which tends to w when E[x xᵀ] = I (Garg et al. 2022).

    Cost: O(B n d) time and memory.

    Raises:
        ValueError: when called, if the prompts are not allowed.
    """

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        return in_chunks(self._fit, 4 * xs[0].numel() if len(xs) else 1, xs, ys)

    def _fit(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        examples_seen = torch.arange(xs.shape[1], dtype=xs.dtype, device=xs.device).clamp(min=1)
        return moments_before(xs, ys) / examples_seen.unsqueeze(-1)
