"""Many learners of one shape, trained in one step.

Whatever `torch.vmap` can map is stacked: every architecture that ships but PyTorch's own GRU and
LSTM and the transformer on joint tokens, whose kernels it cannot (`can_be_stacked`).

A small learner leaves a GPU idle: its kernels are over before the next one is launched. Here the
parameters of S learners are stacked (`torch.func.stack_module_state`), the forward pass is mapped
over the stack (`torch.vmap`), and one backward pass, one clipping and one update serve all. The
learners may differ in seed, task (noise, pool, priors) and learning rate; everything that decides
shapes, and every other setting of the optimiser, is shared.

Each learner is what it would be alone, to rounding: it sees the prompts of its own seed, and its
gradient, norm, moments and learning rate are its own. Each has its own history, its own check for
divergence and its own checkpoints, which are those of a run alone. One that diverges is frozen
(weights of 0, learning rate 0), since dropping it would change the shapes that the others' sums
depend on; it is reported, and the others go on.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from incontext_linear.config import LearnerConfig, ModelConfig
from incontext_linear.learner import delta, linear_attention, looped
from incontext_linear.learner.attention import causal_attention, plain_attention
from incontext_linear.learner.base import Network
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Attention, Transformer
from incontext_linear.tasks import Prompts
from incontext_linear.training.checkpoints import Checkpoint, CheckpointStore
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.loop import (
    Progress,
    TrainingDivergedError,
    TrainingRun,
    say_divergence,
)
from incontext_linear.training.recipe import Recipe
from incontext_linear.training.step import TrainingStep

logger = logging.getLogger(__name__)

DIVERGED = "diverged_beside"
"""The entry of a checkpoint's description that says which learners of its stack had diverged."""


MAPPABLE_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""PyTorch's attention kernels that `torch.vmap` gets right on a GPU (torch 2.11, H200). Of the
others, cuDNN's fails where it is compiled and gives gradients that are no numbers where it is not,
and the memory-efficient one refuses the alignment of what vmap hands to its backward pass.
"""

SHORT = 32
"""Tokens up to which attention by matrix products is as fast on a GPU, or faster."""


STACKABLE = (
    ModelConfig,
    linear_attention.LinearAttentionConfig,
    looped.LoopedConfig,
    delta.DeltaConfig,
)
"""Configs of the architectures that can be stacked; of no class that inherits from them."""


def can_be_stacked(model: LearnerConfig) -> bool:
    """Whether learners of this architecture can be trained together."""
    return type(model) in STACKABLE


def stack_key(recipe: Recipe) -> tuple[Any, ...]:
    """What learners of one stack must share: equal keys, and they can be trained together."""
    task, training = recipe.task, recipe.training.model_copy(update={"learning_rate": 1.0})
    return task.dim, task.num_examples, recipe.model, training


def stack_learners(learners: Sequence[Network]) -> Network:
    """A network whose parameters are those of all learners, with a leading dimension.

    It cannot be called itself: `StackedForward` or `MappedForward` map over it.
    """
    stack = copy.deepcopy(learners[0])
    parameters, _ = stack_module_state([*learners])
    for name, stacked in parameters.items():
        path, _, leaf = name.rpartition(".")
        setattr(stack.get_submodule(path), leaf, nn.Parameter(stacked.detach()))
    return stack


class _Method(nn.Module):
    """A method of a module in the form of a module, which `functional_call` asks for."""

    def __init__(self, owner: nn.Module, method: str, *parts: str):
        super().__init__()
        self.owner, self._method, self._parts = owner, method, parts

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.owner, self._method)(*inputs)

    def parts(self) -> dict[str, Tensor]:
        """The parameters that the method uses."""
        used = tuple(f"owner.{part}" for part in self._parts)
        return {name: own for name, own in _parameters(self).items() if name.startswith(used)}


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in module.named_parameters()}  # noqa: C416


def _mapped(module: nn.Module, parameters: dict[str, Tensor], *inputs: Tensor, **fixed: Any):
    """Call a module once for every entry of the stack, in one batched pass."""

    def call(own: dict[str, Tensor], *own_inputs: Tensor) -> Tensor:
        return functional_call(module, own, own_inputs, fixed)

    return torch.vmap(call)(parameters, *inputs)


class MappedForward:
    """The forward pass of a stack: xs (S, B, n, d), ys (S, B, n) -> predictions (S, B, n).

    Args:
        stack: as `stack_learners` makes it.
        compiled: compile what is mapped.
    """

    def __init__(self, stack: Network, compiled: bool):
        self._stack = stack
        self._map = torch.compile(_mapped, dynamic=False) if compiled else _mapped
        _use_mappable_attention(stack)

    @sdpa_kernel(MAPPABLE_ATTENTION)
    def __call__(self, xs: Tensor, ys: Tensor) -> Float[Tensor, "learner batch example"]:
        """Predictions of every learner on its own prompts."""
        return self._map(self._stack, _parameters(self._stack), xs, ys)


def _use_mappable_attention(stack: Network) -> None:
    for module in stack.modules():
        if isinstance(module, Attention):
            module.mix = _mappable_attention


def _mappable_attention(packed: Tensor, num_heads: int) -> Tensor:
    """On a CPU `torch.vmap` would go through PyTorch's fused attention one learner at a time."""
    plain = packed.device.type == "cpu" or packed.shape[-2] <= SHORT
    return (plain_attention if plain else causal_attention)(packed, num_heads)


