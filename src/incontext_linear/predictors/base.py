"""The one interface: what learns from a prompt, transformer and textbook algorithm alike."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Predictor(Protocol):
    """Anything that predicts each y of a prompt from the examples before it."""

    def __call__(
        self, xs: Float[Tensor, "batch example dim"], ys: Float[Tensor, "batch example"]
    ) -> Float[Tensor, "batch example"]:
        """Predict every prefix at once.

        Args:
            xs: (B, n, d).
            ys: (B, n).

        Returns:
            (B, n) in the dtype and on the device of the input; ``[:, k]`` uses ``xs[:, :k+1]`` and
            ``ys[:, :k]`` only. With no example seen it is the prior mean, 0.
        """
        ...


class LinearPredictor(ABC):
    """A predictor whose prediction is a linear map ŵᵀx of the query, ŵ fitted to the prefix."""

    @abstractmethod
    def weights(
        self, xs: Float[Tensor, "batch example dim"], ys: Float[Tensor, "batch example"]
    ) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d); ``[:, k]`` is fitted to the first k examples, ``[:, 0]`` is 0."""

    def __call__(
        self, xs: Float[Tensor, "batch example dim"], ys: Float[Tensor, "batch example"]
    ) -> Float[Tensor, "batch example"]:
        """Predictions (B, n), as `Predictor` defines them."""
        return (self.weights(xs, ys) * xs).sum(-1)

    def predict_queries(
        self,
        xs: Float[Tensor, "batch example dim"],
        ys: Float[Tensor, "batch example"],
        queries: Float[Tensor, "batch query dim"],
    ) -> Float[Tensor, "batch example query"]:
        """Predictions (B, n, Q) at queries (B, Q, d) behind every prefix."""
        return self.weights(xs, ys) @ queries.mT
