"""Least squares, penalised or not, at every prefix of every prompt in O(n d²) a prompt.

The paper's Theorem 2 takes in one example by the Sherman–Morrison formula,
(A + x xᵀ)⁻¹ = A⁻¹ − A⁻¹x xᵀA⁻¹ / (1 + xᵀA⁻¹x). This file carries that recursion out in a form that
keeps
its digits, and that has no least penalty: 0 is the minimum-norm solution X⁺y, for fewer than d
examples too.

Two changes make it so. A⁻¹ is held as T Tᵀ and T is updated (Potter 1963): an ill-conditioned
prefix, such as k = d, then costs the later ones a factor κ(X) in accuracy, not κ(X)². And T lives
in the row space of X only, where A⁻¹ is bounded for any penalty; the part of a new x outside that
space, ρq with unit q, enlarges it (Greville 1960). With s = √penalty, f = Tᵀx and b² = s²(1 + fᵀf)
+ ρ², one example does

    gain = (s²Tf + ρq) / b²                                 w ← w + gain (y − xᵀw)
    T ← T − (s²Tf + ρq) fᵀ / (b(b+s)) + ((s(1+fᵀf) + b) q − sρ Tf) qᵀ / (b(b+s))

where nothing cancels as s → 0. An x inside the row space has ρ = 0 and the same formulae with s =
1.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.batching import check_prompts, in_chunks_batch_last, needs_grad
from incontext_linear.predictors.validation import Number, check_integer, check_real
from incontext_linear.tasks import Xs, Ys


class _Recursion:
    """Where the recursion stands after some examples, for a chunk of prompts, batch-last.

    Attributes:
        root: T (d, d, B), with T Tᵀ = (XᵀX + penalty I)⁻¹ on the row space of X and 0 outside it.
        outside: the projector (d, d, B) on what is orthogonal to the row space; None once that is
            nothing.
        rank: dimensions of the row space (B,).
        energy: squared Frobenius norm of X (B,).
        blur: how much larger than rounding the error of the row space may be, squared (B,).
    """

    def __init__(self, xs: Float[Tensor, "example dim batch"], penalty: float, reuse_buffers: bool):
        dim, batch = xs.shape[1:]
        self.penalty = penalty
        self.root = xs.new_zeros(dim, dim, batch)
        self.outside = torch.eye(dim, dtype=xs.dtype, device=xs.device)[..., None].repeat(
            1, 1, batch
        )
        self.rank = xs.new_zeros(batch)
        self.energy = xs.new_zeros(batch)
        self.blur = xs.new_ones(batch)
        self.reuse_buffers = reuse_buffers
        self.scratch = torch.empty_like(self.root) if reuse_buffers else None

    def gain(self, x: Float[Tensor, "dim batch"]) -> Float[Tensor, "dim batch"]:
        """Take in the example x; return what its residual y − xᵀw is multiplied by to move w."""
        inner = self._product(self.root, x[:, None], 0)  # f = Tᵀx
        solved = self._product(self.root, inner, 1)  # T Tᵀx
        leverage = 1 + (inner * inner).sum(0)
        if self.outside is None:
            norm = leverage.sqrt()
            self.root = self._add_outer(self.root, solved / (norm * (norm + 1)), inner, -1)
            return solved / leverage
        direction, independent = self._new_direction(x, leverage)
        return self._enlarge(x, inner, solved, leverage, direction, independent)

    def _new_direction(
        self, x: Float[Tensor, "dim batch"], leverage: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "dim batch"], Bool[Tensor, " batch"]]:
        """The unit part q of x outside the row space, and whether x has one; q is 0 where it has
        not.

        A unit q carries the rounding of all of X that it took to make x, which is f, magnified by
        1/ρ. A part of a later x that is no larger than what the row space so got wrong is rounding
        too.
        """
        dim = x.shape[0]
        remainder = self._product(self.outside, x, 1)
        squared = (remainder * remainder).sum(0)
        with torch.no_grad():
            size = (x * x).sum(0)
            self.energy = self.energy + size
            spread = size + (leverage - 1) * self.energy
            resolution = 8 * dim * torch.finfo(x.dtype).eps
            independent = squared > resolution**2 * (spread + self.blur * size)
            independent &= self.rank < dim
            self.rank = self.rank + independent
            self.blur = torch.where(
                independent, torch.maximum(self.blur, spread / squared), self.blur
            )
        direction = torch.where(
            independent, remainder * torch.where(independent, squared, 1).rsqrt(), 0
        )
        direction = self._product(
            self.outside, direction, 1
        )  # again: the first projection rounds to ‖x‖
        squared = torch.where(independent, (direction * direction).sum(0), 1)
        return direction * squared.rsqrt(), independent

    def _enlarge(
        self,
        x: Float[Tensor, "dim batch"],
        inner: Float[Tensor, "dim batch"],
        solved: Float[Tensor, "dim batch"],
        leverage: Float[Tensor, " batch"],
        direction: Float[Tensor, "dim batch"],
        independent: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "dim batch"]:
        """The general step of the module's docstring; `gain` holds its short form for a full row
        space.
        """
        one = torch.ones_like(leverage)
        penalty = torch.where(independent, self.penalty, one)
        s = torch.where(independent, self.penalty**0.5, one)
        distance = (direction * x).sum(0)  # ρ
        squared = penalty * leverage + distance * distance
        norm = squared.sqrt()  # b
        scale = 1 / (norm * (norm + s))
        move = penalty * solved + distance * direction
        grow = (s * leverage + norm) * direction - s * distance * solved
        self.root = self._add_outer(self.root, move * scale, inner, -1)
        self.root = self._add_outer(self.root, grow * scale, direction, 1)
        self.outside = self._add_outer(self.outside, direction, direction, -1)
        if (self.rank == len(x)).all():
            self.outside = None
        return move / squared

    def _product(self, matrix: Tensor, vector: Tensor, dim: int) -> Tensor:
        return torch.mul(matrix, vector, out=self.scratch).sum(dim)

    def _add_outer(self, matrix: Tensor, column: Tensor, row: Tensor, sign: int) -> Tensor:
        out = matrix if self.reuse_buffers else None
        return torch.addcmul(matrix, column[:, None], row, value=sign, out=out)


def _run(
    xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"], penalty: float
) -> tuple[list[Float[Tensor, "dim batch"]], list[Float[Tensor, " batch"]]]:
    """Weights fitted to the first 0, 1, …, n−1 examples, and their predictions of the next y.

    The recursion needs the prediction anyway, for the residual.
    """
    recursion = _Recursion(xs, penalty, reuse_buffers=not needs_grad(xs, ys))
    weights, prediction = torch.zeros_like(xs[0]), torch.zeros_like(ys[0])
    fitted, predictions = [weights], [prediction]
    for x, y, query in zip(xs[:-1], ys[:-1], xs[1:], strict=True):
        weights = torch.addcmul(weights, recursion.gain(x), y - prediction)
        prediction = (query * weights).sum(0)
        fitted.append(weights)
        predictions.append(prediction)
    return fitted, predictions


class PenalizedLeastSquares(LinearPredictor):
    """What `OrdinaryLeastSquares`, `Ridge` and `BayesPosteriorMean` share; each gives its
    penalty.
    """

    @abstractmethod
    def squared_norm_penalty(self) -> float:
        """λ in ‖Xw − y‖² + λ‖w‖²; 0 is minimum-norm least squares."""

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        return self._answer(
            xs, ys, lambda xs, ys: torch.stack(_run(xs, ys, self.squared_norm_penalty())[0])
        )

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n), as `Predictor` defines them."""
        return self._answer(
            xs, ys, lambda xs, ys: torch.stack(_run(xs, ys, self.squared_norm_penalty())[1])
        )

    def _answer(self, xs: Tensor, ys: Tensor, fit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        check_prompts(xs, ys)
        return in_chunks_batch_last(fit, xs.shape[-1] ** 2, xs, ys)


@dataclass(frozen=True)
class Ridge(PenalizedLeastSquares):
    """Ridge regression, (XᵀX + λI)⁻¹Xᵀy (paper, section 3), by a square-root Sherman–Morrison
    recursion.

    Accuracy does not depend on the penalty; 0 gives the limit, minimum-norm least squares.
    Cost: O(B n d²) time, O(B n d) memory for the result and O(d²) a prompt of a chunk beside it.

    Accuracy, in float64: the relative error of a prediction is some 1e-15 times the largest
    condition number that any prefix up to this one has had, where zero singular values do not
    count.

    Args:
        penalty: λ ≥ 0.

    Raises:
        ValueError: if the penalty is not allowed, or, when called, if the prompts are not.
    """

    penalty: Number

    def __post_init__(self) -> None:
        check_real("penalty", self.penalty)

    def squared_norm_penalty(self) -> float:
        """The penalty given."""
        return float(self.penalty)


@dataclass(frozen=True)
class OrdinaryLeastSquares(PenalizedLeastSquares):
    """Least squares of minimum norm: X⁺y (paper, section 3), the limit of `Ridge` as its penalty
    vanishes.

    With fewer than d independent examples it is the shortest w that fits them; an example that
    repeats or combines others (duplicated rows, collinear columns, zeros) adds no dimension to that
    fit.
    Cost: O(B n d²) time, O(B n d) memory for the result and O(d²) a prompt of a chunk beside it.

    Accuracy, in float64: as `Ridge`. With Gaussian x the condition number peaks at k = d, where it
    exceeds 1e4 in about one prompt in a thousand (d = 8): any algorithm loses digits
    there. Rows that depend on others up to a relative 1e-14 · κ(X) or so are taken to
    depend on them.
    """

    def squared_norm_penalty(self) -> float:
        """None."""
        return 0.0


@dataclass(frozen=True)
class FirstExamples(LinearPredictor):
    """Least squares on the first m examples alone; those after them change nothing.

    The best that a learner can do that attends to fixed places but cannot pair every x with its y,
    such as one layer on separate x- and y-tokens. With m = 0 every prediction is 0.
    Cost: O(B m d²) time, O(B n d) memory.

    Args:
        num_examples: m ≥ 0.

    Raises:
        ValueError: if m is not allowed, or, when called, if the prompts are not.
    """

    num_examples: int

    def __post_init__(self) -> None:
        check_integer("num_examples", self.num_examples, minimum=0)

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        read = slice(
            self.num_examples + 1
        )  # weights at prefix m, the last that differ, have seen m
        seen = torch.arange(xs.shape[1], device=xs.device).clamp(max=self.num_examples)
        return OrdinaryLeastSquares().weights(xs[:, read], ys[:, read])[:, seen]
