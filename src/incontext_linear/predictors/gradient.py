"""Gradient methods on the squared error, from w = 0 (paper, section 3 and Theorem 1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.base import BatchLastLinearPredictor
from incontext_linear.predictors.batching import (
    normal_equations_batch_last,
    symmetric_product,
)
from incontext_linear.predictors.validation import Number, check_real, check_steps


@dataclass(frozen=True)
class GradientDescent(BatchLastLinearPredictor):
    """Full-batch descent on ‖Xw − y‖² + λ‖w‖²: w ← w − 2α(XᵀXw − Xᵀy + λw), num_steps times.

    Cost: O(B n d) time for one step, O(B n d² num_steps) for more; memory O(B n d), and O(d²) a
    prompt of a chunk beside it.

    Args:
        step_size: α > 0.
        num_steps: how many steps, ≥ 0; the paper takes 1.
        penalty: λ ≥ 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    step_size: Number
    num_steps: int
    penalty: Number = 0.0

    def __post_init__(self) -> None:
        check_real("step_size", self.step_size, positive=True)
        check_steps(self.num_steps)
        check_real("penalty", self.penalty)

    def fit(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example dim batch"]:
        """As `BatchLastLinearPredictor.fit`."""
        rate = 2 * self.step_size
        if self.num_steps == 0:
            return torch.zeros_like(xs)
        if self.num_steps == 1:
            moments = (xs[:-1] * ys[:-1, None]).cumsum(0)
            return rate * torch.cat((torch.zeros_like(xs[:1]), moments))
        kept = 1 - rate * self.penalty
        fitted = []
        for gram, moment in normal_equations_batch_last(xs, ys):
            weights = first_step = rate * moment
            for _ in range(self.num_steps - 1):
                slope = symmetric_product(gram, weights)
                weights = kept * weights - rate * slope + first_step
            fitted.append(weights)
        return torch.stack(fitted)


@dataclass(frozen=True)
class OnePassSGD(BatchLastLinearPredictor):
    """One pass over the examples: w ← w − 2α(x xᵀw − x y + λw) (paper, Theorem 1).

    Cost: O(B n d) time and memory.

    Args:
        step_size: α > 0.
        penalty: λ ≥ 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    step_size: Number
    penalty: Number = 0.0

    def __post_init__(self) -> None:
        check_real("step_size", self.step_size, positive=True)
        check_real("penalty", self.penalty)

    def values_per_prompt(self, dim: int) -> int:
        """A few vectors."""
        return 8 * dim

    def fit(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example dim batch"]:
        """As `BatchLastLinearPredictor.fit`."""
        rate, kept = 2 * self.step_size, 1 - 2 * self.step_size * self.penalty
        fitted = [torch.zeros_like(xs[0])]
        for x, y in zip(xs[:-1], ys[:-1], strict=True):
            weights = fitted[-1]
            residual = (x * weights).sum(0) - y
            fitted.append(torch.addcmul(kept * weights, x, residual, value=-rate))
        return torch.stack(fitted)
