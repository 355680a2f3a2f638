"""The blocks of a learner on this project's own kernels: the training step's fast path on a GPU in
bfloat16.

Both halves of a block are one thing, a residual branch: add what the branch before has left to the
stream, normalise, map, mix (by attention over tokens, or by GeLU on each unit), map. So one loop
over branches serves both. What makes it faster than compiled blocks:

- The stream and the branch before it enter only as their sum, and so have one gradient, which
  travels in bfloat16; the stream itself stays in float32.
- Biases are added, and their gradients and the norms' are summed, by kernels that read the numbers
  anyway.
- Gradients of matrices are computed at the end, those of equal shape together, and written where
  the optimiser reads them. One alone is too small to fill a GPU: 512 × 512 is 16 tiles of 128², and
  an H200 has 132 multiprocessors.
- The last branch is computed on x-tokens alone, since predictions are read from nothing else.

Shape letters: B prompts, T tokens a prompt, N = B·T, H width, M heads, R branches;
a map has I inputs and O outputs.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from incontext_linear.learner.transformer import Block, Transformer
from incontext_linear.training.kernels.packed_attention import CHANNELS, MAX_TOKENS

MAX_WIDTH = 1024
NUM_DISTRIBUTED_PARTS = 4
"""Parts whose gradients are handed on as soon as they are there, where processes then share
them.
"""


def is_covered(model: Transformer) -> bool:
    """Whether the kernels cover this learner's shape (on a GPU, in bfloat16)."""
    if not model.config.is_plain or model.positions is None:
        return False
    width, num_heads = model.config.width, model.config.num_heads
    return (
        width <= MAX_WIDTH
        and width & (width - 1) == 0
        and width // num_heads in CHANNELS
        and len(model.positions) <= MAX_TOKENS
    )


class Branch(NamedTuple):
    """Parameters of one residual branch: norm, map in, map out."""

    scale: Tensor
    shift: Tensor
    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor


def branches(block: Block) -> tuple[Branch, Branch]:
    """A block's attention and its MLP."""
    layers = (
        (block.attention_norm, block.attention.project_in, block.attention.project_out),
        (block.mlp_norm, block.mlp_in, block.mlp_out),
    )
    return tuple(
        Branch(*(tensor for layer in three for tensor in layer.parameters())) for three in layers
    )


