"""Triton kernels for causal attention over at most 128 tokens, in the layout of the packed
projection.

One program holds one head of one prompt: its first 64 tokens as one block, the rest, if any, as
another of as few as hold it, so that a prompt of 79 tokens costs 64² + 16·80 scores and not 128².
The backward pass computes the attention matrix again from queries and keys, so the forward pass
keeps nothing but its input.
Imported only where it is used: on a GPU.

Shape letters: B prompts, T tokens, M heads, C channels a head, H = M·C.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 64
NUM_WARPS = 4
"""Of those tried on an H200 (4, 8, 16), the fastest there and back together."""


@triton.jit
def _load(packed, bias, inside, HAS_BIAS: tl.constexpr):  # noqa: N803
    """One head's queries, keys or values, (tokens, C), rounded to their own precision after the
    bias.
    """
    values = tl.load(packed, mask=inside, other=0.0)
    if HAS_BIAS:
        shift = tl.where(inside, tl.load(bias).to(tl.float32), 0.0)
        values = (values.to(tl.float32) + shift).to(packed.dtype.element_ty)
    return values


@triton.jit
def _load_head(packed, bias, inside, H: tl.constexpr, HAS_BIAS: tl.constexpr):  # noqa: N803
    """Queries, keys and values: in the packed projection H numbers apart."""
    query = _load(packed, bias, inside, HAS_BIAS)
    key = _load(packed + H, bias + H, inside, HAS_BIAS)
    value = _load(packed + 2 * H, bias + 2 * H, inside, HAS_BIAS)
    return query, key, value


@triton.jit
def _scores(query, key, scale, CAUSAL: tl.constexpr):  # noqa: N803
    """Scores as powers of two, (queries, keys), float32; causal: of queries and keys at the same
    tokens.
    """
    scores = tl.dot(query, tl.trans(key)) * (scale * 1.4426950408889634)
    if CAUSAL:
        row, column = tl.arange(0, query.shape[0])[:, None], tl.arange(0, key.shape[0])[None, :]
        scores = tl.where(column <= row, scores, float("-inf"))
    return scores


@triton.jit
def _own_weights(query, key, scale):
    """Causal softmax among the same tokens; rows beyond the prompt hold harmless finite numbers."""
    scores = _scores(query, key, scale, True)
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _later_weights(query, key_before, key, scale):
    """Softmax over all tokens before and causally over the queries' own, as two matrices."""
    before, own = _scores(query, key_before, scale, False), _scores(query, key, scale, True)
    largest = tl.maximum(tl.max(before, axis=1), tl.max(own, axis=1))[:, None]
    before, own = tl.exp2(before - largest), tl.exp2(own - largest)
    total = (tl.sum(before, axis=1) + tl.sum(own, axis=1))[:, None]
    return before / total, own / total


@triton.jit
def _forward_kernel(
    packed,
    bias,
    output,
    num_tokens,
    scale,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    FIRST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
):
    prompt, head = tl.program_id(0).to(tl.int64) // M, tl.program_id(0) % M
    token, channel = tl.arange(0, FIRST)[:, None], tl.arange(0, C)[None, :]
    source = packed + prompt * num_tokens * 3 * M * C + head * C + channel
    target = output + prompt * num_tokens * M * C + head * C + channel
    shift, inside, row = bias + head * C + channel, token < num_tokens, token * 3 * M * C
    query, key, value = _load_head(source + row, shift, inside, M * C, HAS_BIAS)
    mixed = tl.dot(_own_weights(query, key, scale).to(value.dtype), value)
    tl.store(target + token * M * C, mixed.to(value.dtype), mask=inside)
    if REST > 0:
        token = FIRST + tl.arange(0, REST)[:, None]
        inside, row = token < num_tokens, token * 3 * M * C
        query, later_key, later_value = _load_head(source + row, shift, inside, M * C, HAS_BIAS)
        before, own = _later_weights(query, key, later_key, scale)
        mixed = tl.dot(before.to(value.dtype), value) + tl.dot(own.to(value.dtype), later_value)
        tl.store(target + token * M * C, mixed.to(value.dtype), mask=inside)


@triton.jit
def _score_gradient(weights, weight_gradient, mean, scale):
    return weights * (weight_gradient - mean) * scale


