"""Iterative Newton for the inverse of XᵀX: a rival whose steps a transformer's layers resemble."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.batching import (
    check_prompts,
    grams_before,
    in_chunks,
    moments_before,
)
from incontext_linear.predictors.validation import check_integer
from incontext_linear.tasks import Xs, Ys

# Rounding in the null space of XᵀX doubles with every step. Up to this many steps it stays below
# 1e-9.
STEPS_BEFORE_STOPPING = 20


@dataclass(frozen=True)
class IterativeNewton(LinearPredictor):
    """Newton's iteration M ← 2M − M S M on S = XᵀX from M = S/‖S‖², then w = M Xᵀy (Fu et al.
    2023).

    The norm is Frobenius', which bounds the spectral norm from above: every start αS with α <
    2/‖S‖₂² converges to S⁺, this one needs no eigenvalues, and for a single example it is S⁺ at
    once. Convergence is quadratic, in about 2 log₂ κ(S) + log₂ log₂ (1/ε) steps. A prefix that has
    converged is left as it is: further steps would change nothing but rounding, which the iteration
        doubles where S is singular.

    Cost: O(B n d³ num_steps) time; memory O(B n d), and O(n d²) a prompt of a chunk beside it.

    Args:
        num_steps: ≥ 0; with 0, w = S Xᵀy / ‖S‖².

    Raises:
        ValueError: if num_steps is not allowed, or, when called, if the prompts are not.
    """

    num_steps: int

    def __post_init__(self) -> None:
        check_integer("num_steps", self.num_steps, minimum=0)

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        num_examples, dim = xs.shape[1:]
        return in_chunks(self._fit, num_examples * dim**2, xs, ys)

    def _fit(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        gram = grams_before(xs)
        size = (gram * gram).sum((-2, -1), keepdim=True)
        inverse = gram / torch.where(size > 0, size, 1)
        active = torch.ones_like(size, dtype=torch.bool)
        for step in range(self.num_steps):
            change = inverse - inverse @ gram @ inverse
            if step < STEPS_BEFORE_STOPPING:
                inverse = inverse + change
            else:
                inverse = torch.where(active, inverse + change, inverse)
                active = active & ~_has_converged(inverse, change)
        moment = moments_before(xs, ys)
        return (inverse @ moment.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def _has_converged(inverse: Tensor, change: Tensor) -> Tensor:
    """Whether the next change, the square of this one in relative terms, would be below
    rounding.
    """
    norm, moved = (matrix.norm(dim=(-2, -1), keepdim=True) for matrix in (inverse, change))
    return moved <= torch.finfo(inverse.dtype).eps ** 0.5 * norm
