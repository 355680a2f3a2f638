"""Nearest neighbours: the paper's one rival that is not linear in the query (paper, section 4)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from incontext_linear.predictors.batching import (
    check_prompts,
    check_queries,
    in_chunks_batch_last,
    needs_grad,
)
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
        # Inverse distances look at the inputs of all neighbours once more.
        held = min(self.num_neighbors, xs.shape[1]) if self.weights == "distance" else 1
        values = max(1, queries.shape[1]) * held * xs.shape[2]
        return in_chunks_batch_last(self._predict_queries, values, xs, ys, queries)

    def _predict_examples(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example batch"]:
        """Show every example to all later ones; each is answered once the example before it was
        shown.
        """
        nearest = _Nearest.none(min(self.num_neighbors, len(xs)), len(xs), xs[1:, 0])
        predictions = [torch.zeros_like(ys[0])]
        for k in range(1, len(xs)):
            nearest = nearest.show(_squared_distances(xs[k:].detach(), xs[k - 1].detach()), k - 1)
            predictions.append(self._average(nearest.of_first().known(k), xs[k], xs, ys))
            nearest = nearest.without_first()
        return torch.stack(predictions)

    def _predict_queries(
        self,
        xs: Float[Tensor, "example dim batch"],
        ys: Float[Tensor, "example batch"],
        queries: Float[Tensor, "query dim batch"],
    ) -> Float[Tensor, "example query batch"]:
        nearest = _Nearest.none(min(self.num_neighbors, len(xs)), len(xs), queries[:, 0])
        predictions = [torch.zeros_like(queries[:, 0])]
        for k in range(1, len(xs)):
            nearest = nearest.show(_squared_distances(queries.detach(), xs[k - 1].detach()), k - 1)
            predictions.append(self._average(nearest.known(k), queries, xs, ys))
        return torch.stack(predictions)

    def _average(
        self,
        nearest: "_Nearest",
        queries: Float[Tensor, "*query dim batch"],
        xs: Float[Tensor, "example dim batch"],
        ys: Float[Tensor, "example batch"],
    ) -> Float[Tensor, "*query batch"]:
        """The prediction from those examples that are nearest to the queries."""
        examples = nearest.examples()
        chosen = examples.flatten(0, -2)
        near_ys = ys.gather(0, chosen).view(examples.shape)
        if self.weights == "uniform":
            return near_ys.mean(0)
        squared = nearest.squared_distances()
        if needs_grad(xs, queries):  # which they have lost
            near_xs = xs.gather(0, chosen[:, None].expand(-1, xs.shape[1], -1))
            near_xs = near_xs.view(*examples.shape[:-1], *xs.shape[1:])
            squared = _squared_distances(near_xs, queries)
        here = squared == 0
        inverse = torch.where(here, 1.0, squared).rsqrt()
        weights = torch.where(here.any(0), here.to(inverse.dtype), inverse)
        return (weights * near_ys).sum(0) / weights.sum(0)


def _squared_distances(
    queries: Float[Tensor, "*query dim batch"], x: Float[Tensor, "*other dim batch"]
) -> Float[Tensor, "*both batch"]:
    """By differences, not by ‖a‖² + ‖b‖² − 2aᵀb: near neighbours would lose all digits to
    cancellation.
    """
    return (queries - x).square().sum(-2)


@dataclass(frozen=True)
class _Nearest:
    """The nearest examples so far of every query, nearest first, each as one float64 number: the
    squared distance, whose last bits are the example's place in the prompt.

    A smaller number is nearer, and of equal distances the earlier; so minimum and maximum alone
    keep the order, where moving distances and places apart would need comparisons, which are some
    five times slower on a CPU. The bits that are lost, six of 52 for 64 examples, are those that
    rounding blurs: distances equal up to them count as equal.
    """

    keys: list[Float[Tensor, "*query batch"]]
    place_bits: int
    """In a key: ones where it holds the example's place."""

    @classmethod
    def none(cls, num_places: int, num_examples: int, like: Tensor) -> "_Nearest":
        """An empty place is as far as can be."""
        far = torch.full_like(like, torch.finfo(like.dtype).max, requires_grad=False)
        return cls([far] * num_places, 2 ** (num_examples - 1).bit_length() - 1)

    def show(self, squared_distances: Tensor, example: int) -> "_Nearest":
        """Insert one example into every query's list: the further of two moves on to the next
        place.
        """
        finite = squared_distances.clamp_(max=torch.finfo(squared_distances.dtype).max / 2)
        finite.view(torch.int64).bitwise_and_(~self.place_bits).bitwise_or_(example)
        keys, new = [], finite
        for held in self.keys:
            keys.append(torch.minimum(held, new))
            if len(keys) < len(self.keys):
                new = torch.maximum(held, new)
        return _Nearest(keys, self.place_bits)

    def known(self, examples_seen: int) -> "_Nearest":
        """Without places that are still empty, while fewer examples have been seen."""
        return _Nearest(self.keys[:examples_seen], self.place_bits)

    def examples(self) -> Int[Tensor, "place *query batch"]:
        """The places in the prompt of the nearest examples."""
        return torch.stack(self.keys).view(torch.int64) & self.place_bits

    def squared_distances(self) -> Float[Tensor, "place *query batch"]:
        """Those of the nearest examples, but for the bits that their places took."""
        bits = torch.stack(self.keys).view(torch.int64) & ~self.place_bits
        return bits.view(self.keys[0].dtype)

    def of_first(self) -> "_Nearest":
        return _Nearest([row[0] for row in self.keys], self.place_bits)

    def without_first(self) -> "_Nearest":
        return _Nearest([row[1:] for row in self.keys], self.place_bits)
