"""A GRU or LSTM on the paper's interleaved tokens: in-context learning with a state of fixed size.

Layers are PyTorch's own, one after another, without residual connections: the stream that a layer
leaves is its hidden state after each token. There are no positions, so prompts may be of any
length.

Shape letters: B prompts, n examples, d dimensions, T = 2n−1 tokens, H width.
"""

from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from incontext_linear.config import LearnerConfig
from incontext_linear.learner.base import Network
from incontext_linear.learner.transformer import tokenize
from incontext_linear.tasks import Xs, Ys


class RecurrentConfig(LearnerConfig):
    """Shape of a recurrent learner."""

    type: Literal["gru", "lstm"] = "gru"
    num_layers: PositiveInt = 2
    width: PositiveInt = 128
    """Hidden units of each layer."""


class RecurrentLayer(nn.Module):
    """One layer of PyTorch's GRU or LSTM, from zero state; returns the hidden state after each
    token."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        self.cell = cell(width, width, batch_first=True)

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """(B, T, H) to (B, T, H)."""
        return self.cell(hidden)[0]


class Recurrent(Network):
    """A GRU or LSTM learner for prompts of any length in ``dim`` dimensions.

    Args:
        dim: d, the dimension of x.
        config: kind, depth, width.
    """

    def __init__(self, dim: int, config: RecurrentConfig):
        super().__init__(dim, None, config)
        self.read_in = nn.Linear(dim + 1, config.width)
        self.blocks = nn.ModuleList(
            RecurrentLayer(config.type, config.width) for _ in range(config.num_layers)
        )
        self.final_norm = nn.Identity()
        self.read_out = nn.Linear(config.width, 1)

    def initialize(self, rng: torch.Generator) -> Self:
        """Draw initial weights: N(0, 1/fan_in) matrices; biases 0, but 1 at an LSTM's forget
        gate."""
        super().initialize(rng)
        if self.config.type == "lstm":
            width = self.config.width
            for block in self.blocks:
                nn.init.ones_(block.cell.bias_ih_l0.data[width : 2 * width])
        return self

    def tokens(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
        """The paper's."""
        return tokenize(xs, ys)
