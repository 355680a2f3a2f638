"""Triton kernels for what stands between the matrix products of a residual branch: norm, GeLU,
sums.

All are bound by memory, so each reads and writes its tensors once: the norm adds the branch before
it to the residual stream on the way in, and the passes back leave, beside the gradient, its sums
over tokens, which are the gradients of biases and norms, as one row of partial sums a program.
Imported only where they are
used: on a GPU.

Shape letters: N tokens of all prompts, H width, U units, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of those tried on an H200 (N = 5,056, H = 512, U = 2,048), none gave a faster step (norms) or
# kernel (GeLU).
NUM_NORM_SUMS = 528
"""Programs of the norm's pass back, each with its own partial sums: four for every
multiprocessor.
"""
NUM_GELU_SUMS = 128
"""Programs along the tokens of GeLU's pass back, each with its own partial sums."""
NORM_TILE = 1024
"""Numbers that a program of the norms, of one warp, holds of each tensor at a time."""
GELU_TILE = (8, 128)
"""Tokens and units that a program of GeLU's pass back, of two warps, holds at a time."""


@triton.jit
def _normalize(hidden, H: tl.constexpr, epsilon):  # noqa: N803
    """Rows (R, H) minus their means, over their standard deviations; and the latter's inverse, (R,
    1).
    """
    centered = hidden - (tl.sum(hidden, axis=1) / H)[:, None]
    inverse = tl.rsqrt(tl.sum(centered * centered, axis=1) / H + epsilon)[:, None]
    return centered * inverse, inverse


