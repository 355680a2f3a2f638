"""Triton kernels for causal attention over at most 128 tokens, in the layout of the packed projection.

One program holds one head of one prompt. The backward pass computes the attention matrix again from
queries and keys, so the forward pass keeps nothing but its input. Imported only where it is used: on a GPU.

Shape letters: B prompts, T tokens, M heads, C channels a head, H = M·C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attention_weights(query, key, num_tokens, scale, BLOCK: tl.constexpr):  # noqa: N803
    """Causal softmax of scaled scores, float32; rows beyond the prompt hold harmless finite numbers."""
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    scores = tl.dot(query, tl.trans(key)) * (scale * 1.4426950408889634)
    scores = tl.where((column <= row) & (column < num_tokens), scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _forward_kernel(packed, output, num_tokens, scale, M: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    prompt, head = tl.program_id(0).to(tl.int64) // M, tl.program_id(0) % M
    token, channel = tl.arange(0, BLOCK)[:, None], tl.arange(0, C)[None, :]
    inside = token < num_tokens
    source = packed + prompt * num_tokens * 3 * M * C + head * C + token * 3 * M * C + channel
    query = tl.load(source, mask=inside, other=0.0)
    key = tl.load(source + M * C, mask=inside, other=0.0)
    value = tl.load(source + 2 * M * C, mask=inside, other=0.0)
    weights = _attention_weights(query, key, num_tokens, scale, BLOCK)
    mixed = tl.dot(weights.to(value.dtype), value)
    target = output + prompt * num_tokens * M * C + head * C + token * M * C + channel
    tl.store(target, mixed.to(value.dtype), mask=inside)


@triton.jit
def _backward_kernel(
    gradient,
    packed,
    packed_gradient,
    num_tokens,
    scale,
    M: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    prompt, head = tl.program_id(0).to(tl.int64) // M, tl.program_id(0) % M
    token, channel = tl.arange(0, BLOCK)[:, None], tl.arange(0, C)[None, :]
    inside = token < num_tokens
    offset = prompt * num_tokens * 3 * M * C + head * C + token * 3 * M * C + channel
    query = tl.load(packed + offset, mask=inside, other=0.0)
    key = tl.load(packed + offset + M * C, mask=inside, other=0.0)
    value = tl.load(packed + offset + 2 * M * C, mask=inside, other=0.0)
    source = gradient + prompt * num_tokens * M * C + head * C + token * M * C + channel
    upstream = tl.load(source, mask=inside, other=0.0)

    weights = _attention_weights(query, key, num_tokens, scale, BLOCK)
    value_gradient = tl.dot(tl.trans(weights.to(value.dtype)), upstream)
    tl.store(packed_gradient + offset + 2 * M * C, value_gradient.to(value.dtype), mask=inside)
    weight_gradient = tl.dot(upstream, tl.trans(value))
    mean = tl.sum(weights * weight_gradient, axis=1)[:, None]
    score_gradient = (weights * (weight_gradient - mean) * scale).to(value.dtype)
    tl.store(packed_gradient + offset, tl.dot(score_gradient, key).to(value.dtype), mask=inside)
    key_gradient = tl.dot(tl.trans(score_gradient), query)
    tl.store(packed_gradient + offset + M * C, key_gradient.to(value.dtype), mask=inside)


def _settings(packed: Tensor, num_heads: int) -> tuple[tuple[int], float, dict[str, int]]:
    """Grid, score scale and compile-time constants."""
    num_prompts, num_tokens, features = packed.shape
    channels = features // (3 * num_heads)
    block = max(16, triton.next_power_of_2(num_tokens))
    constants = {"M": num_heads, "C": channels, "BLOCK": block, "num_warps": 8 if block == 128 else 4}
    return (num_prompts * num_heads,), channels**-0.5, constants


def forward(packed: Tensor, num_heads: int) -> Tensor:
    """Packed (B, T, 3H), contiguous, to mixed values (B, T, H)."""
    num_prompts, num_tokens, features = packed.shape
    grid, scale, constants = _settings(packed, num_heads)
    output = packed.new_empty(num_prompts, num_tokens, features // 3)
    _forward_kernel[grid](packed, output, num_tokens, scale, **constants)
    return output


def backward(gradient: Tensor, packed: Tensor, num_heads: int) -> Tensor:
    """The gradient of the packed projection (B, T, 3H), from that of the mixed values (B, T, H)."""
    grid, scale, constants = _settings(packed, num_heads)
    packed_gradient = torch.empty_like(packed)
    _backward_kernel[grid](gradient, packed, packed_gradient, packed.shape[1], scale, **constants)
    return packed_gradient
