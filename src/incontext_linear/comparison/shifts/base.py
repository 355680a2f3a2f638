"""What a shift is, and the helpers that all kinds share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.validation import Number, check_real
from incontext_linear.tasks import Prompts, Xs, Ys

Strength = Number


@dataclass(frozen=True)
class _OfStrength(ABC):
    """What both kinds of shift have."""

    home: ClassVar[Strength | None] = None
    """The strength that changes nothing; None: there is none, as for inputs on a sphere."""
    strengths: ClassVar[Sequence[Strength]]
    """Those tried where the parameters name none."""
    unit: ClassVar[str]
    """What the strength is, in words."""
    positive: ClassVar[bool] = False
    """Whether a strength of 0 is refused, as a negative one always is."""
    least: ClassVar[Strength] = 0
    most: ClassVar[Strength] = math.inf

    strength: Strength

    def __post_init__(self) -> None:
        check_real("strength", self.strength, positive=self.positive)
        for wrong, bound in (
            (self.strength < self.least, f"≥ {self.least}"),
            (self.strength > self.most, f"≤ {self.most}"),
        ):
            if wrong:
                raise ValueError(
                    f"strength={self.strength!r} is not allowed: strength must be {bound}"
                )


class PromptShift(_OfStrength):
    """A change of whole prompts. A subclass names home, strengths, unit and, if need be, bounds."""

    @abstractmethod
    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """The changed prompts, as many as were given: xs (B, n, d), ys (B, n), ws (B, d)."""


class QueryShift(_OfStrength):
    """A change of the query alone; as `PromptShift` otherwise."""

    @abstractmethod
    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """The query (B, d) that takes the place of ``xs[:, examples_seen]``."""


Shift = PromptShift | QueryShift


def noise_of(prompts: Prompts) -> Ys:
    """The labels' noise, y − wᵀx."""
    return prompts.ys - _labels(prompts.xs, prompts.ws)


def relabel(
    prompts: Prompts,
    xs: Xs | None = None,
    ws: Float[Tensor, "batch dim"] | None = None,
    noise: Float[Tensor, "batch example"] | None = None,
) -> Prompts:
    """The prompts with other inputs, weights or noise, and the labels that follow."""
    xs = prompts.xs if xs is None else xs
    ws = prompts.ws if ws is None else ws
    noise = noise_of(prompts) if noise is None else noise
    return Prompts(xs, _labels(xs, ws) + noise, ws)


def _labels(xs: Tensor, ws: Tensor) -> Tensor:
    return (xs @ ws.unsqueeze(-1)).squeeze(-1)


def draw_normal(shape: Sequence[int], like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=rng, device=rng.device).to(like)


def draw_uniform(shape: Sequence[int], like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=rng, device=rng.device).to(like)


def random_rotations(
    num_prompts: int, like: Float[Tensor, "batch example dim"], rng: torch.Generator
) -> Float[Tensor, "batch dim dim"]:
    """Orthogonal matrices, uniformly distributed, one a prompt."""
    dim = like.shape[-1]
    q, r = torch.linalg.qr(draw_normal((num_prompts, dim, dim), like, rng))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def tail_scale(
    inverse: Number, shape: Sequence[int], like: Tensor, rng: torch.Generator
) -> Tensor | float:
    """√((ν − 2) / χ²_ν), by χ²_ν = 2 Gamma(ν/2) and Marsaglia and Tsang's method (2000)."""
    if inverse == 0:
        return 1.0
    freedom = 1 / inverse
    # Of Gamma(a + 1): a > 1/3 then, where the method holds; U^(1/a) brings it to Gamma(a).
    shape_less_third = freedom / 2 + 1 - 1 / 3
    factor = 1 / (9 * shape_less_third) ** 0.5
    gamma = torch.zeros(tuple(shape)).to(like)
    missing = torch.ones_like(gamma, dtype=torch.bool)
    while bool(missing.any()):
        normal, uniform = draw_normal(shape, like, rng), draw_uniform(shape, like, rng)
        cube = (1 + factor * normal) ** 3
        safe = torch.where(cube > 0, cube, 1)
        bound = normal**2 / 2 + shape_less_third * (1 - cube + safe.log())
        taken = missing & (cube > 0) & (uniform.log() < bound)
        gamma, missing = torch.where(taken, shape_less_third * cube, gamma), missing & ~taken
    gamma = gamma * draw_uniform(shape, like, rng).clamp(min=1e-12) ** (2 / freedom)
    return ((freedom - 2) / (2 * gamma).clamp(min=1e-12)).sqrt()
