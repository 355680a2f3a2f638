"""Iterative Newton for the inverse of XᵀX: a rival whose steps a transformer's layers resemble."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.base import BatchLastLinearPredictor, LinearPredictor
from incontext_linear.predictors.batching import (
    check_prompts,
    grams_before,
    in_chunks,
    moments_before,
    needs_grad,
    normal_equations_batch_last,
    symmetric_product,
)
from incontext_linear.predictors.validation import check_steps
from incontext_linear.tasks import Xs, Ys

# Rounding in the null space of XᵀX doubles with every step. Up to this many steps it stays below
# 1e-9.
STEPS_BEFORE_STOPPING = 20


@dataclass(frozen=True)
class IterativeNewton(BatchLastLinearPredictor):
    """Newton's iteration M ← 2M − M S M on S = XᵀX from M = S/‖S‖², then w = M Xᵀy (Fu et al.
    2023).

    The norm is Frobenius', which bounds the spectral norm from above: every start αS with α <
    2/‖S‖₂² converges to S⁺, this one needs no eigenvalues, and for a single example it is S⁺ at
    once. Convergence is quadratic, in about 2 log₂ κ(S) + log₂ log₂ (1/ε) steps. A prefix that has
    converged is left as it is: further steps would change nothing but rounding, which the iteration
    doubles where S is singular.

    Up to 20 steps M is never made. The residual R = I − M S is squared by every step, and M from
    the start S/‖S‖² is S/‖S‖² (I + R)(I + R²)…, so w follows from Xᵀy by products with the first
    few powers of R, which cost d times less than products of matrices.

    Cost: O(B n d² (d p + 2^(m − p))) time for m ≤ 20 steps, at the best p < m, and O(B n d³ m) for
    more; memory O(B n d), and for m > 20 O(n d²) a prompt of a chunk beside it.

    Args:
        num_steps: ≥ 0; with 0, w = S Xᵀy / ‖S‖².

    Raises:
        ValueError: if num_steps is not allowed, or, when called, if the prompts are not.
    """

    num_steps: int

    def __post_init__(self) -> None:
        check_steps(self.num_steps)

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        if self.num_steps <= STEPS_BEFORE_STOPPING:
            return super().weights(xs, ys)
        check_prompts(xs, ys)
        return in_chunks(self._iterate, xs.shape[1] * xs.shape[2] ** 2, xs, ys)

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n), as `Predictor` defines them."""
        if self.num_steps <= STEPS_BEFORE_STOPPING:
            return super().__call__(xs, ys)
        return LinearPredictor.__call__(self, xs, ys)

    def fit(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example dim batch"]:
        """S/‖S‖² (I + R)(I + R²)…(I + R^(2^(m−1))) Xᵀy, R = I − (S/‖S‖)²."""
        num_squared = _num_squared(self.num_steps, xs.shape[1])
        fitted = []
        for gram, moment in normal_equations_batch_last(xs, ys):
            size = (gram * gram).sum((0, 1)).sqrt()
            size = torch.where(size > 0, size, 1)
            start, residual = gram / size, None
            for step in range(self.num_steps):
                if residual is None:
                    residual = -_square(start)
                    residual.diagonal().add_(1)
                elif step <= num_squared:
                    residual = _square(residual)
                change = moment
                for _ in range(2 ** max(0, step - num_squared)):
                    change = symmetric_product(residual, change)
                moment = moment + change
            fitted.append(symmetric_product(start, moment) / size)
        return torch.stack(fitted)

    def _iterate(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
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


def _num_squared(num_steps: int, dim: int) -> int:
    """How often to square R: each costs ``dim`` products with a vector, and halves later ones."""
    return min(range(max(1, num_steps)), key=lambda p: p * (dim + 1) + 2 ** (num_steps - p))


def _square(matrix: Float[Tensor, "dim dim batch"]) -> Float[Tensor, "dim dim batch"]:
    """The square of a symmetric matrix, batch-last: the sum of its rows' outer products."""
    reuse_buffers = not needs_grad(matrix)
    first, *others = matrix.unbind()
    total = first[:, None] * first
    for row in others:
        total = torch.addcmul(total, row[:, None], row, out=total if reuse_buffers else None)
    return total


@torch.no_grad()
def _has_converged(inverse: Tensor, change: Tensor) -> Tensor:
    """Whether the next change, the square of this one in relative terms, would be below
    rounding.
    """
    norm, moved = (matrix.norm(dim=(-2, -1), keepdim=True) for matrix in (inverse, change))
    return moved <= torch.finfo(inverse.dtype).eps ** 0.5 * norm
