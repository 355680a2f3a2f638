"""The sharpest test: likely prompts on which two given candidates differ most.

Gradient ascent on the inputs of ordinary prompts, labels following from w: log (f − g)² at one
query goes up, while every input keeps a norm that inputs of the training distribution have, and the
prompt a density that such prompts have. A step that would leave those bounds is halved instead,
prompt by prompt, so every prompt that comes out is as likely as those of training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.comparison.conditions import Condition
from incontext_linear.comparison.families import Member
from incontext_linear.comparison.shifts import noise_of, relabel
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.config import Mixture
from incontext_linear.tasks import Prompts, Xs

STEPS_WITH_GRADIENTS = 64
"""Members that iterate more often than this are too dear to differentiate."""


def log_density(mixture: Mixture, vectors: Float[Tensor, "... dim"]) -> Float[Tensor, "..."]:
    """Log density of vectors under a distribution of inputs; −∞ outside of its support."""
    dim, parts = vectors.shape[-1], []
    for c in mixture:
        standard = (vectors - c.shift) / max(c.scale, 1e-30)
        if c.kind == "normal":
            exponent = -0.5 * standard.square().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
        else:
            inside = ((standard >= 0) & (standard <= 1)).all(-1)
            exponent = torch.where(inside, 0.0, -torch.inf).to(vectors)
        parts.append(exponent - dim * math.log(max(c.scale, 1e-30)))
    return torch.stack(parts).logsumexp(0) - math.log(len(parts))


@dataclass(frozen=True)
class Bulk:
    """What prompts of the training distribution look like.

    Attributes:
        mixture: the inputs' distribution.
        norms: the range of an input's norm.
        density: the range of a prompt's log density, the sum over its inputs.
    """

    mixture: Mixture
    norms: tuple[float, float]
    density: tuple[float, float]

    @classmethod
    def of(cls, mixture: Mixture, xs: Xs, tail: float = 0.01) -> "Bulk":
        """From prompts of the training distribution, all but a tail on either side."""
        ends = torch.tensor([tail, 1 - tail], dtype=torch.float64, device=xs.device)
        norms = torch.quantile(xs.norm(dim=-1).flatten()[: 2**20], ends).tolist()
        density = torch.quantile(log_density(mixture, xs).sum(1), ends).tolist()
        return cls(mixture, (norms[0], norms[1]), (density[0], density[1]))

    def holds(self, xs: Xs) -> Bool[Tensor, " batch"]:
        """Whether a prompt is within all ranges; a few ordinary prompts are not."""
        norms, density = xs.norm(dim=-1), log_density(self.mixture, xs).sum(1)
        low, high = norms.amin(1), norms.amax(1)
        likely = (density >= self.density[0]) & (density <= self.density[1])
        return (low >= self.norms[0]) & (high <= self.norms[1]) & likely


MOST_DIFFERENT = "most different: "
"""Begins the name of a condition that was searched for; the pair's names follow."""


def searched_pair(name: str) -> tuple[str, str] | None:
    """The candidates between which a condition was searched; None: it is another condition."""
    if not name.startswith(MOST_DIFFERENT):
        return None
    first, _, second = name.removeprefix(MOST_DIFFERENT).partition(", ")
    return first, second


def is_differentiable(member: Member) -> bool:
    """Whether a member's predictions can be differentiated at a moderate cost."""
    return member.numbers.get("num_steps", 0) <= STEPS_WITH_GRADIENTS


def most_different_prompts(
    first: Member,
    second: Member,
    mixture: Mixture,
    prompts: Prompts,
    examples_seen: int,
    num_steps: int = 60,
) -> Condition:
    """Prompts of the bulk on which two candidates differ much more than they do on ordinary ones.

    Args:
        first: a candidate.
        second: another one.
        mixture: the inputs' distribution.
        prompts: of the training distribution; those outside the bulk are left out as a start.
        examples_seen: k of the query at which they are to differ.
        num_steps: of the ascent.

    Returns:
        A condition named after both, of at most as many prompts.
    """
    length = examples_seen + 1
    cut = Prompts(
        prompts.xs[:, :length].double(), prompts.ys[:, :length].double(), prompts.ws.double()
    )
    bulk = Bulk.of(mixture, cut.xs)
    inside = bulk.holds(cut.xs)
    # Inputs whose norm is not ordinary are scaled back; a prompt that is still outside is dropped.
    norms = cut.xs.norm(dim=-1, keepdim=True)
    clipped = relabel(cut, cut.xs * norms.clamp(*bulk.norms) / norms.clamp(min=1e-30))
    start = Prompts(
        *(torch.where(_like(inside, a), a, b) for a, b in zip(cut, clipped, strict=True))
    )
    kept = bulk.holds(start.xs)
    start = Prompts(*(tensor[kept] for tensor in start))
    xs = _ascend(first, second, start, bulk, num_steps)
    found = relabel(start, xs)
    part = Prefixes(found.xs, found.ys, (examples_seen,))
    name = f"{MOST_DIFFERENT}{first.family.name}, {second.family.name}"
    return Condition(name, float("nan"), (part,))


def _like(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (tensor.ndim - 1))


def _ascend(
    first: Member, second: Member, start: Prompts, bulk: Bulk, num_steps: int
) -> Float[Tensor, "batch example dim"]:
    noise = noise_of(start)
    difference = _log_difference(first, second, start, noise)
    xs = start.xs
    value, slope = difference(xs)
    step = torch.full_like(value, 0.1)
    for _ in range(num_steps):
        size = slope.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        # In units of the inputs' root mean square norm, so that a step means the same in any task.
        unit = xs.square().mean().sqrt() * xs[0].numel() ** 0.5
        moved = xs + _like(step, xs) * unit * slope / size
        moved_value, moved_slope = difference(moved)
        better = bulk.holds(moved) & (moved_value > value)
        better &= moved_slope.isfinite().all(-1).all(-1)
        xs = torch.where(_like(better, xs), moved, xs)
        slope = torch.where(_like(better, xs), moved_slope, slope)
        value = torch.where(better, moved_value, value)
        step = torch.where(better, 1.3 * step, 0.5 * step)
    return xs


def _log_difference(
    first: Member, second: Member, start: Prompts, noise: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def evaluate(xs: Tensor) -> tuple[Tensor, Tensor]:
        xs = xs.detach().requires_grad_()
        ys = (xs @ start.ws.unsqueeze(-1)).squeeze(-1) + noise
        apart = first.predictor(xs, ys)[:, -1] - second.predictor(xs, ys)[:, -1]
        value = (apart.square() + 1e-20).log()
        (slope,) = torch.autograd.grad(value.sum(), xs)
        return value.detach(), slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    return evaluate