class FusedBlocks:
    """All blocks of a learner, as a function from the embedding to the x-tokens of the last stream.

    Args:
        blocks: their linear maps in bfloat16, their norms in float32, all on one GPU.
        gradients: where the gradients of the linear maps' matrices are to be written.
    """

    def __init__(self, blocks: nn.ModuleList, gradients: dict[nn.Parameter, Tensor]):
        self.blocks, self.gradients = blocks, gradients

    def __call__(self, hidden: Tensor) -> Tensor:
        """Embedding (B, T, H), float32, to the stream behind all blocks at the x-tokens, (B, n,
        H).
        """
        num_prompts, num_tokens, width = hidden.shape
        num_parts = min(NUM_DISTRIBUTED_PARTS, len(self.blocks)) if dist.is_initialized() else 1
        bounds = [len(self.blocks) * part // num_parts for part in range(num_parts + 1)]
        stream = hidden.reshape(-1, width)
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = self.blocks[start:stop]
            is_last = stop == len(self.blocks)
            parts = [branch for block in part for branch in branches(block)]
            targets = self._targets(parts[::2]), self._targets(parts[1::2])
            settings = (
                num_tokens,
                part[0].attention.num_heads,
                part[0].mlp_norm.eps,
                is_last,
                targets,
            )
            stream = _Branches.apply(
                stream, settings, *(tensor for each in parts for tensor in each)
            )
        return stream.view(num_prompts, -1, width)

    def _targets(self, alike: list[Branch]) -> list[Tensor]:
        """Where the gradients of the maps in and out of branches of one kind go, (R/2, O, I)
        each.
        """
        return [
            _neighbours([self.gradients[weight] for weight in weights])
            for weights in ([each.weight_in for each in alike], [each.weight_out for each in alike])
        ]


class _Branches(torch.autograd.Function):
    """The stream (N, H), float32, through branches, by turns attention and MLP."""

    @staticmethod
    def forward(ctx, stream, settings, *parameters):
        from incontext_linear.training.kernels import attention  # need Triton
        from incontext_linear.training.kernels import branches as branch_kernels

        num_tokens, num_heads, epsilon, is_last, _ = ctx.settings = settings
        parts, (num_rows, width) = _grouped(parameters), stream.shape
        num_last_rows = num_rows // num_tokens * ((num_tokens + 1) // 2) if is_last else num_rows
        shape = len(parts) // 2, num_rows, num_last_rows, parts[0].weight_in.dtype
        normed = _stacks(stream, *shape, width, width)
        mixed = _stacks(stream, *shape, width, len(parts[1].bias_in))
        saved, branch, bias = [], None, None
        for index, each in enumerate(parts):
            if is_last and index == len(parts) - 1:
                stream, branch = (_x_tokens(tensor, num_tokens) for tensor in (stream, branch))
            normed_here, mixed_here = (
                _of_branch(stacks, index, len(stream)) for stacks in (normed, mixed)
            )
            stream = branch_kernels.add_norm(
                stream, branch, bias, each.scale, each.shift, epsilon, normed_here
            )
            inner = normed_here @ each.weight_in.mT
            if index % 2:
                branch_kernels.gelu(inner, each.bias_in, mixed_here)
            else:
                packed = inner.view(-1, num_tokens, 3 * width)
                attention.forward(packed, num_heads, mixed_here, each.bias_in)
            saved += stream, inner
            branch, bias = mixed_here @ each.weight_out.mT, each.bias_out
        ctx.save_for_backward(*normed, *mixed, *saved, *parameters)
        return stream + branch + bias

    @staticmethod
    def backward(ctx, gradient):
        from incontext_linear.training.kernels import attention
        from incontext_linear.training.kernels import branches as branch_kernels

        num_tokens, num_heads, epsilon, _, targets = ctx.settings
        normed, mixed, saved = ctx.saved_tensors[:2], ctx.saved_tensors[2:4], ctx.saved_tensors[4:]
        (num_blocks, num_rows, width), dtype = normed[0].shape, normed[0].dtype
        num_branches, num_prompts = 2 * num_blocks, num_rows // num_tokens
        activations, parts = saved[: 2 * num_branches], _grouped(saved[2 * num_branches :])
        num_units = len(parts[1].bias_in)
        shape = num_blocks, num_rows, len(gradient), dtype
        inner_gradients = _stacks(gradient, *shape, 3 * width, num_units)
        branch_gradients = _stacks(gradient, *shape, width, width)
        # What the kernels sum over tokens: a row a program, all rows summed at the end.
        norm_sums = gradient.new_empty(num_branches, branch_kernels.NUM_NORM_SUMS, 3 * width)
        attention_sums = gradient.new_empty(num_blocks, num_prompts, 3 * width)
        gelu_sums = gradient.new_empty(num_blocks, branch_kernels.NUM_GELU_SUMS, num_units)

        gradients = [{} for _ in parts]
        gradients[-1]["bias_out"] = gradient.sum(0).to(dtype)
        gradient = _of_branch(branch_gradients, num_branches - 1, len(gradient)).copy_(gradient)
        for index in reversed(range(num_branches)):
            each, (stream, inner) = parts[index], activations[2 * index : 2 * index + 2]
            mixed_gradient = gradient @ each.weight_out
            inner_gradient = _of_branch(inner_gradients, index, len(stream))
            if index % 2:
                branch_kernels.gelu_backward(
                    mixed_gradient, inner, each.bias_in, gelu_sums[index // 2], inner_gradient
                )
            else:
                attention.backward(
                    mixed_gradient,
                    inner.view(num_prompts, num_tokens, -1),
                    num_heads,
                    inner_gradient,
                    each.bias_in,
                    attention_sums[index // 2],
                )
            next_gradient = (
                _of_branch(branch_gradients, index - 1, num_rows)
                if index
                else torch.empty_like(gradient)
            )
            of_rows = next_gradient if len(stream) == num_rows else torch.empty_like(gradient)
            branch_kernels.add_norm_backward(
                gradient,
                inner_gradient @ each.weight_in,
                stream,
                each.scale,
                epsilon,
                norm_sums[index],
                of_rows,
            )
            if len(stream) < num_rows:
                _from_x_tokens(of_rows, next_gradient, num_tokens)
            gradient = next_gradient

        for kind, (target_in, target_out) in enumerate(targets):
            torch.bmm(inner_gradients[kind].mT, normed[kind], out=target_in)
            torch.bmm(branch_gradients[kind].mT, mixed[kind], out=target_out)
        of_norms = branch_kernels.sum_rows(norm_sums, torch.float32).view(num_branches, 3, width)
        of_branches = of_norms[:, 2].to(dtype)
        of_inner = [branch_kernels.sum_rows(sums, dtype) for sums in (attention_sums, gelu_sums)]
        for index, row in enumerate(gradients):
            kind, block = index % 2, index // 2
            target_in, target_out = targets[kind]
            row |= {"scale": of_norms[index, 0], "shift": of_norms[index, 1]}
            # Fresh views of where the optimiser reads: autograd takes them as they are, without a
            # copy.
            row |= {"weight_in": target_in[block], "weight_out": target_out[block]}
            row["bias_in"] = of_inner[kind][block]
            if index:
                gradients[index - 1]["bias_out"] = of_branches[index]
        return gradient.float(), None, *(tensor for row in gradients for tensor in Branch(**row))


def _neighbours(tensors: list[Tensor]) -> Tensor:
    """Equal tensors that lie side by side in memory, as one with a new first dimension."""
    first = tensors[0]
    stack = first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))
    if [row.data_ptr() for row in stack] != [tensor.data_ptr() for tensor in tensors]:
        raise ValueError(
            "the gradients of equal matrices must lie side by side, in the blocks' order"
        )
    return stack


def _stacks(
    like: Tensor,
    num_blocks: int,
    num_rows: int,
    num_last_rows: int,
    dtype: torch.dtype,
    *sizes: int,
) -> list[Tensor]:
    """Room for a matrix (N, I) a branch, attention's and the MLPs' apart, (R/2, N, I) each.

    The rows that the last branch does not have are zero, so that they add nothing to a product.
    """
    stacks = [like.new_empty(num_blocks, num_rows, size, dtype=dtype) for size in sizes]
    stacks[-1][-1, num_last_rows:] = 0
    return stacks


def _of_branch(stacks: list[Tensor], index: int, num_rows: int) -> Tensor:
    return stacks[index % 2][index // 2, :num_rows]


def _grouped(parameters: tuple[Tensor, ...]) -> list[Branch]:
    size = len(Branch._fields)
    return [Branch(*parameters[start : start + size]) for start in range(0, len(parameters), size)]


def _x_tokens(tensor: Tensor, num_tokens: int) -> Tensor:
    """Rows of x-tokens, (B·n, H), out of those of all tokens, (B·T, H)."""
    width = tensor.shape[-1]
    return tensor.view(-1, num_tokens, width)[:, ::2].reshape(-1, width)


def _from_x_tokens(tensor: Tensor, target: Tensor, num_tokens: int) -> None:
    """Rows of all tokens, those of y-tokens zero, into ``target``: the gradient of `_x_tokens`."""
    width = tensor.shape[-1]
    target.zero_().view(-1, num_tokens, width)[:, ::2] = tensor.view(
        -1, (num_tokens + 1) // 2, width
    )
