"""The one interface: what learns from a prompt, transformer and textbook algorithm alike."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from incontext_linear.predictors.batching import check_prompts, check_queries, widen
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
