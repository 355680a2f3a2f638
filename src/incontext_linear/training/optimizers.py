"""AdamW and Muon on flat vectors: few passes over memory, whatever the number of parameters.

Several learners of one shape can be updated together (`training.stacked`): every tensor then has
a leading dimension, one entry a learner, and norms and learning rates are each learner's own.

A model's parameters become views of three vectors (matrices of the blocks, their biases, the rest),
each with a float32 master copy. A step gathers the gradients into vectors of the same layout, clips
them by their joint norm, updates, and rounds the masters to what the model computes with, float32
or bfloat16. With
``compile`` the passes of each vector are fused into one kernel.

Muon (Jordan et al. 2024) replaces the momentum of each matrix by the nearest orthogonal one, found
by Newton–Schulz iterations, here over stacks of equal-shaped matrices; biases and the rest follow
AdamW.
"""

import math
import re
from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.learner.base import Network
from incontext_linear.training.config import TrainingConfig

ADAM_EPSILON = 1e-8
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x³ and x⁵ that grow small singular values fastest (Jordan et al. 2024)."""


class FlatParameters:
    """Parameters that are updated as one vector.

    Args:
        named: parameters by name; their data become views of `weights`.
        rounded: keep `weights` and the gradients in bfloat16, beside masters in full precision.
        moments: optimiser vectors to keep, by name.
        stack: leading dimensions of every parameter: () or (learners,).
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        rounded: bool,
        moments: tuple[str, ...],
        stack: tuple[int, ...] = (),
    ):
        self.named, self.stack = named, stack
        flat = [parameter.detach().reshape(*stack, -1) for parameter in named.values()]
        self.master: Float[Tensor, "*learner number"] = torch.cat(flat, dim=-1)
        self.weights = self.master.to(torch.bfloat16) if rounded else self.master
        self.gradient = torch.zeros_like(self.weights)
        self.moments = {name: torch.zeros_like(self.master) for name in moments}
        for name, view in self.split(self.weights).items():
            named[name].data = view

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a vector of this layout, one a parameter."""
        sizes = [math.prod(self._shape(parameter)) for parameter in self.named.values()]
        parts = flat.split(sizes, dim=-1)
        return {
            name: part.view(parameter.shape)
            for (name, parameter), part in zip(self.named.items(), parts, strict=True)
        }

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        """The shape that one learner's parameter has."""
        return parameter.shape[len(self.stack) :]

    def stacks(self, flat: Tensor) -> list[Float[Tensor, "*learner matrix rows columns"]]:
        """Views of a vector of matrices: neighbours of one shape together, packed projections
        apart.
        """
        shapes = []
        for name, parameter in self.named.items():
            rows, columns = self._shape(parameter)
            packed = (
                3 if "project_in" in name else 1
            )  # queries, keys and values are maps of their own
            shapes += packed * [(rows // packed, columns)]
        counted = [(shape, len(list(run))) for shape, run in groupby(shapes)]
        sizes = [count * rows * columns for (rows, columns), count in counted]
        return [
            part.view(*self.stack, count, *shape)
            for (shape, count), part in zip(counted, flat.split(sizes, dim=-1), strict=True)
        ]

    def gather_gradients(self) -> None:
        """Copy the parameters' gradients into the vector, but for those that lie there, and free
        them.
        """
        pairs = [
            (view, self.named[name].grad)
            for name, view in self.split(self.gradient).items()
            if self.named[name].grad.data_ptr() != view.data_ptr()
        ]
        if pairs:
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
        for parameter in self.named.values():
            parameter.grad = None


class FlatOptimizer:
    """Clipped AdamW, or Muon, over all parameters of a learner, or of each of several.

    Args:
        model: its parameters become views of flat vectors.
        training: which optimiser, and its settings.
        low_precision: keep the blocks' linear maps in bfloat16, beside float32 masters.
        compiled: fuse the update's passes with torch.compile.
        stack: leading dimensions of every parameter: () or (learners,).
    """

    def __init__(
        self,
        model: Network,
        training: TrainingConfig,
        low_precision: bool,
        compiled: bool,
        stack: tuple[int, ...] = (),
    ):
        self.training, self.num_steps = training, 0
        self.orthogonal = training.optimizer == "muon"
        adam = ("first_moment", "second_moment")
        self.groups = [
            FlatParameters(
                named,
                low_precision and kind != "rest",
                ("first_moment",) if self.orthogonal and kind == "matrices" else adam,
                stack,
            )
            for kind, named in _sorted_parameters(model).items()
            if named
        ]
        # Numbers that change every step live on the device, where a captured graph reads them.
        self._rate, self._step_size, self._correction = torch.zeros(
            3, *stack, device=next(model.parameters()).device
        )
        self._fused_update = (
            torch.compile(self._update, dynamic=False) if compiled else self._update
        )

    def set_rates(self, learning_rate: float | Sequence[float]) -> None:
        """Say what the next `step` uses: the learning rate (one for all, or one a learner), and
        Adam's corrections for the step's number.
        """
        self.num_steps += 1
        debias = 1 - self.training.beta1**self.num_steps
        if isinstance(learning_rate, int | float):
            self._rate.fill_(learning_rate)
            self._step_size.fill_(learning_rate / debias)
        else:
            self._rate.copy_(torch.tensor(learning_rate))
            self._step_size.copy_(torch.tensor([rate / debias for rate in learning_rate]))
        self._correction.fill_((1 - self.training.beta2**self.num_steps) ** -0.5)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters by their gradients, and free these."""
        for group in self.groups:
            group.gather_gradients()
        self._fused_update()

    def _update(self) -> None:
        norms = [
            torch.linalg.vector_norm(
                group.gradient,
                dim=-1,
                dtype=torch.promote_types(group.gradient.dtype, torch.float32),
            )
            for group in self.groups
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        scale = (self.training.gradient_clip / (norm + 1e-6)).clamp(max=1.0).unsqueeze(-1)
        for group in self.groups:
            gradient = group.gradient.to(group.master.dtype) * scale
            if self.training.weight_decay > 0:
                group.master.mul_(1 - self._rate.unsqueeze(-1) * self.training.weight_decay)
            if "second_moment" in group.moments:
                self._adamw(group, gradient)
            else:
                self._muon(group, gradient)
            if group.weights is not group.master:
                group.weights.copy_(group.master)

    def _adamw(self, group: FlatParameters, gradient: Tensor) -> None:
        first, second = group.moments["first_moment"], group.moments["second_moment"]
        first.lerp_(gradient, 1 - self.training.beta1)
        second.lerp_(gradient.square(), 1 - self.training.beta2)
        size, correction = self._step_size.unsqueeze(-1), self._correction.unsqueeze(-1)
        group.master.sub_(size * first / (second.sqrt() * correction + ADAM_EPSILON))

    def _muon(self, group: FlatParameters, gradient: Tensor) -> None:
        momentum = group.moments["first_moment"]
        momentum.lerp_(gradient, 1 - self.training.muon_momentum)
        ahead = gradient.lerp(momentum, self.training.muon_momentum)  # Nesterov
        rate = self._rate[..., None, None, None]
        for weights, direction in zip(group.stacks(group.master), group.stacks(ahead), strict=True):
            # The root mean square of an update is then about Adam's, so both share one learning
            # rate.
            size = 0.2 * max(direction.shape[-2:]) ** 0.5
            weights.sub_(rate * size * self._orthogonal(direction))

    def _orthogonal(
        self, stack: Float[Tensor, "*learner matrix rows columns"]
    ) -> Float[Tensor, "*learner matrix rows columns"]:
        """What stands for a stack's momentum; `benchmarks.variants` has others."""
        return orthogonalize(stack)

    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """Where the next `step` reads each parameter's gradient: one written there need not be
        copied.
        """
        return {
            group.named[name]: view
            for group in self.groups
            for name, view in group.split(group.gradient).items()
        }

    def reset(self) -> None:
        """Forget all steps taken."""
        self.num_steps = 0
        for tensor in self.state().values():
            tensor.zero_()

    def state(self) -> dict[str, Tensor]:
        """Moments as ``{"optimizer.first_moment.<parameter>": view}``."""
        return {
            f"optimizer.{moment}.{name}": view
            for group in self.groups
            for moment, flat in group.moments.items()
            for name, view in group.split(flat).items()
        }

    def load_state(self, saved: dict[str, Tensor], num_steps: int) -> None:
        """Go on from the saved moments and number of steps."""
        self.num_steps = num_steps
        for name, tensor in self.state().items():
            tensor.copy_(saved[name])

    def weights(self) -> dict[str, Tensor]:
        """All parameters in float32, by name: views of the masters."""
        return {
            name: view for group in self.groups for name, view in group.split(group.master).items()
        }


def _sorted_parameters(model: Network) -> dict[str, dict[str, nn.Parameter]]:
    """The matrices of the blocks' linear maps, kind by kind, so that equal shapes are neighbours;
    their biases; the rest, which is all where a network shows no blocks.
    """
    blocks = [block for block in getattr(model, "blocks", ()) if isinstance(block, nn.Module)]
    inside = {module for block in blocks for module in block.modules()}
    linear = {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if module in inside and isinstance(module, nn.Linear)
        for name, parameter in module.named_parameters()
    }
    kinds = sorted(linear, key=lambda name: ("mlp" in name, re.sub(r"\d+", "", name)))
    return {
        "matrices": {name: linear[name] for name in kinds if name.endswith("weight")},
        "biases": {name: linear[name] for name in kinds if name.endswith("bias")},
        "rest": {name: p for name, p in model.named_parameters() if name not in linear},
    }


def orthogonalize(
    matrices: Float[Tensor, "*learner matrix rows columns"],
) -> Float[Tensor, "*learner matrix rows columns"]:
    """Bring all singular values of each matrix near 1 (within about 0.7 to 1.2), by Newton–Schulz
    iterations.

    The products are computed in bfloat16 on a GPU.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    result = matrices.flatten(0, -3)
    result = result.mT if tall else result
    result = result / (torch.linalg.matrix_norm(result, keepdim=True) + 1e-7)
    result = result.to(torch.bfloat16 if matrices.is_cuda else matrices.dtype)
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = result @ result.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        result = torch.baddbmm(result, polynomial, result, beta=linear)
    return (result.mT if tall else result).to(matrices.dtype).reshape(matrices.shape)
