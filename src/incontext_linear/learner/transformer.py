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
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from incontext_linear.config import ModelConfig
from incontext_linear.learner.attention import causal_attention, causal_scores
from incontext_linear.learner.base import Network, residual_streams
from incontext_linear.tasks import Xs, Ys


def tokenize(xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
    """Interleave examples into tokens: [0, x₁], [y₁, 0], …, [0, xₙ]; shape (B, 2n−1, d+1)."""
    x_tokens = F.pad(xs, (1, 0))
    y_tokens = F.pad(ys.unsqueeze(-1), (0, xs.shape[-1]))
    return torch.stack((x_tokens, y_tokens), dim=2).flatten(1, 2)[:, :-1]


def norm(config: ModelConfig) -> nn.Module:
    """What stands before a branch, and before the read-out."""
    return nn.LayerNorm(config.width) if config.norm == "layer" else nn.Identity()


def read_in(
    dim: int, num_examples: int, config: ModelConfig
) -> tuple[nn.Linear, nn.Parameter | None]:
    """The map from tokens to the stream, and the learned positions (2n−1, H) where there are
    some.
    """
    layer = nn.Linear(dim + 1, config.width)
    if config.positions != "learned":
        return layer, None
    return layer, nn.Parameter(torch.zeros(2 * num_examples - 1, config.width))


def rotate(
    vectors: Float[Tensor, "*batch head channel"], places: Num[Tensor, "*places"]
) -> Float[Tensor, "*batch head channel"]:
    """Turn pairs of channels by angles that grow with the place (RoPE; Su et al. 2021, section
    3.2.2): pair c of C/2 by place · 10000^(−2c/C), so that a score depends on the distance alone.

    Args:
        vectors: (…, M, C), C even.
        places: of the tokens, to be broadcast against the leading dimensions.
    """
    half = vectors.shape[-1] // 2
    exponents = torch.arange(half, dtype=vectors.dtype, device=vectors.device) / half
    angles = places.to(vectors)[..., None, None] * 1e4**-exponents
    first, second = vectors.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class Attention(nn.Module):
    """Causal multi-head softmax attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.rotary = config.positions == "rotary"
        self.mix = causal_attention  # what trains on a GPU may put a faster equal in its place
        self.project_in = nn.Linear(config.width, 3 * config.width)
        self.project_out = nn.Linear(config.width, config.width)

    def heads(
        self, hidden: Float[Tensor, "*batch width"], places: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (*batch, M, H/M).

        Args:
            hidden: (…, T, H).
            places: of the tokens, to be broadcast against (…, T); None: 0 to T−1.
        """
        projected = self.project_in(hidden).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.unbind(-3)
        if self.rotary:
            if places is None:
                places = torch.arange(hidden.shape[-2], device=hidden.device)
            query, key = rotate(query, places), rotate(key, places)
        return query, key, value

    def keys_and_values(self, hidden: Float[Tensor, "batch token width"]) -> tuple[Tensor, Tensor]:
        """Those of `heads` alone, where no token of these asks anything: two thirds of the cost."""
        width = hidden.shape[-1]
        layer = self.project_in
        bias = None if layer.bias is None else layer.bias[width:]
        projected = F.linear(hidden, layer.weight[width:], bias)
        key, value = projected.unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        if self.rotary:
            key = rotate(key, torch.arange(hidden.shape[-2], device=hidden.device))
        return key, value

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        if self.rotary:
            packed = torch.stack(self.heads(hidden), dim=-3).flatten(-3)
        else:
            packed = self.project_in(hidden)
        return self.project_out(self.mix(packed, self.num_heads))

    def weights(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch head token token"]:
        """The attention weights that `forward` uses: row t holds what token t attends to."""
        query, key, _ = self.heads(hidden)
        return causal_scores(query, key).softmax(-1)

    def at_last(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch width"]:
        """What `forward` gives the last token, which alone asks."""
        key, value = self.keys_and_values(hidden)
        own = hidden[:, -1:]
        query = self.heads(own, torch.tensor([hidden.shape[1] - 1], device=hidden.device))[0]
        scores = (query * key).sum(-1, keepdim=True) * query.shape[-1] ** -0.5
        return self.project_out((scores.softmax(1) * value).sum(1).flatten(-2))

    def from_context(
        self,
        queries: Float[Tensor, "batch prefix query width"],
        context: Float[Tensor, "batch token width"],
        visible: Bool[Tensor, "prefix token"],
    ) -> Float[Tensor, "batch prefix query width"]:
        """Each query token attends to the visible context tokens and to itself, never to other
        queries.
        """
        behind = visible.sum(-1)[:, None]  # a query stands behind what it sees
        query, own_key, own_value = self.heads(queries, behind)  # (B, n, Q, M, H/M)
        key, value = self.keys_and_values(context)  # (B, T, M, H/M)
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
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.has_mlp = config.mlp_units > 0
        if self.has_mlp:
            self.mlp_norm = norm(config)
            self.mlp_in = nn.Linear(config.width, config.mlp_units)
            self.mlp_out = nn.Linear(config.mlp_units, config.width)

    def add_mlp(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The stream with what the MLP writes, where there is one."""
        return hidden + self.mlp(hidden) if self.has_mlp else hidden

    def mlp(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden)), approximate="tanh"))

    def forward(
        self, hidden: Float[Tensor, "batch token width"], tokens: slice = slice(None)
    ) -> Float[Tensor, "batch chosen width"]:
        """The residual stream after the layer, at the chosen tokens."""
        return self.add_mlp((hidden + self.attention(self.attention_norm(hidden)))[:, tokens])

    def at_last(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch width"]:
        """The residual stream after the layer, at the last token alone."""
        return self.add_mlp(hidden[:, -1] + self.attention.at_last(self.attention_norm(hidden)))

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
        return self.add_mlp(queries + self.attention.from_context(*normed, visible))


class Transformer(Network):
    """An in-context learner for prompts of up to ``num_examples`` examples in ``dim`` dimensions.

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt; it sets the number of learned positions, 2n−1. Without
            learned positions there is no limit.
        config: depth, heads, width, options.
    """

    def __init__(self, dim: int, num_examples: int, config: ModelConfig):
        super().__init__(dim, num_examples if config.positions == "learned" else None, config)
        self.read_in, self.positions = read_in(dim, num_examples, config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = norm(config)
        self.read_out = nn.Linear(config.width, 1)

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

    def tokens(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
        """The paper's."""
        return tokenize(xs, ys)

    def embed_queries(
        self, queries: Float[Tensor, "*batch query dim"], places: slice | int
    ) -> Float[Tensor, "*placed query width"]:
        """Queries as x-tokens that enter the first layer, at one place or, one before the other,
        at several.
        """
        hidden = self.read_in(F.pad(queries, (1, 0)))
        if self.positions is None:
            return hidden
        return hidden + self.positions[places].unsqueeze(-2)

    def predict(self, hidden: Float[Tensor, "batch token width"]) -> Ys:
        """Read predictions (B, n) out of the x-tokens of the last residual stream (B, 2n−1, H)."""
        return self.read(hidden[:, self.prediction_tokens(hidden.shape[1])])

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
        hidden = self.embed_queries(queries[:, None], slice(0, num_tokens, 2))
        hidden = hidden.expand(-1, num_examples, -1, -1)
        for block in self.blocks:
            hidden = block.from_context(hidden, context, visible)
            context = block(context)
        return self.read(hidden)


def as_transformer(model: nn.Module) -> Transformer:
    """The same network, where what is asked of it is known for the paper's transformer alone.

    Raises:
        ValueError: if it is of another architecture.
    """
    if isinstance(model, Transformer):
        return model
    raise ValueError(
        f"learner: a {type(model).__name__} given; allowed here: the transformer "
        "(model.type: transformer)"
    )
