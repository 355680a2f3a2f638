"""What every predictor does to its prompts: check them, widen them to float64, take them in chunks.

Why chunks: the working memory of a fit (a d×d matrix a prompt, say) then stays in the cache of a
CPU, and bounded however many prompts there are. Why batch-last: with prompts along the innermost
axis, one rank-one update of all prompts is a single element-wise operation over contiguous memory,
which on a CPU is several times faster than one small matrix product a prompt.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.tasks import Xs, Ys

ALLOWED_DTYPES = (torch.float32, torch.float64)

# Bytes of working memory in one chunk: what the cache of one CPU core holds, and enough to fill a
# GPU.
CPU_CHUNK_BYTES = 2**20
GPU_CHUNK_BYTES = 2**28


def check_prompts(xs: Tensor, ys: Tensor) -> None:
    """Refuse prompts that no predictor can answer.

    Values of xs are checked, and of all ys but the last: that one is never read, and may be
        anything.

    Raises:
        ValueError: on wrong dtypes, shapes or devices, or values that are not finite.
    """
    for name, tensor in (("xs", xs), ("ys", ys)):
        if tensor.dtype not in ALLOWED_DTYPES:
            raise ValueError(
                f"{name} is {tensor.dtype}; predictors take torch.float32 and torch.float64, since "
                "fewer "
                "digits cannot hold a fit: cast first, as in xs.float()"
            )
    if xs.ndim != 3 or ys.shape != xs.shape[:2] or 0 in xs.shape[1:]:
        raise ValueError(
            f"xs has shape {tuple(xs.shape)} and ys {tuple(ys.shape)}; allowed are (B, n, d) and "
            "(B, n) "
            "with n and d at least 1"
        )
    if xs.dtype != ys.dtype or xs.device != ys.device:
        raise ValueError(
            f"xs is {xs.dtype} on {xs.device}, ys {ys.dtype} on {ys.device}; both must agree"
        )
    for name, tensor in (("xs", xs), ("ys", ys[:, :-1])):
        if not _all_finite(tensor):
            raise ValueError(f"{name} holds values that are not finite (NaN or infinity)")


def check_queries(xs: Tensor, queries: Tensor) -> None:
    """Refuse queries (B, Q, d) that do not belong to the prompts xs (B, n, d).

    Raises:
        ValueError: on a wrong shape, dtype or device, or values that are not finite.
    """
    if queries.ndim != 3 or queries.shape[::2] != xs.shape[::2]:
        raise ValueError(
            f"queries have shape {tuple(queries.shape)}; allowed is (B, Q, d) with B={xs.shape[0]} "
            "and "
            f"d={xs.shape[2]}, those of xs"
        )
    if queries.dtype != xs.dtype or queries.device != xs.device:
        raise ValueError(
            f"queries are {queries.dtype} on {queries.device}, xs {xs.dtype} on {xs.device}; both "
            "must agree"
        )
    if not _all_finite(queries):
        raise ValueError("queries hold values that are not finite (NaN or infinity)")


def _all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite: their sum shows it fast, unless finite values overflow
    in it.
    """
    return bool(tensor.detach().sum().isfinite() or tensor.isfinite().all())


def widen(tensor: Tensor) -> Tensor:
    """Float64, in which all fits are computed: float32 input then loses digits at its ends only."""
    return tensor.to(torch.float64)


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd records what is done to these tensors, so that buffers must not be
    reused.
    """
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def prompts_per_chunk(values_per_prompt: int, device: torch.device) -> int:
    """How many prompts to fit at once when each needs this many float64 values of working
    memory.
    """
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
    return max(1, budget // (8 * values_per_prompt))


def in_chunks(fit: Callable[..., Tensor], values_per_prompt: int, *tensors: Tensor) -> Tensor:
    """Apply ``fit`` to tensors of shape (B, …), a chunk of prompts at a time, in float64.

    Returns:
        What ``fit`` returns, of shape (B, …), in the dtype of the first tensor.
    """
    size = prompts_per_chunk(values_per_prompt, tensors[0].device)
    chunks = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    dtype = tensors[0].dtype
    results = [fit(*map(widen, chunk)).to(dtype) for chunk in chunks]
    return results[0] if len(results) == 1 else torch.cat(results)


def in_chunks_batch_last(
    fit: Callable[..., Tensor], values_per_prompt: int, *tensors: Tensor
) -> Tensor:
    """As `in_chunks`, for a ``fit`` that takes and returns the prompts along the last axis, (…,
    B).
    """

    def fit_batch_first(*chunk: Tensor) -> Tensor:
        fitted = fit(*map(_batch_last, chunk))
        return _transpose(fitted.flatten(0, -2)).unflatten(1, fitted.shape[:-1])

    return in_chunks(fit_batch_first, values_per_prompt, *tensors)


def _batch_last(tensor: Float[Tensor, "batch ..."]) -> Float[Tensor, "... batch"]:
    return _transpose(tensor.flatten(1)).unflatten(0, tensor.shape[1:])


def _transpose(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    """Transposed and contiguous; of two axes only, for which PyTorch has a copy that minds the
    cache.
    """
    return matrix.T.contiguous()


def sums_before(terms: Float[Tensor, "batch seen ..."]) -> Float[Tensor, "batch example ..."]:
    """Sums of the first 0, 1, …, n−1 terms (B, n, …), of the n−1 terms that a prediction may have
    seen.

    The last example has no term: its label may be anything, also for the gradient.
    """
    nothing = terms.new_zeros(terms.shape[0], 1, *terms.shape[2:])
    return torch.cat((nothing, terms.cumsum(1)), dim=1)


def moments_before(xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
    """Xᵀy of every prefix (B, n, d)."""
    return sums_before(xs[:, :-1] * ys[:, :-1].unsqueeze(-1))


def grams_before(xs: Xs) -> Float[Tensor, "batch example dim dim"]:
    """XᵀX of every prefix (B, n, d, d)."""
    return sums_before(xs[:, :-1].unsqueeze(-1) * xs[:, :-1].unsqueeze(-2))


def normal_equations_batch_last(
    xs: Float[Tensor, "example dim batch"], ys: Float[Tensor, "example batch"]
) -> Iterator[tuple[Float[Tensor, "dim dim batch"], Float[Tensor, "dim batch"]]]:
    """XᵀX (d, d, B) and Xᵀy (d, B) of the first 0, 1, …, n−1 examples, one prefix after the other.

    Without a gradient both are overwritten by the next prefix's: what is kept must be new.
    """
    dim, batch = xs.shape[1:]
    gram, moment = xs.new_zeros(dim, dim, batch), xs.new_zeros(dim, batch)
    yield gram, moment
    reuse_buffers = not needs_grad(xs, ys)
    for x, y in zip(xs[:-1], ys[:-1], strict=True):
        gram = torch.addcmul(gram, x[:, None], x, out=gram if reuse_buffers else None)
        moment = torch.addcmul(moment, x, y, out=moment if reuse_buffers else None)
        yield gram, moment


def symmetric_product(
    matrix: Float[Tensor, "dim dim batch"], vector: Float[Tensor, "dim batch"]
) -> Float[Tensor, "dim batch"]:
    """Batch-last matrix times vector; the first axis is summed, which is the fastest."""
    return (matrix * vector[:, None]).sum(0)