@triton.jit
def _backward_kernel(
    gradient,
    packed,
    bias,
    packed_gradient,
    sums,
    num_tokens,
    scale,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    FIRST: tl.constexpr,  # noqa: N803
    REST: tl.constexpr,  # noqa: N803
):
    # Tokens beyond the prompt have no gradient, so that sums over a block are sums over the prompt.
    prompt, head = tl.program_id(0).to(tl.int64) // M, tl.program_id(0) % M
    token, channel = tl.arange(0, FIRST)[:, None], tl.arange(0, C)[None, :]
    here = prompt * num_tokens * 3 * M * C + head * C + channel
    source, target = packed + here, packed_gradient + here
    above = gradient + prompt * num_tokens * M * C + head * C + channel
    shift, inside, row = bias + head * C + channel, token < num_tokens, token * 3 * M * C
    query, key, value = _load_head(source + row, shift, inside, M * C, HAS_BIAS)
    upstream = tl.load(above + token * M * C, mask=inside, other=0.0)

    weights = _own_weights(query, key, scale)
    value_gradient = tl.dot(tl.trans(weights.to(value.dtype)), upstream)
    weight_gradient = tl.dot(upstream, tl.trans(value))
    mean = tl.sum(weights * weight_gradient, axis=1)[:, None]
    score_gradient = _score_gradient(weights, weight_gradient, mean, scale).to(value.dtype)
    query_gradient = tl.dot(score_gradient, key)
    tl.store(target + row, query_gradient.to(value.dtype), mask=inside)
    query_sum = tl.sum(query_gradient, axis=0)
    key_gradient = tl.dot(tl.trans(score_gradient), query)
    key_sum, value_sum = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)

    if REST > 0:
        later = FIRST + tl.arange(0, REST)[:, None]
        within, later_row = later < num_tokens, later * 3 * M * C
        query, later_key, later_value = _load_head(
            source + later_row, shift, within, M * C, HAS_BIAS
        )
        upstream = tl.load(above + later * M * C, mask=within, other=0.0)
        before, own = _later_weights(query, key, later_key, scale)
        value_gradient += tl.dot(tl.trans(before.to(value.dtype)), upstream)
        later_value_gradient = tl.dot(tl.trans(own.to(value.dtype)), upstream)
        before_gradient = tl.dot(upstream, tl.trans(value))
        own_gradient = tl.dot(upstream, tl.trans(later_value))
        mean = (tl.sum(before * before_gradient, axis=1) + tl.sum(own * own_gradient, axis=1))[
            :, None
        ]
        before_score = _score_gradient(before, before_gradient, mean, scale).to(value.dtype)
        own_score = _score_gradient(own, own_gradient, mean, scale).to(value.dtype)
        query_gradient = tl.dot(before_score, key) + tl.dot(own_score, later_key)
        key_gradient += tl.dot(tl.trans(before_score), query)
        later_key_gradient = tl.dot(tl.trans(own_score), query)
        tl.store(target + later_row, query_gradient.to(value.dtype), mask=within)
        tl.store(target + later_row + M * C, later_key_gradient.to(value.dtype), mask=within)
        tl.store(target + later_row + 2 * M * C, later_value_gradient.to(value.dtype), mask=within)
        query_sum += tl.sum(query_gradient, axis=0)
        key_sum += tl.sum(later_key_gradient, axis=0)
        value_sum += tl.sum(later_value_gradient, axis=0)

    tl.store(target + row + M * C, key_gradient.to(value.dtype), mask=inside)
    tl.store(target + row + 2 * M * C, value_gradient.to(value.dtype), mask=inside)
    total = sums + prompt * 3 * M * C + head * C + tl.arange(0, C)
    tl.store(total, query_sum)
    tl.store(total + M * C, key_sum + tl.sum(key_gradient, axis=0))
    tl.store(total + 2 * M * C, value_sum + tl.sum(value_gradient, axis=0))


def _settings(packed: Tensor, num_heads: int) -> tuple[tuple[int], float, dict[str, int]]:
    """Grid, score scale and compile-time constants."""
    num_prompts, num_tokens, features = packed.shape
    channels = features // (3 * num_heads)
    first = min(MAX_BLOCK, max(16, triton.next_power_of_2(num_tokens)))
    rest = max(16, triton.next_power_of_2(num_tokens - first)) if num_tokens > first else 0
    constants = {
        "M": num_heads,
        "C": channels,
        "FIRST": first,
        "REST": rest,
        "num_warps": NUM_WARPS,
    }
    return (num_prompts * num_heads,), channels**-0.5, constants


def forward(packed: Tensor, num_heads: int, output: Tensor, bias: Tensor | None = None) -> None:
    """Packed (B, T, 3H), contiguous, plus a bias (3H), to mixed values (B, T, H), into
    ``output``.
    """
    grid, scale, constants = _settings(packed, num_heads)
    _forward_kernel[grid](
        packed,
        packed if bias is None else bias,
        output,
        packed.shape[1],
        scale,
        HAS_BIAS=bias is not None,
        **constants,
    )


def backward(
    gradient: Tensor,
    packed: Tensor,
    num_heads: int,
    packed_gradient: Tensor,
    bias: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """The gradient of the packed projection (B, T, 3H), from that of the mixed values (B, T, H).

    It goes into ``packed_gradient``, and its sums over each prompt's tokens into ``sums``, (B, 3H),
    float32: summed over B, the bias's gradient.
    """
    num_prompts, num_tokens, features = packed.shape
    grid, scale, constants = _settings(packed, num_heads)
    if sums is None:
        sums = packed.new_empty(num_prompts, features, dtype=torch.float32)
    _backward_kernel[grid](
        gradient,
        packed,
        packed if bias is None else bias,
        packed_gradient,
        sums,
        num_tokens,
        scale,
        HAS_BIAS=bias is not None,
        **constants,
    )
