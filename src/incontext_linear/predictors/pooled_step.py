"""The best step for a pool of M tasks, in the limit of many dimensions: its risk on old and new w.

With x ~ N(0, I) and w from a pool drawn from N(0, I), the step of `optimal_step` is a function of
the pool's second moment S = (1/M) Σ wwᵀ alone,

    Γ = a S (b S + c (tr S + σ²) I)⁻¹ = (a/b) S (S + λI)⁻¹,    λ = c (tr S + σ²) / b,

with a = Σ_k p_k s_k k, b = Σ_k p_k s_k² k(k+1), c = Σ_k p_k s_k² k: directions in which the pool
varies little are shrunk. Its risks need tr Γ, tr Γ², tr ΓS, tr Γ²S. As d, n, M grow in
proportion, the eigenvalues of S follow Marchenko and Pastur's law with ratio γ = d/M, tr S/d → 1,
and these traces follow from the resolvent r(λ) = E[1/(s + λ)], which solves

    γλ r² + (1 − γ + λ) r − 1 = 0,

and from −r'(λ) = E[1/(s + λ)²]. This is the limit of infinitely many prompts in Lu et al. (2024),
who also have finitely many; here it is derived anew, for any weighting of prefixes.
"""

from typing import NamedTuple

import torch

from incontext_linear.predictors.optimal_step import Prefixes
from incontext_linear.predictors.validation import check_integer, check_real


class PooledRisk(NamedTuple):
    """Expected squared error at every number of examples k < n, each (n,)."""

    pool: Prefixes
    """On prompts whose w comes from the pool."""
    prior: Prefixes
    """On prompts with a new w ~ N(0, I)."""


def resolvent(ratio: float, shift: float) -> tuple[float, float]:
    """E[1/(s + λ)] and E[1/(s + λ)²] for s of Marchenko and Pastur's law.

    Args:
        ratio: γ = d/M > 0, of the matrix (1/M) Σ wwᵀ of M vectors w ~ N(0, I) in d dimensions.
        shift: λ > 0.
    """
    check_real("ratio", ratio, positive=True)
    check_real("shift", shift, positive=True)
    middle = 1 - ratio + shift
    root = (middle**2 + 4 * ratio * shift) ** 0.5
    # Of the two forms of the quadratic's positive root this one has no cancellation.
    mean = 2 / (middle + root) if middle > 0 else (root - middle) / (2 * ratio * shift)
    return mean, (ratio * mean**2 + mean) / root


def pooled_step_risk(
    dim: int, pool_size: int, noise_std: float, prefixes: Prefixes, scales: Prefixes
) -> PooledRisk:
    """Risks of the best step for a pool of M tasks, x ~ N(0, I), in the limit's form.

    Args:
        dim: d.
        pool_size: M.
        noise_std: σ.
        prefixes: p_k (n,), as for `optimal_step`.
        scales: s_k (n,).
    """
    check_integer("dim", dim, minimum=1)
    check_integer("pool_size", pool_size, minimum=1)
    k = torch.arange(len(prefixes), dtype=torch.float64)
    labels = dim + noise_std**2
    first = (prefixes * scales * k).sum().item()
    second = (prefixes * scales.square() * k).sum().item()
    third = (prefixes * scales.square() * k * (k + 1)).sum().item()
    shift, size = second * labels / third, first / third
    mean, square = resolvent(dim / pool_size, shift)
    step, steps = 1 - shift * mean, 1 - 2 * shift * mean + shift**2 * square
    fit = 1 - shift + shift**2 * mean
    fits = 1 - 2 * shift + 3 * shift**2 * mean - shift**3 * square
    linear, quadratic = -2 * scales * k * size * dim, scales.square() * k * size**2 * dim
    return PooledRisk(
        labels + linear * fit + quadratic * ((k + 1) * fits + labels * steps),
        labels + linear * step + quadratic * (k + 1 + labels) * steps,
    )
