"""The paper's softmax transformer on joint (x, y) tokens, to tell tokenisation from architecture.

With the paper's tokens an x and its y meet only through attention, which takes a layer; with joint
tokens every example is whole before the first one. All else is the transformer's: LayerNorms, MLPs,
learned positions. Queries see the examples before them and themselves, and nobody sees them.

Shape letters: B prompts, n examples, d dimensions, T = 2n−1 tokens, H width.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import ModelConfig
from incontext_linear.learner.base import Network
from incontext_linear.learner.tokens import joint_tokens, visible_tokens
from incontext_linear.learner.transformer import Block, norm, read_in
from incontext_linear.tasks import Xs, Ys


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
        return self.add_mlp(hidden + self.attention.project_out(mixed.transpose(1, 2).flatten(-2)))


class JointTransformer(Network):
    """A softmax learner on joint tokens, for prompts of up to ``num_examples`` examples.

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt; without learned positions there is no limit.
        config: depth, heads, width.
    """

    def __init__(self, dim: int, num_examples: int, config: JointConfig):
        super().__init__(dim, num_examples if config.positions == "learned" else None, config)
        self.read_in, self.positions = read_in(dim, num_examples, config)
        self.blocks = nn.ModuleList(JointBlock(config) for _ in range(config.num_layers))
        self.final_norm = norm(config)
        self.read_out = nn.Linear(config.width, 1)

    def tokens(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
        """Queries and examples, each with its x."""
        return joint_tokens(xs, ys)
