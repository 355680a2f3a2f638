"""Shifts of the weights, the noise, the labels, and of which examples a prompt has."""

import math
from typing import ClassVar

import torch

from incontext_linear.comparison.shifts.base import (
    PromptShift,
    draw_normal,
    draw_uniform,
    noise_of,
    relabel,
    tail_scale,
)
from incontext_linear.tasks import Prompts


class WeightScale(PromptShift):
    """w → s w, the noise as it was."""

    home: ClassVar = 1.0
    strengths: ClassVar = (0.3, 1.0, 2.0, 3.0, 5.0)
    unit: ClassVar = "times as large"
    positive: ClassVar = True

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        return relabel(prompts, ws=prompts.ws * self.strength)


class SparseWeights(PromptShift):
    """A share of the coordinates of w set to 0, at random places; its mean square is kept."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5, 0.75)
    unit: ClassVar = "share of the weights that are 0"
    most: ClassVar = 1

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        dim = prompts.ws.shape[-1]
        kept = max(1, dim - round(self.strength * dim))
        places = draw_uniform(prompts.ws.shape, prompts.ws, rng).argsort(-1)
        return relabel(prompts, ws=prompts.ws * (places < kept) * (dim / kept) ** 0.5)


class LabelNoise(PromptShift):
    """Normal noise of this standard deviation, added to what the labels have."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.1, 0.5, 1.0)
    unit: ClassVar = "standard deviation of the noise that is added"

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        added = self.strength * draw_normal(prompts.ys.shape, prompts.ys, rng)
        return prompts._replace(ys=prompts.ys + added)


class HeavyTailedNoise(PromptShift):
    """As `LabelNoise`, with Student's t of 3 degrees of freedom, of this standard deviation."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5)
    unit: ClassVar = "standard deviation of the noise that is added"

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        normal = draw_normal(prompts.ys.shape, prompts.ys, rng)
        added = normal * tail_scale(1 / 3, prompts.ys.shape, prompts.ys, rng)
        return prompts._replace(ys=prompts.ys + self.strength * added)


class LabelOutlier(PromptShift):
    """The label of one example of the first quarter is off by this many times √E[y²]."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0, 3.0)
    unit: ClassVar = "error of one label, in their standard deviations"

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        batch, num_examples = prompts.ys.shape
        first = max(1, num_examples // 4)
        place = torch.randint(first, (batch, 1), generator=rng, device=rng.device)
        sign = draw_normal((batch, 1), prompts.ys, rng).sign()
        size = self.strength * prompts.ys.square().mean().sqrt()
        return prompts._replace(
            ys=prompts.ys.scatter_add(1, place.to(prompts.ys.device), sign * size)
        )


class RepeatedExamples(PromptShift):
    """Each example comes this many times in a row; a label's noise repeats with it."""

    home: ClassVar = 1
    strengths: ClassVar = (1, 2, 4)
    unit: ClassVar = "times each example"
    least: ClassVar = 1

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        rows = torch.arange(prompts.ys.shape[1], device=prompts.ys.device) // int(self.strength)
        return prompts._replace(xs=prompts.xs[:, rows], ys=prompts.ys[:, rows])


class PromptLength(PromptShift):
    """Prompts longer than those of training, by inputs and noise of other prompts of the batch.

    A learner whose positions end earlier refuses them; the shift is then left out.
    """

    home: ClassVar = 1.0
    strengths: ClassVar = (1.0, 1.5)
    unit: ClassVar = "times as long"
    least: ClassVar = 1
    most: ClassVar = 4

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        length = round(self.strength * prompts.ys.shape[1])
        xs, noise = (
            torch.cat([t.roll(i, 0) for i in range(math.ceil(self.strength))], 1)[:, :length]
            for t in (prompts.xs, noise_of(prompts))
        )
        return relabel(prompts, xs, noise=noise)
