"""A looped transformer (Yang et al. 2023): one short stack of layers run again and again.

With P the embedded prompt and M the stack, Y ← M(Y + P) from Y = 0, ``num_loops`` times: the prompt
is put in before every loop, and all loops share their weights, as the steps of an iterative
algorithm do.

A residual stream here holds Y and P side by side, (B, T, 2H), so that a loop is a map from one
stream to the next, as a layer of any other learner is.

Shape letters: B prompts, n examples, d dimensions, T = 2n−1 tokens, H width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from incontext_linear.config import ModelConfig
from incontext_linear.learner.base import Network
from incontext_linear.learner.transformer import Block, norm, read_in, tokenize
from incontext_linear.tasks import Xs, Ys


class LoopedConfig(ModelConfig):
    """Shape of a looped transformer: that of its stack, and how often the stack is run."""

    type: Literal["looped"] = "looped"
    num_layers: PositiveInt = 1
    """Layers of the stack."""
    num_loops: PositiveInt = 12
    width: PositiveInt = 128

    @property
    def depth(self) -> int:
        """Every loop leaves a residual stream."""
        return self.num_loops


class Loop(nn.Module):
    """One pass through the stack, behind the injected prompt."""

    def __init__(self, config: LoopedConfig):
        super().__init__()
        self.stack = nn.Sequential(*(Block(config) for _ in range(config.num_layers)))

    def forward(
        self, hidden: Float[Tensor, "batch token stream"]
    ) -> Float[Tensor, "batch token stream"]:
        """(Y, P) to (M(Y + P), P)."""
        state, prompt = hidden.chunk(2, dim=-1)
        return torch.cat((self.stack(state + prompt), prompt), dim=-1)


class LoopedTransformer(Network):
    """A looped learner for prompts of up to ``num_examples`` examples in ``dim`` dimensions.

    ``num_loops`` may be changed on a trained learner: more loops than in training show whether it
    has learned an iteration that converges.

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt.
        config: the stack, and the number of loops.
    """

    def __init__(self, dim: int, num_examples: int, config: LoopedConfig):
        super().__init__(dim, num_examples if config.positions == "learned" else None, config)
        self.num_loops = config.num_loops
        self.read_in, self.positions = read_in(dim, num_examples, config)
        self.loop = Loop(config)
        self.final_norm = norm(config)
        self.read_out = nn.Linear(config.width, 1)

    @property
    def blocks(self) -> list[nn.Module]:
        """The loops, all one module."""
        return [self.loop] * self.num_loops

    def tokens(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
        """The paper's."""
        return tokenize(xs, ys)

    def embed(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token stream"]:
        """Y = 0 beside P, the read-in tokens plus positions: (B, 2n−1, 2H)."""
        return F.pad(super().embed(xs, ys), (self.config.width, 0))

    def read(self, hidden: Float[Tensor, "*batch stream"]) -> Float[Tensor, "*batch"]:
        """What Y predicts."""
        return super().read(hidden[..., : self.config.width])
