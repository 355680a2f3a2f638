"""Causal attention over short prompts as an operation of PyTorch's, on this project's kernels.

Prompts are short (2n−1 tokens), so on a GPU in bfloat16 a head's whole attention matrix fits in one
thread
block: `kernels.attention` then reads and writes the packed layout of the projection itself, which
saves the copies that a general kernel needs around it. `install` puts it into a learner; nothing
else uses it.

Shape letters: B prompts, T tokens, M heads, C channels a head, H = M·C.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.learner.attention import causal_attention
from incontext_linear.learner.transformer import Transformer

MAX_TOKENS = 128
CHANNELS = (16, 32, 64, 128)
"""Channels of a head that the kernels cover."""


def install(model: Transformer) -> None:
    """Let every layer's attention use the kernel, wherever it covers the case."""
    for block in model.blocks:
        block.attention.mix = short_causal_attention


def short_causal_attention(
    packed: Float[Tensor, "batch token features"], num_heads: int
) -> Float[Tensor, "batch token width"]:
    """As `learner.attention.causal_attention`, by the kernel where it covers the case."""
    if _is_covered(packed, num_heads):
        return _fused_attention(packed, num_heads)
    return causal_attention(packed, num_heads)


def _is_covered(packed: Tensor, num_heads: int) -> bool:
    return (
        packed.is_cuda
        and packed.dtype == torch.bfloat16
        and packed.shape[1] <= MAX_TOKENS
        and packed.shape[2] // (3 * num_heads) in CHANNELS
    )


@torch.library.custom_op("incontext_linear::causal_attention", mutates_args=())
def _fused_attention(packed: Tensor, num_heads: int) -> Tensor:
    from incontext_linear.training.kernels import attention  # needs Triton

    output = packed.new_empty(*packed.shape[:2], packed.shape[2] // 3)
    attention.forward(packed.contiguous(), num_heads, output)
    return output


@torch.library.custom_op("incontext_linear::causal_attention_backward", mutates_args=())
def _fused_attention_backward(gradient: Tensor, packed: Tensor, num_heads: int) -> Tensor:
    from incontext_linear.training.kernels import attention

    packed = packed.contiguous()
    packed_gradient = torch.empty_like(packed)
    attention.backward(gradient.contiguous(), packed, num_heads, packed_gradient)
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
