"""The in-context learner: a decoder-only, pre-norm transformer on interleaved x and y tokens.

Paper, section 2 and appendix: the prompt x₁ y₁ x₂ y₂ … xₙ becomes 2n−1 tokens, an x-token [0, x]
and a y-token [y, 0, …, 0], both in R^{d+1}; the prediction for the k-th example is read from its
x-token, so it has seen k−1 examples. The learner has the form of every predictor: ``learner(xs,
ys)``.

Shape letters: B prompts, n examples, d dimensions, T = 2n−1 tokens, L layers, M heads, H width, Q
queries.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from incontext_linear.config import ModelConfig
from incontext_linear.learner.attention import causal_attention
from incontext_linear.learner.base import residual_streams
from incontext_linear.shapes import Xs, Ys


def tokenize(xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
    """Interleave examples into tokens: [0, x₁], [y₁, 0], …, [0, xₙ]; shape (B, 2n−1, d+1)."""
    x_tokens = F.pad(xs, (1, 0))
    y_tokens = F.pad(ys.unsqueeze(-1), (0, xs.shape[-1]))
    return torch.stack((x_tokens, y_tokens), dim=2).flatten(1, 2)[:, :-1]


class Attention(nn.Module):
    """Causal multi-head softmax attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.mix = causal_attention  # what trains on a GPU may put a faster equal in its place
        self.project_in = nn.Linear(config.width, 3 * config.width)
        self.project_out = nn.Linear(config.width, config.width)

    def heads(self, hidden: Float[Tensor, "*batch width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (*batch, M, H/M)."""
        projected = self.project_in(hidden).unflatten(-1, (3, self.num_heads, -1))
        return projected.unbind(-3)

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        return self.project_out(self.mix(self.project_in(hidden), self.num_heads))

    def weights(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch head token token"]:
        """The attention weights that `forward` uses: row t holds what token t attends to."""
        query, key, _ = (part.transpose(1, 2) for part in self.heads(hidden))
        scores = query @ key.mT / query.shape[-1] ** 0.5
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1)

    def from_context(
        self,
        queries: Float[Tensor, "batch prefix query width"],
        context: Float[Tensor, "batch token width"],
        visible: Bool[Tensor, "prefix token"],
    ) -> Float[Tensor, "batch prefix query width"]:
        """Each query token attends to the visible context tokens and to itself, never to other
        queries.
        """
        query, own_key, own_value = self.heads(queries)  # (B, n, Q, M, H/M)
        _, key, value = self.heads(context)  # (B, T, M, H/M)
        scale = query.shape[-1] ** -0.5
        scores = torch.einsum("bkqmc,btmc->bkqmt", query, key) * scale
        scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
        own_score = (query * own_key).sum(-1, keepdim=True) * scale
        weights = torch.cat((scores, own_score), dim=-1).softmax(-1)
        mixed = (
            torch.einsum("bkqmt,btmc->bkqmc", weights[..., :-1], value)
            + weights[..., -1:] * own_value
        )
        return self.project_out(mixed.flatten(-2))


class Block(nn.Module):
    """One layer: attention, then an MLP, each behind a LayerNorm and added to the residual
    stream.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, config.mlp_units)
        self.mlp_out = nn.Linear(config.mlp_units, config.width)

    def mlp(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden)), approximate="tanh"))

    def forward(
        self, hidden: Float[Tensor, "batch token width"], tokens: slice = slice(None)
    ) -> Float[Tensor, "batch chosen width"]:
        """The residual stream after the layer, at the chosen tokens."""
        hidden = (hidden + self.attention(self.attention_norm(hidden)))[:, tokens]
        return hidden + self.mlp(hidden)

    def from_context(
        self,
        queries: Float[Tensor, "batch prefix query width"],
        context: Float[Tensor, "batch token width"],
        visible: Bool[Tensor, "prefix token"],
    ) -> Float[Tensor, "batch prefix query width"]:
        """What `forward` does to each query token behind its prefix; ``context`` is the layer's
        input.
        """
        normed = self.attention_norm(queries), self.attention_norm(context)
        queries = queries + self.attention.from_context(*normed, visible)
        return queries + self.mlp(queries)


class Transformer(nn.Module):
    """An in-context learner for prompts of up to ``num_examples`` examples in ``dim`` dimensions.

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt; it sets the number of learned positions, 2n−1.
        config: depth, heads, width.
    """

    def __init__(self, dim: int, num_examples: int, config: ModelConfig):
        super().__init__()
        self.dim, self.num_examples, self.config = dim, num_examples, config
        self.read_in = nn.Linear(dim + 1, config.width)
        self.positions = nn.Parameter(torch.zeros(2 * num_examples - 1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.read_out = nn.Linear(config.width, 1)

    def initialize(self, rng: torch.Generator) -> "Transformer":
        """Draw initial weights: N(0, 1/fan_in) matrices, residual branches scaled by 1/√(2L), zero
        biases.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name == "positions":
                nn.init.normal_(parameter, std=0.02, generator=rng)
            elif parameter.ndim == 2:
                residual = name.endswith(("project_out.weight", "mlp_out.weight"))
                scale = (2 * self.config.num_layers) ** -0.5 if residual else 1.0
                nn.init.normal_(parameter, std=scale * parameter.shape[1] ** -0.5, generator=rng)
        return self

    def forward(self, xs: Xs, ys: Ys) -> Ys:
        """Predict every y from the examples before it: ``predictions[:, k]`` has seen k examples.

        Args:
            xs: (B, n, d), n at most ``num_examples``.
            ys: (B, n); the last one is never read.

        Raises:
            ValueError: if the prompt is too long or of another dimension.
        """
        return self.read(self.run_blocks(self.embed(xs, ys)))

    def run_blocks(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch example width"]:
        """The embedding through all blocks, at the x-tokens; a GPU trains with a faster equal."""
        *blocks, last = self.blocks
        for block in blocks:
            hidden = block(hidden)
        return last(hidden, tokens=slice(None, None, 2))  # nothing reads its y-tokens

    def embed(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token width"]:
        """The residual stream that enters the first layer: read-in tokens plus positions, (B, 2n−1,
        H).
        """
        self._check(xs)
        tokens = tokenize(xs, ys)
        return self.read_in(tokens) + self.positions[: tokens.shape[1]]

    def predict(self, hidden: Float[Tensor, "batch token width"]) -> Ys:
        """Read predictions (B, n) out of the x-tokens of the last residual stream (B, 2n−1, H)."""
        return self.read(hidden[:, self.prediction_tokens(hidden.shape[1])])

    def prediction_tokens(self, num_tokens: int) -> slice:
        """The x-tokens: the k-th of them has seen k examples."""
        return slice(0, num_tokens, 2)

    def read(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """What a token of the last residual stream predicts."""
        return self.read_out(self.final_norm(hidden)).squeeze(-1)

    def hidden_states(self, xs: Xs, ys: Ys) -> Float[Tensor, "layer batch token width"]:
        """The residual stream after the embedding and after every layer: (L+1, B, 2n−1, H)."""
        return torch.stack([hidden for _, hidden in residual_streams(self, xs, ys)])

    def attention_weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "layer batch head token token"]:
        """What every token attends to, in every layer and head: (L, B, M, 2n−1, 2n−1)."""
        # The stream behind the last layer enters none.
        entering = zip(self.blocks, residual_streams(self, xs, ys), strict=False)
        return torch.stack(
            [
                block.attention.weights(block.attention_norm(hidden))
                for block, (_, hidden) in entering
            ]
        )

    def predict_queries(
        self,
        xs: Xs,
        ys: Ys,
        queries: Float[Tensor, "batch query dim"],
    ) -> Float[Tensor, "batch example query"]:
        """Predictions at fresh queries behind every prefix, in one pass over the prompt.

        The prompt is run once; each query stands in the place of x_{k+1} for every k, sees the k
        examples before it and itself, and nothing sees it. The same numbers come from n·Q prompts,
        one a (prefix, query), at about n·Q/T times the cost.

        Args:
            xs: (B, n, d); the last example is never read.
            ys: (B, n).
            queries: (B, Q, d), asked behind every prefix.

        Returns:
            (B, n, Q); entry [b, k, q] is the prediction at query q after the first k examples.
        """
        context = self.embed(xs, ys)
        num_examples, num_tokens = xs.shape[1], context.shape[1]
        examples_seen = torch.arange(num_examples, device=xs.device)
        visible = torch.arange(num_tokens, device=xs.device) < 2 * examples_seen[:, None]
        hidden = self.read_in(F.pad(queries, (1, 0)))[:, None] + self.positions[:num_tokens:2, None]
        for block in self.blocks:
            hidden = block.from_context(hidden, context, visible)
            context = block(context)
        return self.read(hidden)

    def _check(self, xs: Tensor) -> None:
        num_examples, dim = xs.shape[1:]
        if dim != self.dim or num_examples > self.num_examples:
            raise ValueError(
                f"xs has {num_examples} examples of dim {dim}; this learner takes dim {self.dim} "
                f"and at most {self.num_examples} examples"
            )
