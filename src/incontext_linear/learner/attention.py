"""Causal softmax attention on packed queries, keys and values.

Shape letters: B prompts, T tokens, M heads, C channels a head, H = M·C.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def causal_attention(
    packed: Float[Tensor, "batch token features"], num_heads: int
) -> Float[Tensor, "batch token width"]:
    """Mix values over the tokens up to each token, by PyTorch's own kernels.

    Args:
        packed: queries, keys and values (B, T, 3H), heads within each.
        num_heads: M.

    Returns:
        (B, T, H), heads side by side.
    """
    heads = packed.unflatten(-1, (3, num_heads, -1))
    query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))
    return (
        F.scaled_dot_product_attention(query, key, value, is_causal=True)
        .transpose(1, 2)
        .flatten(-2)
    )


def plain_attention(
    packed: Float[Tensor, "*batch token features"], num_heads: int
) -> Float[Tensor, "*batch token width"]:
    """`causal_attention` by matrix products, which `torch.vmap` batches on a CPU.

    PyTorch's own CPU kernel has no batching rule: vmap would call it once a learner.
    """
    heads = packed.unflatten(-1, (3, num_heads, -1))
    query, key, value = (part.transpose(-3, -2) for part in heads.unbind(-3))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return (weights @ value).transpose(-3, -2).flatten(-2)


def causal_scores(
    query: Float[Tensor, "batch token head channel"],
    key: Float[Tensor, "batch token head channel"],
) -> Float[Tensor, "batch head token token"]:
    """What the softmax of attention is taken of: scaled products, −∞ for tokens that come later.

    Args:
        query: (B, T, M, C).
        key: (B, T, M, C).

    Returns:
        (B, M, T, T); row t holds what token t sees.
    """
    scores = query.transpose(1, 2) @ key.transpose(1, 2).mT / query.shape[-1] ** 0.5
    future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf"))
