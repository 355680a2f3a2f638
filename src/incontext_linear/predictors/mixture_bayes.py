"""The Bayes predictor when w comes from one of several Gaussian clusters.

With w ~ Σ_c π_c N(μ_c, τ_c² I) and noise N(0, σ²), the posterior is again a mixture: each cluster's
own posterior mean (ridge towards μ_c with penalty σ²/τ_c²), weighted by how well the cluster
explains y, N(y; Xμ_c, τ_c² XXᵀ + σ² I). Unlike any ridge it is not linear in y, which tells a
learner that uses its prior from one that only penalises.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import TaskConfig
from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.batching import check_prompts, in_chunks
from incontext_linear.predictors.validation import Number, check_real
from incontext_linear.tasks import Xs, Ys


@dataclass(frozen=True, eq=False)
class MixturePosteriorMean(LinearPredictor):
    """Posterior mean of w ~ Σ_c π_c N(μ_c, τ_c² I) under noise N(0, σ²), exactly.

    σ = 0 is the limit: each cluster's w that fits all examples and lies nearest to its μ_c,
    weighted by the density of y's part that X determines. Then, from d independent examples on, it
    is OLS. Cost: O(B n² d (n + C)) time for C clusters (a singular value decomposition a prefix).

    Args:
        means: μ (C, d), finite.
        stds: τ (C,), each > 0.
        noise_std: σ ≥ 0.
        shares: π (C,), each > 0; None: equal. They are divided by their sum.

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    means: Float[Tensor, "cluster dim"]
    stds: Float[Tensor, " cluster"]
    noise_std: Number
    shares: Float[Tensor, " cluster"] | None = None

    def __post_init__(self) -> None:
        means = self.means
        if not isinstance(means, Tensor) or means.ndim != 2 or not means.isfinite().all():
            given = tuple(means.shape) if isinstance(means, Tensor) else type(means).__name__
            raise ValueError(f"means ({given}) must be a tensor (C, d) of finite numbers")
        for name, values in (("stds", self.stds), ("shares", self.shares)):
            if values is None and name == "shares":
                continue
            allowed = isinstance(values, Tensor) and values.shape == means.shape[:1]
            if not allowed or not ((values > 0) & values.isfinite()).all():
                raise ValueError(
                    f"{name}={values!r} is not allowed: {len(means)} finite numbers > 0 are meant"
                )
        check_real("noise_std", self.noise_std)

    @classmethod
    def of_task(cls, task: TaskConfig) -> "MixturePosteriorMean":
        """The Bayes predictor of a task whose weights are a mixture of normal components.

        Raises:
            ValueError: if a component of ``task.weights`` is not normal or has no spread, or if w
                comes from a pool.
        """
        if task.pool_size is not None:
            raise ValueError(
                f"task.pool_size={task.pool_size}: the posterior over a pool is DiscreteMMSE's; "
                "allowed here: None"
            )
        for component in task.weights:
            if component.kind != "normal" or component.scale == 0:
                raise ValueError(
                    f"task.weights has the component {component.kind}*{component.scale:g}"
                    f"+{component.shift:g}; allowed here: normal components with a scale > 0"
                )
        shifts = torch.tensor([component.shift for component in task.weights], dtype=torch.float64)
        scales = torch.tensor([component.scale for component in task.weights], dtype=torch.float64)
        return cls(shifts[:, None].expand(-1, task.dim).clone(), scales, task.noise_std)

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        num_examples, dim = xs.shape[1:]
        if self.means.shape[1] != dim:
            raise ValueError(f"xs has dim {dim}; this prior's means have dim {self.means.shape[1]}")
        per_prefix = num_examples * (dim + len(self.means)) + dim * (dim + len(self.means))
        return in_chunks(self._fit, num_examples * per_prefix, xs, ys)

    def _fit(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        num_examples = xs.shape[1]
        seen = xs.new_ones(num_examples, num_examples, dtype=torch.bool).tril(-1)
        designs = xs.unsqueeze(1) * seen.unsqueeze(-1)  # (B, prefix, n, d); unseen rows are zero
        labels = ys.unsqueeze(1).where(seen, 0.0).unsqueeze(-2)
        left, singular, right = torch.linalg.svd(designs, full_matrices=False)
        means, variances = self.means.to(xs), self.stds.to(xs).square()[:, None]
        # Residuals of y from each cluster's mean, in the singular basis: (B, prefix, C, r).
        missed = labels @ left - singular.unsqueeze(-2) * (means @ right.mT)
        spread = variances * singular.unsqueeze(-2).square() + self.noise_std**2
        determined = self._determined(singular, xs).unsqueeze(-2)
        spread = spread.where(determined, 1.0)
        missed = missed.where(determined, 0.0)
        evidence = -0.5 * (missed.square() / spread + spread.log()).sum(-1)
        if self.shares is not None:
            evidence = evidence + self.shares.to(xs).log()
        move = (variances * singular.unsqueeze(-2) * missed / spread) @ right  # (B, prefix, C, d)
        return (evidence.softmax(-1).unsqueeze(-1) * (means + move)).sum(-2)

    def _determined(self, singular: Tensor, xs: Tensor) -> Tensor:
        """Directions in which y says something: all with noise, those of X's range without."""
        if self.noise_std > 0:
            return torch.ones_like(singular, dtype=torch.bool)
        rounding = torch.finfo(xs.dtype).eps * max(xs.shape[1:])
        return singular > rounding * singular.amax(-1, keepdim=True)
