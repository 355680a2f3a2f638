"""Posterior means: what minimises the expected squared error under a given prior over w."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.batching import check_prompts, in_chunks
from incontext_linear.predictors.least_squares import PenalizedLeastSquares
from incontext_linear.predictors.validation import Number, check_real
from incontext_linear.tasks import Xs, Ys


@dataclass(frozen=True)
class BayesPosteriorMean(PenalizedLeastSquares):
    """Posterior mean of w ~ N(0, τ²I) under noise N(0, σ²): ridge with penalty σ²/τ².

    The minimum-risk predictor of the paper's section 4; without noise it is minimum-norm least
    squares.
    Cost and accuracy: those of `Ridge`.

    Args:
        noise_std: σ ≥ 0.
        prior_std: τ > 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    noise_std: Number
    prior_std: Number

    def __post_init__(self) -> None:
        check_real("noise_std", self.noise_std)
        check_real("prior_std", self.prior_std, positive=True)

    def squared_norm_penalty(self) -> float:
        """The ratio of variances, σ²/τ²."""
        return float(self.noise_std / self.prior_std) ** 2


@dataclass(frozen=True, eq=False)
class DiscreteMMSE(LinearPredictor):
    """Posterior mean of a w drawn from a finite pool, all equally likely (Raventós et al. 2023,
    equation 3).

    w = Σᵢ wᵢ exp(−‖y − Xwᵢ‖²/2σ²) / Σᵢ exp(−‖y − Xwᵢ‖²/2σ²). With no example seen it is the mean of
    the pool; with σ = 0, the limit: the mean of those members of the pool whose squared error is
    the least.
    Cost: O(B n P d) time for a pool of P; memory O(B n d), and O(P) a prompt of a chunk beside it.

    Args:
        task_pool: (P, d), finite; `incontext_linear.tasks.task_pool` gives a task's own.
        noise_std: σ ≥ 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    task_pool: Float[Tensor, "pool dim"]
    noise_std: Number

    def __post_init__(self) -> None:
        pool = self.task_pool
        if (
            not isinstance(pool, Tensor)
            or pool.ndim != 2
            or not len(pool)
            or not pool.isfinite().all()
        ):
            given = tuple(pool.shape) if isinstance(pool, Tensor) else type(pool).__name__
            raise ValueError(
                f"task_pool ({given}) must be a tensor (P, d) of finite numbers, with P ≥ 1"
            )
        check_real("noise_std", self.noise_std)

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        if self.task_pool.shape[1] != xs.shape[2]:
            raise ValueError(
                f"xs has dim {xs.shape[2]}; this pool's vectors have dim {self.task_pool.shape[1]}"
            )
        return in_chunks(self._fit, 4 * len(self.task_pool), xs, ys)

    def _fit(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        pool = self.task_pool.to(xs)
        errors = torch.zeros_like(ys[:, 0, None].expand(-1, len(pool)))
        fitted = []
        for k in range(xs.shape[1]):
            fitted.append(self._posterior(errors) @ pool)
            errors = errors + (ys[:, k, None] - xs[:, k] @ pool.T).square()
        return torch.stack(fitted, dim=1)

    def _posterior(self, errors: Float[Tensor, "batch pool"]) -> Float[Tensor, "batch pool"]:
        if self.noise_std == 0:
            best = (errors == errors.amin(-1, keepdim=True)).to(errors.dtype)
            return best / best.sum(-1, keepdim=True)
        return (errors / (-2 * self.noise_std**2)).softmax(-1)
