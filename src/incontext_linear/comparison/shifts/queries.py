"""Shifts of the query alone."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.comparison.shifts.base import QueryShift
from incontext_linear.tasks import Prompts


class QueryScale(QueryShift):
    """The query is this many times as large: a predictor that is linear in it scales with it."""

    home: ClassVar = 1.0
    strengths: ClassVar = (0.3, 1.0, 2.0, 3.0)
    unit: ClassVar = "times as large"
    positive: ClassVar = True

    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """As `QueryShift`."""
        return self.strength * prompts.xs[:, examples_seen]


class OrthogonalQuery(QueryShift):
    """The query's part in the span of what was seen is taken away by this share, its norm kept.

    Where the examples span everything there is nothing orthogonal; the query then has its part
    along the direction in which they vary least alone.
    """

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0)
    unit: ClassVar = "of the way to a query orthogonal to the examples"
    most: ClassVar = 1

    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """As `QueryShift`."""
        query, seen = prompts.xs[:, examples_seen], prompts.xs[:, :examples_seen].double()
        _, directions = torch.linalg.eigh(seen.mT @ seen)
        free = max(1, query.shape[-1] - examples_seen)
        basis = directions[..., :free].to(query)
        outside = (basis @ (basis.mT @ query.unsqueeze(-1))).squeeze(-1)
        moved = (1 - self.strength) * query + self.strength * outside
        size = query.norm(dim=-1, keepdim=True)
        return moved * size / moved.norm(dim=-1, keepdim=True).clamp(min=1e-30)


class SeenQuery(QueryShift):
    """The query moves this share of the way to an example that was seen."""

    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0)
    unit: ClassVar = "of the way to an example seen"
    most: ClassVar = 1

    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """As `QueryShift`."""
        batch = len(prompts.xs)
        place = torch.randint(examples_seen, (batch,), generator=rng, device=rng.device)
        rows = torch.arange(batch, device=prompts.xs.device)
        seen = prompts.xs[rows, place.to(prompts.xs.device)]
        return (1 - self.strength) * prompts.xs[:, examples_seen] + self.strength * seen