@triton.jit
def _add_norm_kernel(
    stream,
    branch,
    branch_bias,
    scale,
    shift,
    new_stream,
    normed,
    num_tokens,
    epsilon,
    HAS_BRANCH: tl.constexpr,  # noqa: N803
    H: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, H)[None, :]
    inside, offset = token < num_tokens, token * H + column
    hidden = tl.load(stream + offset, mask=inside, other=0.0)
    if HAS_BRANCH:
        hidden += tl.load(branch + offset, mask=inside, other=0.0).to(tl.float32)
        hidden += tl.load(branch_bias + column).to(tl.float32)
        tl.store(new_stream + offset, hidden, mask=inside)
    unit, _ = _normalize(hidden, H, epsilon)
    result = unit * tl.load(scale + column) + tl.load(shift + column)
    tl.store(normed + offset, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm_backward_kernel(
    stream_gradient,
    normed_gradient,
    stream,
    scale,
    gradient,
    sums,
    num_tokens,
    epsilon,
    H: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    program, column = tl.program_id(0), tl.arange(0, H)[None, :]
    weight = tl.load(scale + column)
    scale_sum = tl.zeros((ROWS, H), tl.float32)
    shift_sum = tl.zeros((ROWS, H), tl.float32)
    bias_sum = tl.zeros((ROWS, H), tl.float32)
    for start in range(program * ROWS, num_tokens, tl.num_programs(0) * ROWS):
        token = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        inside, offset = token < num_tokens, token * H + column
        unit, inverse = _normalize(tl.load(stream + offset, mask=inside, other=0.0), H, epsilon)
        above = tl.load(normed_gradient + offset, mask=inside, other=0.0).to(tl.float32)
        scaled = above * weight
        along = (tl.sum(scaled * unit, axis=1) / H)[:, None]
        centered = scaled - (tl.sum(scaled, axis=1) / H)[:, None]
        result = tl.load(stream_gradient + offset, mask=inside, other=0.0).to(tl.float32)
        result += inverse * (centered - unit * along)
        tl.store(gradient + offset, result.to(gradient.dtype.element_ty), mask=inside)
        scale_sum += above * unit
        shift_sum += above
        bias_sum += tl.where(inside, result, 0.0)
    target = sums + program * 3 * H + tl.arange(0, H)
    tl.store(target, tl.sum(scale_sum, axis=0))
    tl.store(target + H, tl.sum(shift_sum, axis=0))
    tl.store(target + 2 * H, tl.sum(bias_sum, axis=0))


@triton.jit
def _gelu_parts(x):
    """The gate s(x) of GeLU(x) = x s(x) in its tanh form, and its argument's derivative."""
    inner = 1.5957691216057308 * x * (1 + 0.044715 * x * x)  # 2 sqrt(2/pi) (x + 0.044715 x^3)
    return 1 / (1 + tl.exp(-inner)), 1.5957691216057308 * (1 + 0.134145 * x * x)


@triton.jit
def _gelu_kernel(source, bias, target, num_numbers, num_units, BLOCK: tl.constexpr):  # noqa: N803
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < num_numbers
    x = tl.load(source + offset, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias + offset % num_units).to(tl.float32)
    gate, _ = _gelu_parts(x)
    tl.store(target + offset, (x * gate).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward_kernel(
    gradient,
    source,
    bias,
    target,
    sums,
    num_tokens,
    num_units,
    CHUNK: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    chunk = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    shift = tl.load(bias + column, mask=column < num_units, other=0.0).to(tl.float32)
    for start in range(0, CHUNK, ROWS):
        token = chunk * CHUNK + start + tl.arange(0, ROWS)[:, None]
        inside = (token < num_tokens) & (column < num_units)
        offset = token.to(tl.int64) * num_units + column
        x = tl.load(source + offset, mask=inside, other=0.0).to(tl.float32) + shift
        above = tl.load(gradient + offset, mask=inside, other=0.0).to(tl.float32)
        gate, slope = _gelu_parts(x)
        result = above * gate * (1 + x * (1 - gate) * slope)
        tl.store(target + offset, result.to(target.dtype.element_ty), mask=inside)
        total += result
    unit = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(sums + chunk * num_units + unit, tl.sum(total, axis=0), mask=unit < num_units)


@triton.jit
def _sum_rows_kernel(
    source,
    target,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    source += tl.program_id(1).to(tl.int64) * num_rows * num_columns
    target += tl.program_id(1) * num_columns
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, num_rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < num_rows) & (column[None, :] < num_columns)
        total += tl.load(source + row * num_columns + column[None, :], mask=inside, other=0.0)
    result = tl.sum(total, axis=0).to(target.dtype.element_ty)
    tl.store(target + column, result, mask=column < num_columns)


def add_norm(
    stream: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    epsilon: float,
    normed: Tensor,
) -> Tensor:
    """The stream (N, H), float32, with a branch (N, H) and its bias added.

    Its LayerNorm goes into ``normed``. Without a branch (None) the stream is returned as it is.
    """
    num_tokens, width = stream.shape
    new_stream = stream if branch is None else torch.empty_like(stream)
    rows = max(1, NORM_TILE // width)
    _add_norm_kernel[(triton.cdiv(num_tokens, rows),)](
        stream,
        branch,
        branch_bias,
        scale,
        shift,
        new_stream,
        normed,
        num_tokens,
        epsilon,
        HAS_BRANCH=branch is not None,
        H=width,
        ROWS=rows,
        num_warps=1,
    )
    return new_stream


def add_norm_backward(
    stream_gradient: Tensor,
    normed_gradient: Tensor,
    stream: Tensor,
    scale: Tensor,
    epsilon: float,
    sums: Tensor,
    gradient: Tensor,
) -> None:
    """The gradient (N, H) of the stream that `add_norm` normalised, into ``gradient``.

    Args:
        stream_gradient: what reaches the stream from behind the norm's branch, (N, H).
        normed_gradient: the gradient of the norm's result, (N, H).
        stream: what was normalised, (N, H), float32.
        scale: the norm's, (H).
        epsilon: the norm's.
        sums: (NUM_NORM_SUMS, 3H), float32, filled with partial sums: their sums are the gradients
            of the norm's scale and shift and of the branch's bias, side by side.
        gradient: (N, H), filled.
    """
    num_tokens, width = stream.shape
    rows = max(1, NORM_TILE // width)
    _add_norm_backward_kernel[(NUM_NORM_SUMS,)](
        stream_gradient,
        normed_gradient,
        stream,
        scale,
        gradient,
        sums,
        num_tokens,
        epsilon,
        H=width,
        ROWS=rows,
        num_warps=1,
    )


def gelu(source: Tensor, bias: Tensor, target: Tensor) -> None:
    """GeLU in its tanh form of (N, U) plus bias (U), into ``target``."""
    block = 2048
    _gelu_kernel[(triton.cdiv(source.numel(), block),)](
        source, bias, target, source.numel(), source.shape[1], BLOCK=block
    )


def gelu_backward(
    gradient: Tensor, source: Tensor, bias: Tensor, sums: Tensor, target: Tensor
) -> None:
    """The gradient (N, U) of GeLU's argument, into ``target``.

    Its sums over chunks of tokens go into ``sums``, (NUM_GELU_SUMS, U), float32: summed, the bias's
    gradient.
    """
    num_tokens, num_units = source.shape
    rows, columns = GELU_TILE
    _gelu_backward_kernel[(NUM_GELU_SUMS, triton.cdiv(num_units, columns))](
        gradient,
        source,
        bias,
        target,
        sums,
        num_tokens,
        num_units,
        CHUNK=rows * triton.cdiv(num_tokens, rows * NUM_GELU_SUMS),
        ROWS=rows,
        COLUMNS=columns,
        num_warps=2,
    )


def sum_rows(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums over P of (R, P, C), float32 and contiguous, as (R, C) in ``dtype``: always in the same
    order.
    """
    num_tables, num_rows, num_columns = source.shape
    target = source.new_empty(num_tables, num_columns, dtype=dtype)
    rows, columns = 32, 32
    _sum_rows_kernel[(triton.cdiv(num_columns, columns), num_tables)](
        source, target, num_rows, num_columns, ROWS=rows, COLUMNS=columns
    )
    return target
