"""The paper's softmax transformer on joint (x, y) tokens, to tell tokenisation from architecture.

With the paper's tokens an x and its y meet only through attention, which takes a layer; with joint
tokens every example is whole before the first one. All else is the transformer's: LayerNorms, MLPs,
learned positions. Queries see the examples before them and themselves, and nobody sees them.

Shape letters: B prompts, n examples, d dimensions, T = 2n−1 tokens, H width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import ModelConfig
from incontext_linear.learner.base import check_size, draw_weights, predict_from
from incontext_linear.learner.tokens import joint_tokens, visible_tokens
from incontext_linear.learner.transformer import Block
from incontext_linear.shapes import Xs, Ys


class JointConfig(ModelConfig):
    """Shape of a transformer on joint tokens."""

    type: Literal["joint_transformer"] = "joint_transformer"


class JointBlock(Block):
    """The transformer's layer, with the mask of joint tokens."""

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """(B, T, H) to (B, T, H)."""
        heads = self.attention.heads(self.attention_norm(hidden))
        query, key, value = (part.transpose(1, 2) for part in heads)
        mask = visible_tokens(hidden.shape[1], hidden.device)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.attention.project_out(mixed.transpose(1, 2).flatten(-2))
        return hidden + self.mlp(hidden)


class JointTransformer(nn.Module):
    """A softmax learner on joint tokens, for prompts of up to ``num_examples`` examples.

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt.
        config: depth, heads, width.
    """

    def __init__(self, dim: int, num_examples: int, config: JointConfig):
        super().__init__()
        self.dim, self.num_examples, self.config = dim, num_examples, config
        self.read_in = nn.Linear(dim + 1, config.width)
        self.positions = nn.Parameter(torch.zeros(2 * num_examples - 1, config.width))
        self.blocks = nn.ModuleList(JointBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.read_out = nn.Linear(config.width, 1)

    def initialize(self, rng: torch.Generator) -> "JointTransformer":
        """Draw initial weights as the transformer does."""
        draw_weights(self, rng, num_branches=2 * self.config.num_layers)
        return self

    def forward(self, xs: Xs, ys: Ys) -> Ys:
        """Predict every y from the examples before it: ``predictions[:, k]`` has seen k examples.

        Args:
            xs: (B, n, d), n at most ``num_examples``.
            ys: (B, n); the last one is never read.

        Raises:
            ValueError: if the prompt is too long or of another dimension.
        """
        return predict_from(self, self.embed(xs, ys), layer=0)

    def embed(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token width"]:
        """The joint tokens behind the read-in, plus positions: (B, 2n−1, H)."""
        check_size(self, xs)
        tokens = joint_tokens(xs, ys)
        return self.read_in(tokens) + self.positions[: tokens.shape[1]]

    def prediction_tokens(self, num_tokens: int) -> slice:
        """The queries."""
        return slice(0, None, 2)

    def read(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """What a token of the last residual stream predicts."""
        return self.read_out(self.final_norm(hidden)).squeeze(-1)
