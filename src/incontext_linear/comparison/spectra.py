"""Algorithms as filters of the eigenvalues of XᵀX, so that a whole grid of them is one computation.

In the eigenbasis XᵀX = V diag(s) Vᵀ many algorithms are w = V diag(g(s)) VᵀXᵀy, where the gain
g(s) = (1 − e(s)) / s belongs to the error e(s) that the algorithm leaves in a direction: λ/(s+λ)
for ridge regression, (1−2αs)^m for gradient descent, (1−s²/F²)^(2^m) for Newton's iteration. With
VᵀXᵀy and Vᵀx at hand, one more step size or penalty costs O(d) a prediction.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from incontext_linear.predictors import (
    Chebyshev,
    GradientDescent,
    HeavyBall,
    IterativeNewton,
    PreconditionedGradientDescent,
    Richardson,
    Ridge,
)
from incontext_linear.predictors.batching import moments_before
from incontext_linear.tasks import Xs, Ys

# Below this share of the trace an eigenvalue is rounding: the prompt says nothing of its direction.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Spectrum:
    """XᵀX of some prefixes of every prompt, in its eigenbasis.

    Attributes:
        values: eigenvalues s (B, K, d), those that are rounding set to 0.
        products: (VᵀXᵀy) ⊙ (Vᵀx), (B, K, d): a prediction is their sum, weighted by the gains.
        examples_seen: k of each prefix (K,).
    """

    values: Float[Tensor, "batch prefix dim"]
    products: Float[Tensor, "batch prefix dim"]
    examples_seen: Int[Tensor, " prefix"]

    @property
    def trace(self) -> Float[Tensor, "batch prefix 1"]:
        """‖X‖², the sum of the eigenvalues; 1 where there is none."""
        total = self.values.sum(-1, keepdim=True)
        return torch.where(total > 0, total, 1)

    def predict(
        self, error: Float[Tensor, "member batch prefix dim"]
    ) -> Float[Tensor, "member batch prefix"]:
        """Predictions of the algorithms that leave these errors e(s)."""
        safe = torch.where(self.values > 0, self.values, 1)
        ratios = torch.where(self.values > 0, self.products / safe, 0)
        return ((1 - error) * ratios).sum(-1)


@dataclass(frozen=True)
class Prefixes:
    """Prompts in float64, and the numbers of examples seen at which they are looked at.

    Attributes:
        xs: (B, n, d).
        ys: (B, n).
        examples_seen: K numbers below n.
    """

    xs: Xs
    ys: Ys
    examples_seen: tuple[int, ...]

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of XᵀX."""
        return self._decompose(None)

    @cached_property
    def scaled_spectrum(self) -> Spectrum:
        """Of D^(−1/2) XᵀX D^(−1/2) with D = diag XᵀX: what Jacobi's preconditioner sees."""
        diagonal = self._grams.diagonal(dim1=-2, dim2=-1)
        return self._decompose(torch.where(diagonal > 0, diagonal, 1).rsqrt())

    @cached_property
    def _grams(self) -> Float[Tensor, "batch prefix dim dim"]:
        # Of the examples between one k and the next, summed up: no d×d matrix for every example.
        ends = sorted(set(self.examples_seen))
        parts = [self.xs[:, low:high] for low, high in zip([0, *ends], ends)]  # noqa: B905
        grams = torch.stack([part.mT @ part for part in parts], 1).cumsum(1)
        return grams[:, [ends.index(k) for k in self.examples_seen]]

    def _decompose(self, scale: Float[Tensor, "batch prefix dim"] | None) -> Spectrum:
        kept = list(self.examples_seen)
        grams, moments, queries = (
            self._grams,
            moments_before(self.xs, self.ys)[:, kept],
            self.xs[:, kept],
        )
        if scale is not None:
            grams = scale.unsqueeze(-1) * grams * scale.unsqueeze(-2)
            moments, queries = scale * moments, scale * queries
        values, vectors = _eigh(grams)
        values = torch.where(values > ROUNDING * values.sum(-1, keepdim=True), values, 0)
        products = _rotate(vectors, moments) * _rotate(vectors, queries)
        return Spectrum(values, products, torch.tensor(kept, device=self.xs.device))


def _rotate(vectors: Tensor, what: Tensor) -> Tensor:
    return (vectors.mT @ what.unsqueeze(-1)).squeeze(-1)


Numbers = dict[str, Float[Tensor, "member 1 1 1"]]
ErrorFilter = Callable[[Spectrum, Numbers], Float[Tensor, "member batch prefix dim"]]


