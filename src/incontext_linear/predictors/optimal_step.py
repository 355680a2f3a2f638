"""The best single gradient step in closed form: what one layer of linear attention should learn.

One layer of linear attention can predict xᵀΓ s_k Xᵀy for any matrix Γ, a preconditioned step of
gradient descent from w = 0 (von Oswald et al. 2023). Which Γ has the least squared error is known
exactly (Ahn et al. 2023; Zhang, Frei, Bartlett 2024), and it depends on how the prefixes are
weighted in the loss. Derivation, for x with E[xxᵀ] = Σ, w with E[wwᵀ] = S, noise of variance σ²,
all independent, and m_k = Xᵀy over k examples:

    E[m_k wᵀ]   = k ΣS
    E[m_k m_kᵀ] = k(k−1) ΣSΣ + k (F + σ²Σ),    F = E[x xᵀS x xᵀ]

since examples i ≠ j give ΣSΣ each and i = j gives F. The squared error at k examples is then

    R_k(Γ) = tr ΣS + σ² − 2 s_k k tr(ΓΣSΣ) + s_k² tr(Γ E[m_k m_kᵀ] Γᵀ Σ),

a quadratic in Γ, and Σ_k p_k R_k(Γ) is least where its gradient vanishes, at

    Γ = (Σ_k p_k s_k k) SΣ (Σ_k p_k s_k² E[m_k m_kᵀ])⁻¹.

For normal x with mean 0, F = 2ΣSΣ + tr(ΣS)Σ. With S = I, s_k = 1/k and the last prefix alone this
is ((1 + 1/k) Σ + (tr Σ + σ²)/k I)⁻¹, the form in the two papers; the mean over prefixes has another
optimum.

Linear attention with free matrices has two terms more, in Σ_i y_i² and XᵀX, which are even in y.
They cannot help if −w is as likely as w: with (w, ε) → (−w, −ε) the odd terms and y change their
sign, so the loss is that of the odd terms plus E[even²]. A pool of tasks breaks this symmetry.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import DistributionConfig, TaskConfig
from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.batching import check_prompts, moments_before
from incontext_linear.predictors.validation import check_choice
from incontext_linear.tasks import Xs, Ys, task_pool

Matrix = Float[Tensor, "dim dim"]
Prefixes = Float[Tensor, " example"]

UNIFORM_EXCESS = -1 / 120
"""Fourth cumulant of the uniform distribution on [0, 1)."""
NUM_ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class TaskMoments:
    """The moments of a task that the risk of a step depends on; float64.

    Args:
        inputs: Σ = E[xxᵀ] (d, d), also where x has a mean.
        fourth: E[x_i x_j x_k x_l] (d, d, d, d).
        weights: S = E[wwᵀ] (d, d).
        noise_std: σ.
    """

    inputs: Matrix
    fourth: Float[Tensor, "dim dim dim dim"]
    weights: Matrix
    noise_std: float

    @classmethod
    def of(cls, task: TaskConfig) -> Self:
        """Of a task, exactly: mixtures of normal and uniform components, w also from a pool."""
        inputs, fourth = _mean_moments(task.inputs, task.dim)
        if task.pool_size is None:
            weights = _mean_moments(task.weights, task.dim)[0]
        else:
            pool = task_pool(task).double()
            weights = pool.T @ pool / len(pool)
        return cls(inputs, fourth, weights, task.noise_std)

    @classmethod
    def normal(cls, inputs: Matrix, weights: Matrix, noise_std: float = 0.0) -> Self:
        """Of normal x with mean 0 and covariance Σ (d, d), and any w with E[wwᵀ] = S (d, d)."""
        return cls(inputs, _pairings(inputs), weights, noise_std)

    @property
    def labels(self) -> Float[Tensor, ""]:
        """E[y²] = tr ΣS + σ²."""
        return (self.inputs * self.weights).sum() + self.noise_std**2

    def of_step(self, num_examples: int) -> Float[Tensor, "example dim dim"]:
        """E[m_k m_kᵀ] of every k < n, (n, d, d)."""
        k = torch.arange(num_examples, dtype=torch.float64)[:, None, None]
        apart = self.inputs @ self.weights @ self.inputs
        same = torch.einsum("ijkl,jk->il", self.fourth, self.weights)
        return k * (k - 1) * apart + k * (same + self.noise_std**2 * self.inputs)


def _mean_moments(
    components: tuple[DistributionConfig, ...], dim: int
) -> tuple[Matrix, Float[Tensor, "dim dim dim dim"]]:
    """Second and fourth moments of a mixture of equally likely components."""
    parts = [_moments(component, dim) for component in components]
    second, fourth = (torch.stack(kind).mean(0) for kind in zip(*parts, strict=True))
    return second, fourth


def _moments(
    component: DistributionConfig, dim: int
) -> tuple[Matrix, Float[Tensor, "dim dim dim dim"]]:
    """E[xxᵀ] and E[x_i x_j x_k x_l] from the cumulants: coordinates are independent and symmetric
    about their mean μ, so fourth moments are those of a normal vector plus the fourth cumulants.

    The three pairings of E[xxᵀ] hold μ_i μ_j μ_k μ_l three times, where it belongs once.
    """
    uniform = component.kind == "uniform"
    center = component.shift + (component.scale / 2 if uniform else 0.0)
    variance = component.scale**2 * (1 / 12 if uniform else 1.0)
    second = variance * torch.eye(dim, dtype=torch.float64) + center**2
    fourth = _pairings(second) - 2 * center**4
    if uniform:
        place = torch.arange(dim)
        fourth[place, place, place, place] += UNIFORM_EXCESS * component.scale**4
    return second, fourth


def _pairings(second: Matrix) -> Float[Tensor, "dim dim dim dim"]:
    """Σ_ij Σ_kl + Σ_ik Σ_jl + Σ_il Σ_jk (Isserlis): fourth moments of a centred normal vector."""
    product = torch.einsum("ij,kl->ijkl", second, second)
    return product + product.transpose(1, 2) + product.transpose(1, 3)


def prefix_scales(num_examples: int, normalization: Literal["examples", "none"]) -> Prefixes:
    """s_k of every k < n: 1/k (0 where no example is seen), or 1."""
    seen = torch.arange(num_examples, dtype=torch.float64)
    return 1 / seen.clamp(min=1) if normalization == "examples" else torch.ones_like(seen)


def optimal_step(moments: TaskMoments, prefixes: Prefixes, scales: Prefixes) -> Matrix:
    """Γ with the least Σ_k p_k R_k(Γ), (d, d); see the module's docstring.

    Args:
        moments: of the task.
        prefixes: p_k ≥ 0 (n,), the weight of k examples in the loss; not all on k = 0.
        scales: s_k (n,).
    """
    seen = torch.arange(len(prefixes), dtype=torch.float64)
    quadratic = torch.einsum("k,kij->ij", prefixes * scales.square(), moments.of_step(len(seen)))
    linear = (prefixes * scales * seen).sum() * moments.weights @ moments.inputs
    return torch.linalg.solve(quadratic, linear, left=False)


def step_risk(step: Matrix, moments: TaskMoments, scales: Prefixes) -> Prefixes:
    """R_k(Γ) = E(s_k xᵀΓXᵀy − y)² of every k < n, (n,), for any Γ (d, d)."""
    seen = torch.arange(len(scales), dtype=torch.float64)
    inputs = moments.inputs
    fit = torch.trace(step @ inputs @ moments.weights @ inputs)
    size = torch.einsum("ij,kjl,ml,mi->k", step, moments.of_step(len(seen)), step, inputs)
    return moments.labels - 2 * scales * seen * fit + scales.square() * size


def optimal_step_by_likelihood(
    moments: TaskMoments, scales: Prefixes, floor: float
) -> tuple[Matrix, Prefixes]:
    """Γ where the loss ``likelihood`` (`incontext_linear.training.loss`) comes to rest; its p_k.

    That loss weights prefixes by 1/(R_k + floor·E[y²]) and takes these weights as constants, so its
    gradient vanishes at the fixed point of Γ = `optimal_step` of p(Γ). Found by iteration.

    Raises:
        RuntimeError: if the iteration has not come to rest.
    """
    prefixes = torch.ones_like(scales)
    for _ in range(NUM_ITERATIONS):
        step = optimal_step(moments, prefixes, scales)
        following = 1 / (step_risk(step, moments, scales) + floor * moments.labels)
        following = following / following.mean()
        if torch.allclose(following, prefixes, rtol=1e-12, atol=0):
            return step, following
        prefixes = following
    raise RuntimeError(f"no fixed point of the prefixes' weights in {NUM_ITERATIONS} iterations")


@dataclass(frozen=True)
class OptimalStep(LinearPredictor):
    """w = s_k Γ Xᵀy with the Γ that is best on a task: the optimum of one linear-attention layer.

    Cost: O(B n d²) time, O(B n d) memory.

    Args:
        task: whose prompts it is best on; prompts may be longer or shorter.
        loss: ``mean``, of the squared error over all prefixes of ``task.num_examples``; ``last``,
            at its last prefix alone.
        normalization: s_k: ``examples``, 1/k; ``none``, 1.

    Raises:
        ValueError: if an argument is not allowed, or the task's prompts have a single example.
    """

    task: TaskConfig
    loss: Literal["mean", "last"] = "mean"
    normalization: Literal["examples", "none"] = "examples"

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, ("mean", "last"))
        check_choice("normalization", self.normalization, ("examples", "none"))
        if self.task.num_examples < 2:
            raise ValueError(
                f"task.num_examples={self.task.num_examples} is not allowed: no step is best where "
                "no example is seen, so it must be at least 2"
            )

    @property
    def step(self) -> Matrix:
        """Γ (d, d)."""
        prefixes = torch.ones(self.task.num_examples, dtype=torch.float64)
        if self.loss == "last":
            prefixes[:-1] = 0
        scales = prefix_scales(self.task.num_examples, self.normalization)
        return optimal_step(TaskMoments.of(self.task), prefixes, scales)

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        scales = prefix_scales(xs.shape[1], self.normalization).to(xs)
        return scales[:, None] * moments_before(xs, ys) @ self.step.to(xs).T
