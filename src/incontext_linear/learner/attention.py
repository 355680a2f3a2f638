"""Causal softmax attention on packed queries, keys and values.

Shape letters: B prompts, T tokens, M heads, C channels a head, H = M·C.
"""

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