class StackedForward:
    """`MappedForward` of the paper's transformer, whose last layer needs no y-tokens.

    Args:
        stack: as `stack_learners` makes it.
        compiled: compile what is mapped; all layers share one compiled block.
    """

    def __init__(self, stack: Transformer, compiled: bool):
        self._blocks = stack.blocks
        self._embed = _Method(stack, "embed", "read_in", "positions")
        self._read = _Method(stack, "read", "final_norm", "read_out")
        self._map = torch.compile(_mapped, dynamic=False) if compiled else _mapped
        _use_mappable_attention(stack)

    @sdpa_kernel(MAPPABLE_ATTENTION)
    def __call__(self, xs: Tensor, ys: Tensor) -> Float[Tensor, "learner batch example"]:
        """Predictions of every learner on its own prompts."""
        hidden = self._map(self._embed, self._embed.parts(), xs, ys)
        *blocks, last = self._blocks
        for block in blocks:
            hidden = self._map(block, _parameters(block), hidden)
        x_tokens = slice(None, None, 2)
        hidden = self._map(last, _parameters(last), hidden, tokens=x_tokens)
        return self._map(self._read, self._read.parts(), hidden)


class StackedStep(TrainingStep):
    """One step of several learners: prompts, losses and learning rates have one entry for each.

    Args:
        learners: of one shape, on one device.
        training: the settings that they share; the learning rate is given with every step.
        num_examples: n of the prompts.
    """

    def __init__(self, learners: Sequence[Network], training: TrainingConfig, num_examples: int):
        super().__init__(stack_learners(learners), training, (len(learners),), num_examples)

    def _build_forward(self, training: TrainingConfig) -> StackedForward | MappedForward:
        if isinstance(self.model, Transformer) and self.model.config.is_plain:
            return StackedForward(self.model, self.compiled)
        return MappedForward(self.model, self.compiled)

    def part(self, position: int) -> "LearnerState":
        """One learner's own."""
        return LearnerState(self, position)


