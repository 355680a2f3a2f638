"""Causal softmax attention on packed queries, keys and values: one function, for every device and dtype.

Prompts are short (2n−1 tokens), so on a GPU in bfloat16 a head's whole attention matrix fits in one thread
block: `incontext_linear.attention_kernels` then reads and writes the packed layout of the projection
itself, which saves the copies that a general kernel needs around it. Everywhere else PyTorch's own is used.

Shape letters: B prompts, T tokens, M heads, C channels a head, H = M·C.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MAX_FUSED_TOKENS = 128
FUSED_CHANNELS = (16, 32, 64, 128)


def causal_attention(
    packed: Float[Tensor, "batch token features"], num_heads: int
) -> Float[Tensor, "batch token width"]:
    """Mix values over the tokens up to each token.

    Args:
        packed: queries, keys and values (B, T, 3H), heads within each.
        num_heads: M.

    Returns:
        (B, T, H), heads side by side.
    """
    if _is_fused(packed, num_heads):
        return _fused_attention(packed, num_heads)
    heads = packed.unflatten(-1, (3, num_heads, -1))
    query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(-2)


def _is_fused(packed: Tensor, num_heads: int) -> bool:
    """Whether the short-prompt kernel covers this case."""
    return (
        packed.is_cuda
        and packed.dtype == torch.bfloat16
        and packed.shape[1] <= MAX_FUSED_TOKENS
        and packed.shape[2] // (3 * num_heads) in FUSED_CHANNELS
    )


@torch.library.custom_op("incontext_linear::causal_attention", mutates_args=())
def _fused_attention(packed: Tensor, num_heads: int) -> Tensor:
    from incontext_linear import attention_kernels  # needs Triton, which PyTorch has on a GPU only

    output = packed.new_empty(*packed.shape[:2], packed.shape[2] // 3)
    attention_kernels.forward(packed.contiguous(), num_heads, output)
    return output


@torch.library.custom_op("incontext_linear::causal_attention_backward", mutates_args=())
def _fused_attention_backward(gradient: Tensor, packed: Tensor, num_heads: int) -> Tensor:
    from incontext_linear import attention_kernels

    packed = packed.contiguous()
    packed_gradient = torch.empty_like(packed)
    attention_kernels.backward(gradient.contiguous(), packed, num_heads, packed_gradient)
    return packed_gradient


@_fused_attention.register_fake
def _(packed, num_heads):
    return packed.new_empty(*packed.shape[:2], packed.shape[2] // 3)


@_fused_attention_backward.register_fake
def _(gradient, packed, num_heads):
    return torch.empty_like(packed, memory_format=torch.contiguous_format)


def _keep_inputs(ctx, inputs, output):
    packed, ctx.num_heads = inputs
    ctx.save_for_backward(packed)


def _differentiate(ctx, gradient):
    return _fused_attention_backward(gradient, *ctx.saved_tensors, ctx.num_heads), None


_fused_attention.register_autograd(_differentiate, setup_context=_keep_inputs)