def _ridge(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    return numbers["penalty"] / (spectrum.values + numbers["penalty"])


def _gradient_descent(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    return (1 - 2 * numbers["step_size"] * spectrum.values) ** numbers["num_steps"]


def _richardson(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    relative = spectrum.values / spectrum.trace
    return (1 - numbers["relaxation"] * relative) ** numbers["num_steps"]


def _newton(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    squares = spectrum.values.square()
    total = squares.sum(-1, keepdim=True)
    share = (squares / torch.where(total > 0, total, 1)).clamp(max=1)
    return torch.exp(2 ** numbers["num_steps"] * torch.log1p(-share))


def _chebyshev(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    """T_m(z) / T_m(z₀), by cos outside of which cosh, both divided by e^(m arcosh z₀)."""
    low, steps = 1 / numbers["condition"], numbers["num_steps"]
    start = (1 + low) / (1 - low)
    z = (1 + low - 2 * spectrum.values / spectrum.trace) / (1 - low)
    rate = torch.acosh(start)
    angle = torch.acosh(z.clamp(min=1))
    outside = (torch.exp(steps * (angle - rate)) + torch.exp(-steps * (angle + rate))) / 2
    inside = torch.cos(steps * torch.acos(z.clamp(-1, 1))) * torch.exp(-steps * rate)
    return torch.where(z > 1, outside, inside) / ((1 + torch.exp(-2 * steps * rate)) / 2)


def _covariance_descent(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    damping = numbers["damping"] * spectrum.examples_seen[:, None]
    total = spectrum.values + damping
    share = torch.where(total > 0, spectrum.values / torch.where(total > 0, total, 1), 0)
    return (1 - 2 * numbers["step_size"] * share) ** numbers["num_steps"]


def _heavy_ball(spectrum: Spectrum, numbers: Numbers) -> Tensor:
    """The m-th term of e ← (1 + β − 2αs) e − β (e before), from e = (e before) = 1.

    It is β^(m/2) U_m(x) − β^((m+1)/2) U_{m−1}(x) at x = (1 + β − 2αs) / 2√β, U being Chebyshev's
    polynomials of the second kind.
    """
    momentum, steps = numbers["momentum"], numbers["num_steps"]
    root = momentum.sqrt()
    x = (1 + momentum - 2 * numbers["step_size"] * spectrum.values) / (2 * root)
    last, before = _scaled_second_kind(x, (steps, steps - 1), root)
    return last - momentum * before


def _scaled_second_kind(x: Tensor, degrees: Sequence[Tensor], scale: Tensor) -> Iterator[Tensor]:
    """scale^m U_m(x): sin((m+1)θ) / sin θ for x = cos θ, and sinh in place of sin beyond ±1."""
    angle = torch.acos(x.clamp(-1 + 1e-12, 1 - 1e-12))
    rate = torch.acosh(x.abs().clamp(min=1 + 1e-12))
    sine, decay, growth = torch.sin(angle), torch.expm1(-2 * rate), rate + scale.log()
    negative, beyond = x < 0, x.abs() > 1
    for degree in degrees:
        inside = scale**degree * torch.sin((degree + 1) * angle) / sine
        sign = torch.where(negative & (degree % 2 == 1), -1.0, 1.0)
        grown = torch.exp(degree * growth) * sign
        outside = grown * torch.expm1(-2 * (degree + 1) * rate) / decay
        yield torch.where(beyond, outside, inside)


ERROR_FILTERS: dict[type, ErrorFilter] = {
    Ridge: _ridge,
    GradientDescent: _gradient_descent,
    Richardson: _richardson,
    IterativeNewton: _newton,
    Chebyshev: _chebyshev,
    HeavyBall: _heavy_ball,
}
"""By the predictor's type; `predict_filtered` adds the preconditioned ones."""


def has_filter(kind: type, fixed: dict) -> bool:
    """Whether `predict_filtered` knows this algorithm with these fixed arguments."""
    if kind is PreconditionedGradientDescent:
        return fixed.get("preconditioner", "diagonal") == "covariance" or not fixed.get(
            "damping", 0
        )
    return kind in ERROR_FILTERS and not fixed.get("penalty", 0)


def predict_filtered(
    kind: type, members: Sequence[dict], prefixes: Prefixes, values_at_once: int = 2**22
) -> Float[Tensor, "member batch prefix"]:
    """Predictions of many members of one family.

    Args:
        kind: the predictors' class, one for which `has_filter` holds.
        members: all arguments of each member.
        prefixes: what they predict.
        values_at_once: bound on the working memory, in float64 numbers.

    Returns:
        (M, B, K); not finite where an algorithm diverges beyond the range of float64.
    """
    spectrum, error = prefixes.spectrum, ERROR_FILTERS.get(kind, _covariance_descent)
    if kind is PreconditionedGradientDescent and members[0].get("preconditioner") != "covariance":
        spectrum, error = prefixes.scaled_spectrum, _gradient_descent
    names = [name for name, value in members[0].items() if not isinstance(value, str)]
    rows = [[float(member[name]) for name in names] for member in members]
    table = torch.tensor(rows, dtype=torch.float64, device=spectrum.values.device)
    at_once = max(1, values_at_once // spectrum.values.numel())
    parts = []
    for part in table.split(at_once):
        numbers = {name: part[:, i, None, None, None] for i, name in enumerate(names)}
        parts.append(spectrum.predict(error(spectrum, numbers)))
    return torch.cat(parts)


MATRICES_AT_ONCE = 8192
"""More small matrices in one call than this, and the GPU's solver fails."""


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of many small matrices (…, d, d), some thousands at a time."""
    flat = matrices.flatten(0, -3)
    parts = [torch.linalg.eigh(part) for part in flat.split(MATRICES_AT_ONCE)]
    values, vectors = (torch.cat(part) for part in zip(*parts, strict=True))
    return values.unflatten(0, matrices.shape[:-2]), vectors.unflatten(0, matrices.shape[:-2])
