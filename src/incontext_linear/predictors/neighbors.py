"""Nearest neighbours: the paper's one rival that is not linear in the query (paper, section 4)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.batching import check_prompts, check_queries, in_chunks_batch_last
from incontext_linear.predictors.validation import check_choice, check_integer
from incontext_linear.tasks import Xs, Ys


@dataclass(frozen=True)
class NearestNeighbors:
    """Mean y of the nearest examples in Euclidean distance; of all examples while fewer have been
    seen.

    Of examples at the same distance the earlier one is nearer. With ``weights="distance"`` each
    counts by its inverse distance, and examples at the query itself, if any, outweigh all others,
    as in scikit-learn.

    Cost: O(B n² (d + num_neighbors)) time; memory O(B n d), for queries O(B n Q).

    Args:
        num_neighbors: how many examples are averaged, ≥ 1; the paper takes 3.
        weights: "uniform" or "distance".

    Raises:
        ValueError: if a parameter is not allowed, or, when called, if the prompts are not.
    """

    num_neighbors: int
    weights: Literal["uniform", "distance"] = "uniform"

    def __post_init__(self) -> None:
        check_integer("num_neighbors", self.num_neighbors, minimum=1)
        check_choice("weights", self.weights, ("uniform", "distance"))

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n), as `Predictor` defines them."""
        check_prompts(xs, ys)
        later_examples = max(1, xs.shape[1] // 2)  # of an example in the middle
        return in_chunks_batch_last(self._predict_examples, later_examples * xs.shape[2], xs, ys)

    def predict_queries(
        self,
        xs: Xs,
        ys: Ys,
        queries: Float[Tensor, "batch query dim"],
    ) -> Float[Tensor, "batch example query"]:
        """Predictions (B, n, Q) at queries (B, Q, d) behind every prefix."""
        check_prompts(xs, ys)
        check_queries(xs, queries)
        num_queries = max(1, queries.shape[1])
        return in_chunks_batch_last(
            self._predict_queries, num_queries * xs.shape[2], xs, ys, queries
        )

    def _predict_examples(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example batch"]:
        """Show every example to all later ones; each is answered once the example before it was
        shown.
        """
        nearest = _Nearest.none(min(self.num_neighbors, len(xs)), xs[1:, 0])
        predictions = [torch.zeros_like(ys[0])]
        for k in range(1, len(xs)):
            nearest = nearest.show(_squared_distances(xs[k:], xs[k - 1]), ys[k - 1])
            predictions.append(self._average(nearest.of_first(), k))
            nearest = nearest.without_first()
        return torch.stack(predictions)

    def _predict_queries(
        self,
        xs: Float[Tensor, "example dim batch"],
        ys: Float[Tensor, "example batch"],
        queries: Float[Tensor, "query dim batch"],
    ) -> Float[Tensor, "example query batch"]:
        nearest = _Nearest.none(min(self.num_neighbors, len(xs)), queries[:, 0])
        predictions = [torch.zeros_like(queries[:, 0])]
        for k in range(1, len(xs)):
            nearest = nearest.show(_squared_distances(queries, xs[k - 1]), ys[k - 1])
            predictions.append(self._average(nearest, k))
        return torch.stack(predictions)

    def _average(self, nearest: "_Nearest", examples_seen: int) -> Tensor:
        if self.weights == "uniform":
            return sum(nearest.ys[1:], nearest.ys[0]) / min(examples_seen, len(nearest.ys))
        squared, ys = torch.stack(nearest.squared_distances), torch.stack(nearest.ys)
        here = squared == 0
        inverse = torch.where(here, 1.0, squared).rsqrt()
        weights = torch.where(here.any(0), here.to(inverse.dtype), inverse)
        return (weights * ys).sum(0) / weights.sum(0)


def _squared_distances(
    queries: Float[Tensor, "query dim batch"], x: Float[Tensor, "dim batch"]
) -> Float[Tensor, "query batch"]:
    """By differences, not by ‖a‖² + ‖b‖² − 2aᵀb: near neighbours would lose all digits to
    cancellation.
    """
    return (queries - x).square().sum(1)


@dataclass(frozen=True)
class _Nearest:
    """The nearest examples so far of every query, nearest first.

    An empty place is as far as can be, with y = 0. Both are finite, so that `torch.lerp` with a
    weight of 0 or 1 picks one of two values exactly; `torch.where` does the same some five times
    slower on a CPU.
    """

    squared_distances: list[Float[Tensor, "*query batch"]]
    ys: list[Float[Tensor, "*query batch"]]

    @classmethod
    def none(cls, num_places: int, like: Tensor) -> "_Nearest":
        far = torch.full_like(like, torch.finfo(like.dtype).max)
        return cls([far] * num_places, [torch.zeros_like(like)] * num_places)

    def show(self, distance: Tensor, y: Tensor) -> "_Nearest":
        """Insert one example into every query's list: the further of two moves on to the next
        place.
        """
        distances, ys = [], []
        new, y = distance, y.expand_as(distance)
        for held_distance, held_y in zip(self.squared_distances, self.ys, strict=True):
            # Asked of the new example, also once an earlier one moves on: of equals the earlier
            # stays.
            nearer = (new < held_distance).to(distance.dtype)
            distances.append(torch.lerp(held_distance, distance, nearer))
            ys.append(torch.lerp(held_y, y, nearer))
            if len(ys) < len(self.ys):
                distance = torch.lerp(distance, held_distance, nearer)
                y = torch.lerp(y, held_y, nearer)
        return _Nearest(distances, ys)

    def of_first(self) -> "_Nearest":
        return _Nearest([row[0] for row in self.squared_distances], [row[0] for row in self.ys])

    def without_first(self) -> "_Nearest":
        return _Nearest([row[1:] for row in self.squared_distances], [row[1:] for row in self.ys])
