"""Shifts of the inputs' distribution."""

from typing import ClassVar

import torch

from incontext_linear.comparison.shifts.base import (
    PromptShift,
    draw_normal,
    random_rotations,
    relabel,
    tail_scale,
)
from incontext_linear.tasks import Prompts


class InputScale(PromptShift):
    """x → s x."""

    home: ClassVar = 1.0
    strengths: ClassVar = (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0)
    unit: ClassVar = "times as large"
    positive: ClassVar = True

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        return relabel(prompts, prompts.xs * self.strength)


class ConditionNumber(PromptShift):
    """Covariance of condition number κ in a basis of each prompt's own; its trace is kept.

    Eigenvalues fall geometrically from the largest to the κ-th part of it (Garg et al.'s skewed
    covariance has a power law).
    """

    home: ClassVar = 1
    strengths: ClassVar = (1, 10, 100, 1000)
    unit: ClassVar = "condition number"
    least: ClassVar = 1

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        if self.strength == 1:
            return prompts
        dim = prompts.xs.shape[-1]
        exponents = torch.linspace(0, -1, dim).to(prompts.xs)
        variances = float(self.strength) ** exponents
        scales = (variances * dim / variances.sum()).sqrt()
        basis = random_rotations(len(prompts.xs), prompts.xs, rng)
        return relabel(prompts, prompts.xs @ (basis * scales.unsqueeze(-2)) @ basis.mT)


class Subspace(PromptShift):
    """Inputs in a random subspace that has a share of the dimensions; their mean square is kept."""

    home: ClassVar = 1.0
    strengths: ClassVar = (0.25, 0.5, 0.75, 1.0)
    unit: ClassVar = "share of the dimensions"
    positive: ClassVar = True
    most: ClassVar = 1

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        dim = prompts.xs.shape[-1]
        rank = max(1, round(self.strength * dim))
        if rank == dim:
            return prompts
        basis = random_rotations(len(prompts.xs), prompts.xs, rng)[..., :rank]
        return relabel(prompts, prompts.xs @ basis @ basis.mT * (dim / rank) ** 0.5)


class InputMean(PromptShift):
    """x → x + a u with a random direction u of each prompt's own, |u| = √d."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5, 1.0, 2.0)
    unit: ClassVar = "added to each coordinate"

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        if self.strength == 0:
            return prompts
        batch, _, dim = prompts.xs.shape
        direction = draw_normal((batch, 1, dim), prompts.xs, rng)
        direction = direction / direction.norm(dim=-1, keepdim=True) * dim**0.5
        return relabel(prompts, prompts.xs + self.strength * direction)


class Orthant(PromptShift):
    """A share of the coordinates keeps one sign through the prompt (Garg et al.)."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5, 1.0)
    unit: ClassVar = "share of the coordinates with one sign"
    most: ClassVar = 1

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        batch, _, dim = prompts.xs.shape
        signs = draw_normal((batch, 1, dim), prompts.xs, rng).sign()
        held = torch.arange(dim, device=prompts.xs.device) < round(self.strength * dim)
        return relabel(prompts, torch.where(held, signs * prompts.xs.abs(), prompts.xs))


class Sphere(PromptShift):
    """Norms drawn together: ‖x‖ → ‖x‖^(1−s) · (root mean square norm)^s; with s = 1 a sphere."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0)
    unit: ClassVar = "of the way to a sphere"
    most: ClassVar = 1

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        if self.strength == 0:
            return prompts
        norms = prompts.xs.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        typical = norms.square().mean().sqrt()
        return relabel(prompts, prompts.xs * (typical / norms) ** self.strength)


class HeavyTailedInputs(PromptShift):
    """Each x divided by √(χ²_ν / (ν − 2)): multivariate t of the same variance, if x is normal.

    The strength is 1/ν, 0 for normal inputs; below 1/2, where the variance exists.
    """

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.1, 0.2, 0.33)
    unit: ClassVar = "1 / degrees of freedom"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength >= 0.5:
            raise ValueError(
                f"strength={self.strength!r} is not allowed: strength must be < 0.5, since with 2 "
                "degrees of freedom or fewer there is no variance"
            )

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        scale = tail_scale(self.strength, (*prompts.xs.shape[:2], 1), prompts.xs, rng)
        return relabel(prompts, prompts.xs * scale)


class HeavyTailedCoordinates(HeavyTailedInputs):
    """As `HeavyTailedInputs`, with a divisor for each coordinate: independent t coordinates."""

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        scale = tail_scale(self.strength, prompts.xs.shape, prompts.xs, rng)
        return relabel(prompts, prompts.xs * scale)
