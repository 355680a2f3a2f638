"""One pass of stochastic gradient descent with a step size that falls (Robbins & Monro 1951)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.base import BatchLastLinearPredictor
from incontext_linear.predictors.validation import Number, check_real


@dataclass(frozen=True)
class DecayingSGD(BatchLastLinearPredictor):
    """One pass over the examples, of which the t-th moves w by 2α t^(−ρ) x_t(y_t − x_tᵀw).

    With ρ = 0 it is `OnePassSGD`; ρ in (1/2, 1] is what convergence under noise asks for.
    Cost: O(B n d) time and memory.

    Args:
        step_size: α > 0, of the first example.
        decay: ρ ≥ 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    step_size: Number
    decay: Number

    def __post_init__(self) -> None:
        check_real("step_size", self.step_size, positive=True)
        check_real("decay", self.decay)

    def values_per_prompt(self, dim: int) -> int:
        """A few vectors."""
        return 8 * dim

    def fit(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example dim batch"]:
        """As `BatchLastLinearPredictor.fit`."""
        fitted = [torch.zeros_like(xs[0])]
        for t, (x, y) in enumerate(zip(xs[:-1], ys[:-1], strict=True), start=1):
            residual = y - (x * fitted[-1]).sum(0)
            rate = 2 * self.step_size * t**-self.decay
            fitted.append(torch.addcmul(fitted[-1], x, residual, value=rate))
        return torch.stack(fitted)
