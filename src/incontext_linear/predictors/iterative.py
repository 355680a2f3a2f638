"""Iterations on XᵀXw = Xᵀy other than plain gradient descent: each starts from w = 0.

With the residual r = Xᵀy − XᵀXw, half the negative gradient of ‖Xw − y‖²:

* heavy ball (Polyak 1964): plain descent that keeps a share β of its last step;
* Richardson: a step relative to ‖X‖², which converges for every prompt, at inputs of any size;
* Chebyshev (Golub & Varga 1961): the best m steps for eigenvalues in a given interval;
* conjugate gradients (Hestenes & Stiefel 1952): the best m steps for this prompt;
* preconditioned descent: a step along P r, where P knows the inputs' covariance.

All but conjugate gradients and the diagonal preconditioner are filters of the eigenvalues of XᵀX
(`incontext_linear.comparison.spectra`), which is how their free numbers are fitted to a learner.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

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
from incontext_linear.predictors.validation import (
    Number,
    check_choice,
    check_real,
    check_steps,
)
from incontext_linear.tasks import Xs, Ys


class NormalEquations(LinearPredictor):
    """A predictor that finds w from XᵀX and Xᵀy of each prefix; a subclass gives `solve`.

    Cost: O(B n d² num_steps) time; memory O(B n d), and O(n d²) a prompt of a chunk beside it.
    """

    @abstractmethod
    def solve(
        self,
        gram: Float[Tensor, "batch example dim dim"],
        moment: Float[Tensor, "batch example dim"],
    ) -> Float[Tensor, "batch example dim"]:
        """Weights (B, n, d) from XᵀX (B, n, d, d) and Xᵀy (B, n, d); prefix k has k examples."""

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        num_examples, dim = xs.shape[1:]
        return in_chunks(self._fit, num_examples * dim**2, xs, ys)

    def _fit(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        return self.solve(grams_before(xs), moments_before(xs, ys))


@dataclass(frozen=True)
class HeavyBall(NormalEquations):
    """Gradient descent with momentum: w ← w + 2α(Xᵀy − XᵀXw) + β(w − w of the step before).

    Args:
        step_size: α > 0.
        num_steps: ≥ 0.
        momentum: β ≥ 0; with 0 it is `GradientDescent`, and from 1 on it does not converge.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    step_size: Number
    num_steps: int
    momentum: Number

    def __post_init__(self) -> None:
        check_real("step_size", self.step_size, positive=True)
        check_steps(self.num_steps)
        check_real("momentum", self.momentum)

    def solve(
        self,
        gram: Float[Tensor, "batch example dim dim"],
        moment: Float[Tensor, "batch example dim"],
    ) -> Float[Tensor, "batch example dim"]:
        """As `NormalEquations.solve`."""
        weights = step = torch.zeros_like(moment)
        for _ in range(self.num_steps):
            residual = moment - _product(gram, weights)
            step = 2 * self.step_size * residual + self.momentum * step
            weights = weights + step
        return weights


@dataclass(frozen=True)
class Richardson(NormalEquations):
    """Descent whose step is relative to the prompt: w ← w + ω(Xᵀy − XᵀXw) / ‖X‖².

    The norm is Frobenius', ‖X‖² = tr XᵀX ≥ its largest eigenvalue, so that every 0 < ω < 2
    converges and predictions do not depend on the inputs' unit. A prefix of zeros gives 0.

    Args:
        relaxation: ω > 0.
        num_steps: ≥ 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    relaxation: Number
    num_steps: int

    def __post_init__(self) -> None:
        check_real("relaxation", self.relaxation, positive=True)
        check_steps(self.num_steps)

    def solve(
        self,
        gram: Float[Tensor, "batch example dim dim"],
        moment: Float[Tensor, "batch example dim"],
    ) -> Float[Tensor, "batch example dim"]:
        """As `NormalEquations.solve`."""
        rate = self.relaxation / _positive(_trace(gram))
        weights = torch.zeros_like(moment)
        for _ in range(self.num_steps):
            weights = weights + rate * (moment - _product(gram, weights))
        return weights


@dataclass(frozen=True)
class Chebyshev(NormalEquations):
    """Chebyshev's iteration for eigenvalues of XᵀX in [‖X‖²/κ, ‖X‖²], ‖X‖ being Frobenius' norm.

    After m steps the error in a direction of eigenvalue s is T_m(z(s)) / T_m(z(0)), where z maps
    the interval onto [1, −1] and T_m is Chebyshev's polynomial: of all polynomials of degree m that
    are 1 at 0 it is the one that is least on the interval. No eigenvalue is larger; smaller ones
    are learned less well. A prefix of zeros gives 0.

    Args:
        num_steps: m ≥ 0.
        condition: κ > 1, the ratio of the interval's ends.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    num_steps: int
    condition: Number

    def __post_init__(self) -> None:
        check_steps(self.num_steps)
        check_real("condition", self.condition, positive=True)
        if self.condition <= 1:
            raise ValueError(
                f"condition={self.condition!r} is not allowed: "
                "condition must be a finite number > 1"
            )

    def solve(
        self,
        gram: Float[Tensor, "batch example dim dim"],
        moment: Float[Tensor, "batch example dim"],
    ) -> Float[Tensor, "batch example dim"]:
        """As `NormalEquations.solve`."""
        largest = _positive(_trace(gram))
        center = largest * (1 + 1 / self.condition) / 2
        radius = largest * (1 - 1 / self.condition) / 2
        ratio = radius / center  # of T_{m-1}(z(0)) to T_m(z(0)), by their three-term recurrence
        weights, direction = torch.zeros_like(moment), moment / center
        for _ in range(self.num_steps):
            weights = weights + direction
            residual = moment - _product(gram, weights)
            ratio, before = 1 / (2 * center / radius - ratio), ratio
            direction = ratio * before * direction + 2 * ratio / radius * residual
        return weights


