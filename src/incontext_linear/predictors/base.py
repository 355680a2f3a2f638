"""The one interface: what learns from a prompt, transformer and textbook algorithm alike."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.batching import (
    check_prompts,
    check_queries,
    in_chunks_batch_last,
    widen,
)
from incontext_linear.tasks import Xs, Ys


@runtime_checkable
class Predictor(Protocol):
    """Anything that predicts each y of a prompt from the examples before it."""

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predict every prefix at once.

        Args:
            xs: (B, n, d).
            ys: (B, n).

        Returns:
            (B, n) in the dtype and on the device of the input; ``[:, k]`` uses ``xs[:, :k+1]`` and
            ``ys[:, :k]`` only. With no example seen it is the prediction under the prior mean of w:
            0, unless the prior is a finite pool.
        """
        ...


class LinearPredictor(ABC):
    """A predictor whose prediction is a linear map ŵᵀx of the query, ŵ fitted to the prefix.

    A subclass gives `weights`; the predictions follow. They are summed in float64 and rounded to
    the input's dtype once, at the end, so that float32 input loses nothing to the algorithm.
    """

    @abstractmethod
    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d); ``[:, k]`` is fitted to the first k examples, ``[:, 0]`` to
        none.
        """

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n), as `Predictor` defines them.

        Raises:
            ValueError: if the prompts have wrong shapes, dtypes or devices, or values that are not
                finite.
        """
        check_prompts(xs, ys)
        wide = widen(xs)
        return (self.weights(wide, widen(ys)) * wide).sum(-1).to(xs.dtype)

    def predict_queries(
        self,
        xs: Xs,
        ys: Ys,
        queries: Float[Tensor, "batch query dim"],
    ) -> Float[Tensor, "batch example query"]:
        """Predictions (B, n, Q) at queries (B, Q, d) behind every prefix.

        Raises:
            ValueError: as for a call, and if the queries do not match the prompts.
        """
        check_prompts(xs, ys)
        check_queries(xs, queries)
        return (self.weights(widen(xs), widen(ys)) @ widen(queries).mT).to(xs.dtype)


class BatchLastLinearPredictor(LinearPredictor):
    """A linear predictor that fits a chunk of prompts at a time, prompts along the last axis.

    It predicts chunk by chunk too: weights, of which there are d times as many as predictions, are
    then used where they are made, in the cache, and neither transposed nor put together.
    """

    @abstractmethod
    def fit(
        self, xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
    ) -> Float[Tensor, "example dim batch"]:
        """Fitted weights (n, d, B) of float64 prompts, entry k to the first k examples."""

    def values_per_prompt(self, dim: int) -> int:
        """How many float64 values of working memory a prompt takes."""
        return dim**2

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        check_prompts(xs, ys)
        return in_chunks_batch_last(self.fit, self.values_per_prompt(xs.shape[-1]), xs, ys)

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n), as `Predictor` defines them."""
        check_prompts(xs, ys)
        size = self.values_per_prompt(xs.shape[-1])
        return in_chunks_batch_last(lambda xs, ys: (self.fit(xs, ys) * xs).sum(1), size, xs, ys)
