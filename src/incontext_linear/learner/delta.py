"""A gated linear recurrence with the delta rule (DeltaNet, Gated DeltaNet; Yang et al. 2024, 2025).

Each head keeps a matrix S from keys to values, and each token writes to it

    S ← α S (I − β k kᵀ) + β v kᵀ,    o = S q,

which is one step of gradient descent on ½‖S k − v‖² of step size β, after the state has decayed by
α. With k = x and v = y it is one-pass SGD on the examples: the textbook algorithm that such layers
are thought to run. All tokens are computed at once by one triangular solve instead of a loop over
them.

Shape letters: B prompts, n examples, d dimensions, T = 2n−1 tokens, H width, M heads, C channels a
head.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from incontext_linear.config import LearnerConfig
from incontext_linear.learner.base import Network
from incontext_linear.learner.tokens import joint_tokens
from incontext_linear.learner.transformer import tokenize
from incontext_linear.tasks import Xs, Ys


class DeltaConfig(LearnerConfig):
    """Shape of a gated-recurrence learner."""

    type: Literal["delta"] = "delta"
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    width: PositiveInt = 128
    mlp_width: NonNegativeInt | None = None
    """Hidden units of each MLP; None: four times the width; 0: no MLP."""
    tokens: Literal["interleaved", "joint"] = "interleaved"
    """``interleaved``: the paper's x- and y-tokens; ``joint``: a query (x, 0) and an example (x, y)
    for each example."""
    convolution: PositiveInt = 4
    """Tokens that a short causal convolution of queries, keys and values spans; 1: none. It lets a
    y-token know its x."""
    keys: Literal["unit", "free"] = "unit"
    """``unit``: queries and keys have length 1, as in DeltaNet; ``free``: any length."""
    decay: Literal["gated", "none"] = "gated"
    """``gated``: each token sets its α (Gated DeltaNet); ``none``: α = 1 (DeltaNet)."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "DeltaConfig":
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide width={self.width}; allowed: a divisor"
            )
        return self


def delta_rule(
    queries: Float[Tensor, "*batch token key"],
    keys: Float[Tensor, "*batch token key"],
    values: Float[Tensor, "*batch token value"],
    rate: Float[Tensor, "*batch token"],
    log_decay: Float[Tensor, "*batch token"],
) -> Float[Tensor, "*batch token value"]:
    """What each token reads from the state after its own write, from S = 0.

    The state is S_t = Σ_{i≤t} (γ_t/γ_i) u_i k_iᵀ with γ_t = α_1…α_t; the writes u solve
    u_t + β_t Σ_{i<t} (γ_t/γ_i)(k_tᵀk_i) u_i = β_t v_t, a unit lower-triangular system.

    Args:
        queries: q (…, T, C).
        keys: k (…, T, C).
        values: v (…, T, C').
        rate: β (…, T).
        log_decay: log α ≤ 0 (…, T).

    Returns:
        S_t q_t, (…, T, C'). Cost: O(T² C + T² C') a head.
    """
    total = log_decay.cumsum(-1)
    # Above the diagonal the ratio could overflow, and is not used.
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp()
    overlaps = (rate.unsqueeze(-1) * decay * (keys @ keys.mT)).tril(-1)
    identity = torch.eye(keys.shape[-2], dtype=keys.dtype, device=keys.device)
    writes = torch.linalg.solve_triangular(
        overlaps + identity, rate.unsqueeze(-1) * values, upper=False, unitriangular=True
    )
    return (decay * (queries @ keys.mT)).tril() @ writes


class DeltaMixer(nn.Module):
    """The recurrence of one layer: projections, short convolution, gates, delta rule."""

    def __init__(self, config: DeltaConfig):
        super().__init__()
        self.config = config
        width, span = config.width, config.convolution
        self.project_in = nn.Linear(width, 3 * width)
        self.gates = nn.Linear(width, 2 * config.num_heads)
        self.convolution = None
        if span > 1:
            self.convolution = nn.Conv1d(
                3 * width, 3 * width, span, groups=3 * width, padding=span - 1
            )
        self.project_out = nn.Linear(width, width)

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """(B, T, H) to (B, T, H)."""
        packed = self.project_in(hidden)
        if self.convolution is not None:
            packed = self.convolution(packed.mT)[..., : packed.shape[1]].mT
        heads = packed.unflatten(-1, (3, self.config.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))  # (B, M, T, C)
        if self.config.keys == "unit":
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        rate, decay = self.gates(hidden).unflatten(-1, (2, -1)).permute(2, 0, 3, 1)  # (B, M, T)
        # The bias of the decay's gate starts at 0; the shift makes α start near 1, a long memory.
        gated = self.config.decay == "gated"
        log_decay = F.logsigmoid(decay + 5) if gated else torch.zeros_like(decay)
        read = delta_rule(query, key, value, 2 * rate.sigmoid(), log_decay)
        return self.project_out(read.transpose(1, 2).flatten(-2))


class DeltaLayer(nn.Module):
    """One layer: the recurrence, then an MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, config: DeltaConfig):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.width)
        self.mixer = DeltaMixer(config)
        units = 4 * config.width if config.mlp_width is None else config.mlp_width
        self.mlp_in = self.mlp_out = None
        if units:
            self.mlp_norm = nn.LayerNorm(config.width)
            self.mlp_in = nn.Linear(config.width, units)
            self.mlp_out = nn.Linear(units, config.width)

    def forward(
        self, hidden: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        """(B, T, H) to (B, T, H)."""
        hidden = hidden + self.mixer(self.mixer_norm(hidden))
        if self.mlp_in is None:
            return hidden
        return hidden + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden)), approximate="tanh"))


class DeltaNetwork(Network):
    """A gated-recurrence learner for prompts of any length in ``dim`` dimensions.

    Args:
        dim: d, the dimension of x.
        config: depth, heads, width, form of the recurrence.
    """

    def __init__(self, dim: int, config: DeltaConfig):
        super().__init__(dim, None, config)
        self.read_in = nn.Linear(dim + 1, config.width)
        self.blocks = nn.ModuleList(DeltaLayer(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.read_out = nn.Linear(config.width, 1)

    def initialize(self, rng: torch.Generator) -> Self:
        """Draw initial weights as the transformer does; convolutions start with their last tap at
        1."""
        super().initialize(rng)
        for block in self.blocks:
            if block.mixer.convolution is not None:
                taps = block.mixer.convolution.weight
                taps.data.mul_(0.5).select(-1, -1).add_(1.0)
        return self

    def tokens(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
        """The paper's, or joint ones."""
        return (joint_tokens if self.config.tokens == "joint" else tokenize)(xs, ys)
