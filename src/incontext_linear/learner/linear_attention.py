"""Linear attention on joint (x, y) tokens, without softmax: a layer can be a gradient step.

Each token z = (y, x) is changed by what the examples of its prefix hold,

    z ← z + s_k Σ_h V_h (Σ_i z_i z_iᵀ) Q_h z,

the inner sum over the k examples, s_k = 1/k or 1 (von Oswald et al. 2023; Ahn et al. 2023; Zhang et
al. 2024). The query enters as (0, x) and is no key. The best that one layer can do on Gaussian
prompts is one preconditioned gradient step, w = s_k Γ Xᵀy (Ahn et al. 2023, theorem 1). A layer
keeps in an example's y what the prefix has not explained yet, and in the query's y minus the
prediction, so the prediction is read with its sign changed.

Shape letters: B prompts, n examples, d dimensions, T tokens, H = d + 1 features, M heads.
"""

from math import isqrt
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from incontext_linear.config import LearnerConfig
from incontext_linear.learner.base import Network, check_size
from incontext_linear.learner.tokens import joint_tokens
from incontext_linear.tasks import Xs, Ys


class LinearAttentionConfig(LearnerConfig):
    """Shape of a linear-attention learner. The default is the one of the theory."""

    type: Literal["linear_attention"] = "linear_attention"
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 1
    matrices: Literal["full", "preconditioned", "gd_plus_plus"] = "full"
    """``full``: V and Q are free. ``preconditioned``: only Γ is, and a layer is one gradient step,
    w ← w + s_k Γ Xᵀ(y − Xw). ``gd_plus_plus``: B is free too, and the layer also changes the
    inputs, x ← x − s_k B XᵀX Γᵀ x (GD++, von Oswald et al. 2023)."""
    context: Literal["prefix", "causal"] = "prefix"
    """Which examples an example sees in a prefix of k: ``prefix``, all k of it, as in the
    literature, as if every prefix were a prompt of its own; ``causal``, those up to itself. No
    difference for one layer."""
    normalization: Literal["examples", "none"] = "examples"
    """s_k: ``examples``, 1/k; ``none``, 1."""
    width: PositiveInt | None = None
    """H, behind a linear read-in; None: the tokens themselves, d + 1 features."""
    mlp_width: PositiveInt | None = None
    """Hidden units of an MLP behind each attention; None: no MLP."""

    @model_validator(mode="after")
    def _theory_has_one_head_on_plain_tokens(self) -> "LinearAttentionConfig":
        if self.matrices != "full" and (self.num_heads > 1 or self.width is not None):
            raise ValueError(
                f"matrices={self.matrices!r} with num_heads={self.num_heads}, width={self.width}; "
                "allowed: num_heads=1 and width=None, or matrices='full'"
            )
        return self


class FullMatrices(nn.Module):
    """Q (which examples matter to a token) and V (what they change in it), free, each (M, H, H)."""

    def __init__(self, num_heads: int, width: int):
        super().__init__()
        self.query_key = nn.Parameter(torch.zeros(num_heads, width, width))
        self.value = nn.Parameter(torch.zeros(num_heads, width, width))

    def forward(
        self,
    ) -> tuple[Float[Tensor, "head width width"], Float[Tensor, "head width width"]]:
        """Q and V."""
        return self.query_key, self.value


class GradientStep(nn.Module):
    """The Q and V of one preconditioned gradient step: Γ (d, d) is free, and for GD++ B (d, d)."""

    def __init__(self, dim: int, changes_inputs: bool):
        super().__init__()
        self.preconditioner = nn.Parameter(torch.zeros(dim, dim))
        self.input_change = nn.Parameter(torch.zeros(dim, dim)) if changes_inputs else None

    def forward(
        self,
    ) -> tuple[Float[Tensor, "head width width"], Float[Tensor, "head width width"]]:
        """Q = [[0, 0], [0, Γᵀ]] and V = −[[1, 0], [0, B]]."""
        query_key = F.pad(self.preconditioner.T, (1, 0, 1, 0))
        inputs = (
            torch.zeros_like(self.preconditioner)
            if self.input_change is None
            else self.input_change
        )
        value = torch.block_diag(inputs.new_ones(1, 1), inputs)
        return query_key.unsqueeze(0), -value.unsqueeze(0)