@dataclass(frozen=True)
class ConjugateGradients(NormalEquations):
    """m steps of conjugate gradients on XᵀXw = Xᵀy: the best w in the span of (XᵀX)ʲXᵀy, j < m.

    In exact arithmetic min(k, d) steps give the minimum-norm least-squares solution. A prefix
    whose residual is down to rounding is left as it is.

    Args:
        num_steps: m ≥ 0.

    Raises:
        ValueError: if m is not allowed, or, when called, if the prompts are not.
    """

    num_steps: int

    def __post_init__(self) -> None:
        check_steps(self.num_steps)

    def solve(
        self,
        gram: Float[Tensor, "batch example dim dim"],
        moment: Float[Tensor, "batch example dim"],
    ) -> Float[Tensor, "batch example dim"]:
        """As `NormalEquations.solve`."""
        weights, residual, direction = torch.zeros_like(moment), moment, moment
        energy = _squared(residual)
        rounding = 1e-28 * energy
        for _ in range(self.num_steps):
            active = energy > rounding
            curvature = (direction * _product(gram, direction)).sum(-1, keepdim=True)
            length = torch.where(active, energy / _positive(curvature), 0)
            weights = weights + length * direction
            residual = residual - length * _product(gram, direction)
            energy, before = _squared(residual), energy
            direction = residual + torch.where(active, energy / _positive(before), 0) * direction
        return weights


@dataclass(frozen=True)
class PreconditionedGradientDescent(NormalEquations):
    """Descent along P: w ← w + 2αP(Xᵀy − XᵀXw), where P is what the prompt says of the inputs.

    ``diagonal``: P = (diag XᵀX/k + δI)⁻¹ / k (Jacobi's). ``covariance``: P = (XᵀX/k + δI)⁻¹ / k,
    the inverse covariance, with which one step of α = 1/2 is ridge regression of penalty kδ. Either
    way the step 2α does not depend on k. With δ = 0, directions that no example has stay as they
    are.

    Args:
        step_size: α > 0.
        num_steps: ≥ 0.
        preconditioner: "diagonal" or "covariance".
        damping: δ ≥ 0.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    step_size: Number
    num_steps: int = 1
    preconditioner: Literal["diagonal", "covariance"] = "diagonal"
    damping: Number = 0.0

    def __post_init__(self) -> None:
        check_real("step_size", self.step_size, positive=True)
        check_steps(self.num_steps)
        check_choice("preconditioner", self.preconditioner, ("diagonal", "covariance"))
        check_real("damping", self.damping)

    def solve(
        self,
        gram: Float[Tensor, "batch example dim dim"],
        moment: Float[Tensor, "batch example dim"],
    ) -> Float[Tensor, "batch example dim"]:
        """As `NormalEquations.solve`."""
        examples_seen = torch.arange(gram.shape[1], dtype=gram.dtype, device=gram.device)
        added = self.damping * examples_seen[:, None]
        if self.preconditioner == "diagonal":
            scale = _inverse(gram.diagonal(dim1=-2, dim2=-1) + added)
            return self._descend(gram, moment, lambda residual: scale * residual)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.pinv(gram + added[..., None] * eye, hermitian=True, rtol=1e-12)
        return self._descend(gram, moment, lambda residual: _product(inverse, residual))

    def _descend(self, gram: Tensor, moment: Tensor, precondition) -> Tensor:
        weights = torch.zeros_like(moment)
        for _ in range(self.num_steps):
            residual = moment - _product(gram, weights)
            weights = weights + 2 * self.step_size * precondition(residual)
        return weights


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)


def _squared(vector: Tensor) -> Tensor:
    return vector.square().sum(-1, keepdim=True)


def _positive(values: Tensor) -> Tensor:
    """The values, with 1 for those that are not positive: what they divide is 0."""
    return torch.where(values > 0, values, 1)


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 for those that are 0."""
    return torch.where(values > 0, 1 / _positive(values), 0)
