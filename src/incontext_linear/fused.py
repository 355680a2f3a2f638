"""The blocks of a learner on this project's own kernels: the training step's fast path on a GPU in bfloat16.

Both halves of a block are one thing, a residual branch: add what the branch before has left to the stream,
normalise, map, mix (by attention over tokens, or by GeLU on each unit), map. So one loop over branches
serves both. What makes it faster than compiled blocks:

- The stream and the branch before it enter only as their sum, and so have one gradient, which travels in
  bfloat16; the stream itself stays in float32.
- Biases are added, and their gradients and the norms' are summed, by kernels that read the numbers anyway.
- Gradients of matrices are written where the optimiser reads them.
- The last branch is computed on x-tokens alone, since predictions are read from nothing else.

Shape letters: B prompts, T tokens a prompt, N = B·T, H width, M heads, R branches.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from incontext_linear.attention import FUSED_CHANNELS, MAX_FUSED_TOKENS
from incontext_linear.transformer import Block, Transformer

MAX_WIDTH = 1024
NUM_DISTRIBUTED_PARTS = 4
"""Parts whose gradients are handed on as soon as they are there, where processes then share them."""


def is_covered(model: Transformer) -> bool:
    """Whether the kernels cover this learner's shape (on a GPU, in bfloat16)."""
    width, num_heads = model.config.width, model.config.num_heads
    return (
        width <= MAX_WIDTH
        and width & (width - 1) == 0
        and width // num_heads in FUSED_CHANNELS
        and len(model.positions) <= MAX_FUSED_TOKENS
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
    return tuple(Branch(*(tensor for layer in three for tensor in layer.parameters())) for three in layers)


class FusedBlocks:
    """All blocks of a learner, as a function from the embedding to the x-tokens of the last stream.

    Args:
        blocks: their linear maps in bfloat16, their norms in float32, all on one GPU.
        gradients: where the gradients of the linear maps' matrices are to be written.
    """

    def __init__(self, blocks: nn.ModuleList, gradients: dict[nn.Parameter, Tensor]):
        self.blocks, self.gradients = blocks, gradients

    def __call__(self, hidden: Tensor) -> Tensor:
        """Embedding (B, T, H), float32, to the stream behind all blocks at the x-tokens, (B, n, H)."""
        num_prompts, num_tokens, width = hidden.shape
        num_parts = min(NUM_DISTRIBUTED_PARTS, len(self.blocks)) if dist.is_initialized() else 1
        bounds = [len(self.blocks) * part // num_parts for part in range(num_parts + 1)]
        stream = hidden.reshape(-1, width)
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = self.blocks[start:stop]
            is_last = stop == len(self.blocks)
            parts = [branch for block in part for branch in branches(block)]
            targets = [(self.gradients[each.weight_in], self.gradients[each.weight_out]) for each in parts]
            settings = num_tokens, part[0].attention.num_heads, part[0].mlp_norm.eps, is_last, targets
            stream = _Branches.apply(stream, settings, *(tensor for each in parts for tensor in each))
        return stream.view(num_prompts, -1, width)


class _Branches(torch.autograd.Function):
    """The stream (N, H), float32, through branches, by turns attention and MLP."""

    @staticmethod
    def forward(ctx, stream, settings, *parameters):
        from incontext_linear import attention_kernels, branch_kernels  # need Triton

        num_tokens, num_heads, epsilon, is_last, _ = ctx.settings = settings
        width, saved, branch, bias = stream.shape[1], [], None, None
        for index, each in enumerate(_grouped(parameters)):
            if is_last and index == len(parameters) // len(each) - 1:
                stream, branch = (_x_tokens(tensor, num_tokens) for tensor in (stream, branch))
            dtype = each.weight_in.dtype
            stream, normed = branch_kernels.add_norm(
                stream, branch, bias, each.scale, each.shift, epsilon, dtype
            )
            inner = normed @ each.weight_in.mT
            if index % 2:
                mixed = branch_kernels.gelu(inner, each.bias_in)
            else:
                packed = inner.view(-1, num_tokens, 3 * width)
                mixed = attention_kernels.forward(packed, num_heads, each.bias_in).view(-1, width)
            saved += stream, normed, inner, mixed
            branch, bias = mixed @ each.weight_out.mT, each.bias_out
        ctx.save_for_backward(*saved, *parameters)
        return stream + branch + bias

    @staticmethod
    def backward(ctx, gradient):
        from incontext_linear import attention_kernels, branch_kernels

        num_tokens, num_heads, epsilon, is_last, targets = ctx.settings
        saved = ctx.saved_tensors
        num_branches = len(saved) // (4 + len(Branch._fields))
        activations, parameters = saved[: 4 * num_branches], _grouped(saved[4 * num_branches :])
        dtype, width, num_units = parameters[0].weight_in.dtype, gradient.shape[1], len(parameters[1].bias_in)
        num_prompts = len(activations[0]) // num_tokens
        # What the kernels sum over tokens: a row a program, all rows summed at the end.
        norm_sums = gradient.new_empty(num_branches, branch_kernels.NUM_NORM_SUMS, 3 * width)
        attention_sums = gradient.new_empty(num_branches // 2, num_prompts, 3 * width)
        gelu_sums = gradient.new_empty(num_branches // 2, branch_kernels.NUM_GELU_SUMS, num_units)

        gradients = [{} for _ in parameters]
        gradients[-1]["bias_out"] = gradient.sum(0).to(dtype)
        gradient = gradient.to(dtype).contiguous()
        for index in reversed(range(num_branches)):
            each = parameters[index]
            stream, normed, inner, mixed = activations[4 * index : 4 * index + 4]
            # Fresh views of where the optimiser reads: autograd takes them as they are, without a copy.
            in_target, out_target = (target.view_as(target) for target in targets[index])
            gradients[index]["weight_out"] = torch.mm(gradient.mT, mixed, out=out_target)
            mixed_gradient = gradient @ each.weight_out
            if index % 2:
                inner_gradient = branch_kernels.gelu_backward(
                    mixed_gradient, inner, each.bias_in, gelu_sums[index // 2]
                )
            else:
                per_prompt = (tensor.view(num_prompts, num_tokens, -1) for tensor in (mixed_gradient, inner))
                inner_gradient = attention_kernels.backward(
                    *per_prompt, num_heads, each.bias_in, attention_sums[index // 2]
                ).view(inner.shape)
            gradients[index]["weight_in"] = torch.mm(inner_gradient.mT, normed, out=in_target)
            gradient = branch_kernels.add_norm_backward(
                gradient, inner_gradient @ each.weight_in, stream, each.scale, epsilon, norm_sums[index]
            )
            if is_last and index == num_branches - 1:
                gradient = _from_x_tokens(gradient, num_tokens)

        of_norms = branch_kernels.sum_rows(norm_sums, torch.float32).view(num_branches, 3, width)
        of_branches = of_norms[:, 2].to(dtype)
        of_inner = (branch_kernels.sum_rows(sums, dtype) for sums in (attention_sums, gelu_sums))
        of_inner = [row for pair in zip(*of_inner, strict=True) for row in pair]
        for index, row in enumerate(gradients):
            row |= {"scale": of_norms[index, 0], "shift": of_norms[index, 1], "bias_in": of_inner[index]}
            if index:
                gradients[index - 1]["bias_out"] = of_branches[index]
        return gradient.float(), None, *(tensor for row in gradients for tensor in Branch(**row))


def _grouped(parameters: tuple[Tensor, ...]) -> list[Branch]:
    size = len(Branch._fields)
    return [Branch(*parameters[start : start + size]) for start in range(0, len(parameters), size)]


def _x_tokens(tensor: Tensor, num_tokens: int) -> Tensor:
    """Rows of x-tokens, (B·n, H), out of those of all tokens, (B·T, H)."""
    width = tensor.shape[-1]
    return tensor.view(-1, num_tokens, width)[:, ::2].reshape(-1, width)


def _from_x_tokens(tensor: Tensor, num_tokens: int) -> Tensor:
    """Rows of all tokens, those of y-tokens zero: the gradient of `_x_tokens`."""
    per_prompt = tensor.view(-1, (num_tokens + 1) // 2, tensor.shape[-1])
    result = tensor.new_zeros(len(per_prompt), num_tokens, tensor.shape[-1])
    result[:, ::2] = per_prompt
    return result.flatten(0, 1)