class LinearAttentionLayer(nn.Module):
    """One layer: linear attention over the examples of each prefix, then an MLP if there is one."""

    def __init__(self, dim: int, config: LinearAttentionConfig):
        super().__init__()
        self.config = config
        width = config.width or dim + 1
        if config.matrices == "full":
            self.matrices = FullMatrices(config.num_heads, width)
        else:
            self.matrices = GradientStep(dim, changes_inputs=config.matrices == "gd_plus_plus")
        self.mlp = None
        if config.mlp_width is not None:
            self.mlp = nn.Sequential()
            self.mlp.add_module("mlp_in", nn.Linear(width, config.mlp_width))
            self.mlp.add_module("gelu", nn.GELU(approximate="tanh"))
            self.mlp.add_module("mlp_out", nn.Linear(config.mlp_width, width))

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """From one residual stream (B, T, H) to the next; T as the context has it."""
        step = self._prefix_step if self.config.context == "prefix" else self._causal_step
        hidden = hidden + step(hidden)
        return hidden if self.mlp is None else hidden + self.mlp(hidden)

    def _causal_step(self, hidden: Tensor) -> Tensor:
        """Token 2k has seen k examples, token 2k+1 its own as well: masked products of tokens."""
        query_key, value = self.matrices()
        num_tokens, examples = hidden.shape[1], hidden[:, None, 1::2]
        seen = (torch.arange(num_tokens, device=hidden.device) + 1) // 2
        shares = (torch.arange(num_tokens // 2, device=hidden.device) < seen[:, None]).to(hidden)
        if self.config.normalization == "examples":
            shares = shares / seen.clamp(min=1)[:, None]
        overlaps = (hidden.unsqueeze(1) @ query_key.mT) @ examples.mT  # (B, M, T, n-1)
        return ((shares * overlaps) @ examples @ value.mT).sum(1)

    def _prefix_step(self, hidden: Tensor) -> Tensor:
        """Sums of z zᵀ over the examples as each prefix has changed them: one prompt a prefix."""
        num_tokens = hidden.shape[1]
        num_examples = _examples_of(num_tokens)
        prefix, token = torch.tril_indices(num_examples, num_examples, device=hidden.device)
        places = torch.full((num_examples, num_examples), num_tokens, device=hidden.device)
        places[prefix, token] = torch.arange(num_tokens, device=hidden.device)
        padded = F.pad(hidden, (0, 0, 0, 1))[:, places]  # (B, prefix, token, H)
        is_example = hidden.new_ones(num_examples, num_examples).tril(-1).unsqueeze(-1)
        examples = padded * is_example
        operators = self._operators(examples.mT @ examples)
        return (padded @ operators.mT)[:, prefix, token]

    def _operators(self, moments: Float[Tensor, "batch example width width"]) -> Tensor:
        """What each prefix applies to its tokens, s_k Σ_h V_h (Σ_i z_i z_iᵀ) Q_h, (B, n, H, H)."""
        query_key, value = self.matrices()
        if self.config.normalization == "examples":
            seen = torch.arange(moments.shape[1], device=moments.device).clamp(min=1)
            moments = moments / seen[:, None, None]
        return (value @ moments.unsqueeze(2) @ query_key).sum(2)


def _examples_of(num_tokens: int) -> int:
    """n, where all prefixes together have n(n+1)/2 tokens."""
    return (isqrt(8 * num_tokens + 1) - 1) // 2


class LinearAttention(Network):
    """A linear-attention learner for prompts of any length in ``dim`` dimensions.

    A residual stream holds, for ``context: causal``, the 2n−1 tokens of `joint_tokens`; for
    ``prefix`` the n(n+1)/2 tokens of n prompts concatenated, the one of k examples and its query
    being k+1 of them. A layer costs O(B n² H M) for ``causal``, and O(B n H³ M + B n² H²) for
    ``prefix``.

    Args:
        dim: d, the dimension of x.
        config: depth, heads, form.
    """

    def __init__(self, dim: int, config: LinearAttentionConfig):
        super().__init__(dim, None, config)
        self.read_in = self.read_out = None
        if config.width is not None:
            self.read_in = nn.Linear(dim + 1, config.width, bias=False)
            self.read_out = nn.Linear(config.width, 1, bias=False)
        self.blocks = nn.ModuleList(
            LinearAttentionLayer(dim, config) for _ in range(config.num_layers)
        )

    def initialize(self, rng: torch.Generator) -> Self:
        """Draw initial weights: N(0, (0.3/H)²) for V, Q, Γ and B, N(0, 1/fan_in) for the others."""
        super().initialize(rng)
        for block in self.blocks:
            for parameter in block.matrices.parameters():
                nn.init.normal_(parameter, std=0.3 / parameter.shape[-1], generator=rng)
        return self

    def embed(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token width"]:
        """The tokens that enter the first layer, (B, 2n−1, H) or (B, n(n+1)/2, H)."""
        check_size(self, xs)
        tokens = joint_tokens(xs, ys)
        if self.config.context == "prefix":
            num_examples = xs.shape[1]
            prefix, token = torch.tril_indices(num_examples, num_examples, device=xs.device)
            tokens = tokens[:, torch.where(token < prefix, 2 * token + 1, 2 * token)]
        return tokens if self.read_in is None else self.read_in(tokens)

    def prediction_tokens(self, num_tokens: int) -> slice | Tensor:
        """Where the queries are: every other token, or the last one of each prefix."""
        if self.config.context == "causal":
            return slice(0, num_tokens, 2)
        return torch.arange(1, _examples_of(num_tokens) + 1).cumsum(0) - 1

    def read(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """What a token of the last residual stream predicts: −y, or what the read-out gives."""
        return -hidden[..., 0] if self.read_out is None else self.read_out(hidden).squeeze(-1)


def learned_step(model: LinearAttention) -> Float[Tensor, "dim dim"]:
    """Γ of a one-layer learner, whose prediction is s_k xᵀΓXᵀy plus terms that are even in y.

    Of the query (0, x), Q's first column is not read, and of V only the row that writes y:
    Γᵀ = −Σ_h (V_yy Q_xx + V_yxᵀ Q_yx).

    Raises:
        ValueError: if the learner has more than one layer, an MLP, or a read-in.
    """
    config = model.config
    if config.num_layers > 1 or config.width is not None or config.mlp_width is not None:
        raise ValueError(
            f"num_layers={config.num_layers}, width={config.width}, mlp_width={config.mlp_width}; "
            "allowed: num_layers=1 without width and mlp_width, whose prediction is one step"
        )
    query_key, value = (matrix.detach().double() for matrix in model.blocks[0].matrices())
    direct = value[:, :1, :1] * query_key[:, 1:, 1:]
    crossed = value[:, 0, 1:, None] * query_key[:, :1, 1:]
    return -(direct + crossed).sum(0).T