class LearnerState:
    """One learner's part of a stacked step: views, under the names that a learner alone has."""

    def __init__(self, step: StackedStep, position: int):
        self._step, self._position = step, position

    def weights(self) -> dict[str, Tensor]:
        """Its weights in float32."""
        return self._own(self._step.weights())

    def state(self) -> dict[str, Tensor]:
        """Its moments and the running means of its loss."""
        return self._own(self._step.state())

    def _own(self, stacked: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[self._position] for name, tensor in stacked.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over the moments and running means of a checkpoint."""
        for name, own in self.state().items():
            own.copy_(checkpoint.tensors[name])

    @torch.no_grad()
    def freeze(self) -> None:
        """Set all to 0: finite, so that nothing of it becomes NaN, and still at a rate of 0."""
        rounded = self._own(_parameters(self._step.model))
        for tensors in (self.weights(), self.state(), rounded):
            for tensor in tensors.values():
                tensor.zero_()


class StackedRun:
    """Several training runs that take their steps together; `train_stacked` drives it.

    Args:
        recipes: of one shape and one setting of the optimiser (`stack_key`).
        device: as for `training.train`.

    Raises:
        ValueError: if the recipes cannot be stacked, or several processes train.
    """

    def __init__(self, recipes: Sequence[Recipe], device: str = "auto"):
        _check(recipes)
        self.training = recipes[0].training
        self.runs = [TrainingRun(recipe, device) for recipe in recipes]
        self.diverged: dict[int, TrainingDivergedError] = {}
        self.step = 0

    def start(self, checkpoints: Sequence[CheckpointStore] | None) -> None:
        """Go on from the newest step that all learners have a checkpoint of; else begin."""
        found, diverged = _newest_common([run.name for run in self.runs], checkpoints)
        learners = [run.model(saved) for run, saved in zip(self.runs, found, strict=True)]
        num_examples = self.runs[0].recipe.task.num_examples
        self._step = StackedStep(learners, self.training, num_examples)
        self._step.prepare(self._draw(0))
        for position, (run, saved) in enumerate(zip(self.runs, found, strict=True)):
            run.training_step = part = self._step.part(position)
            if position in diverged:
                self._freeze(position, TrainingDivergedError(diverged[position]))
            elif saved is not None:
                part.load(saved)
                run.restore(saved)
                self.step = self._step.optimizer.num_steps = saved.step
        if self.step:
            logger.info("Training goes on from the checkpoints at step %d", self.step)

    def _draw(self, step: int) -> Prompts:
        drawn = [run.draw(step) for run in self.runs]
        return Prompts(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))

    def alive(self) -> list[tuple[int, TrainingRun]]:
        """The runs that have not diverged, by position."""
        return [(p, run) for p, run in enumerate(self.runs) if p not in self.diverged]

    def advance(self) -> dict[int, Progress]:
        """Take one step; the reports of those that are due, by position."""
        rates = [0.0] * len(self.runs)
        for position, run in self.alive():
            rates[position] = run.learning_rate
        losses = self._step(self._draw(self.step), rates)
        self.step += 1
        due = [(p, run) for p, run in self.alive() if run.count(losses[p])]
        if not due:
            return {}
        held_out = zip(*(run.held_out for run in self.runs), strict=True)
        predictions, reports = self._step.predict(*map(torch.stack, held_out)), {}
        for position, run in due:
            try:
                reports[position] = run.report(predictions[position])
            except TrainingDivergedError as error:
                self._freeze(position, error)
        return reports

    def _freeze(self, position: int, error: TrainingDivergedError) -> None:
        self._step.part(position).freeze()
        self.diverged[position] = error

    def save(self, checkpoints: Sequence[CheckpointStore]) -> None:
        """Save every learner that is sound, each under its own name in its own store."""
        good: list[tuple[int, TrainingRun]] = []
        for position, run in self.alive():
            try:
                good += [(position, run)] if run.is_good() else []
            except TrainingDivergedError as error:
                self._freeze(position, error)
        beside = {self.runs[p].name: str(error) for p, error in self.diverged.items()}
        for position, run in good:
            checkpoint = run.checkpoint()
            described = checkpoint.description | {DIVERGED: beside}
            checkpoints[position].save(run.name, replace(checkpoint, description=described))


def _check(recipes: Sequence[Recipe]) -> None:
    if dist.is_initialized():
        raise ValueError("stacked training is for one process; allowed: without torchrun")
    if len({stack_key(recipe) for recipe in recipes}) != 1:
        raise ValueError(
            f"recipes: {len(recipes)} given that differ in more than seed, task and learning rate; "
            "allowed: one model, task.dim, task.num_examples and training"
        )
    if not can_be_stacked(recipes[0].model):
        allowed = ", ".join(kind.model_fields["type"].default for kind in STACKABLE)
        raise ValueError(
            f"model.type: {recipes[0].model.type!r} given; allowed in a stack: {allowed}"
        )
    if len({recipe.fingerprint for recipe in recipes}) < len(recipes):
        raise ValueError("recipes: one is given twice; allowed: each once")


def _newest_common(
    names: list[str], checkpoints: Sequence[CheckpointStore] | None
) -> tuple[list[Checkpoint | None], dict[int, str]]:
    """Of every run its checkpoint at the newest step that all have, but for those that had
    diverged by then; and what was said of these, by position. Without any, nothing of all runs.
    """
    found: list[dict[int, Checkpoint]] = [
        {saved.step: saved for saved in checkpoints[position].readable(name)} if checkpoints else {}
        for position, name in enumerate(names)
    ]
    for step in sorted({step for own in found for step in own}, reverse=True):
        at = [own.get(step) for own in found]
        beside: dict[str, str] = {}
        for saved in at:
            beside |= saved.description.get(DIVERGED, {}) if saved else {}
        diverged = {p: beside[name] for p, name in enumerate(names) if name in beside}
        if all(saved or position in diverged for position, saved in enumerate(at)):
            return at, diverged
    return [None] * len(names), {}


def train_stacked(
    recipes: Sequence[Recipe],
    device: str = "auto",
    checkpoints: Sequence[CheckpointStore] | None = None,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> list[Learner | TrainingDivergedError]:
    """Train several learners of one shape at once; each is what `training.train` gives, to
    rounding.

    Args:
        recipes: one a learner; they may differ in seed, task (but not its sizes) and learning rate.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        checkpoints: as for `train`, a store for each learner (they may be one); the checkpoints are
            those that it would have alone.
        on_progress: called with a learner's position and each of its reports.

    Returns:
        In the order of the recipes the learner, on the CPU in float32, its record with ``stack``,
        the number trained together; or the error of one that diverged.

    Raises:
        ValueError: if the recipes cannot be stacked.
    """
    run = StackedRun(recipes, device)
    run.start(checkpoints)
    while run.step < run.training.num_steps and run.alive():
        for position, report in run.advance().items():
            if on_progress:
                on_progress(position, report)
        if checkpoints and run.step % run.training.checkpoint_every == 0:
            run.save(checkpoints)
    ended: list[Learner | TrainingDivergedError] = []
    for position, one in enumerate(run.runs):
        if position in run.diverged:
            store = checkpoints[position] if checkpoints else None
            ended.append(say_divergence(run.diverged[position], store, one.name))
        else:
            learner = one.learner()
            learner.record["stack"] = len(run.runs)
            ended.append(learner)
    return ended
