"""The training loop: fresh prompts at every step, warm-up and decay, checkpoints.

The loss is the paper's (section 2): the squared error of the prediction at every prefix, averaged
over prompts and prefixes. A step's batch is a pure function of (task, seed, step), so nothing about
the data needs saving, and a resumed run sees the very batches that an unbroken one does.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import TaskConfig, resolve_device
from incontext_linear.learner.base import Network
from incontext_linear.learner.registry import build_learner, draw_initial
from incontext_linear.learner.saved import Learner
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.training.checkpoints import Checkpoint, CheckpointStore
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.recipe import Recipe
from incontext_linear.training.snapshots import SnapshotStore
from incontext_linear.training.step import TrainingStep

logger = logging.getLogger(__name__)

EXPLOSION_FACTOR = 1e3
"""A loss this many times the mean square of the labels is no spike: training has diverged."""


@dataclass(frozen=True)
class Progress:
    """What the loop reports every ``log_every`` steps: one row of the loss history."""

    step: int
    loss: float
    """Mean training loss over the steps since the last report."""
    spd_to_ols: float
    """Squared prediction difference to OLS on held-out prompts, at `reporting_prefix` examples."""
    learning_rate: float


class TrainingDivergedError(RuntimeError):
    """The loss became NaN, infinite, or far larger than that of predicting zero."""


class State(Protocol):
    """What a run asks of its `TrainingStep`, or of its part of one that trains several learners."""

    def weights(self) -> dict[str, Tensor]:
        """The learner's weights by name."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All else that a step depends on, by name."""
        ...


def learning_rate_at(step: int, training: TrainingConfig) -> float:
    """Linear warm-up over ``warmup_fraction`` of the steps, then decay towards zero: cosine or
    linear.
    """
    warmup = max(1, round(training.warmup_fraction * training.num_steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, training.num_steps - warmup)
    left = 1 - progress if training.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return training.learning_rate * left


def reporting_prefix(task: TaskConfig) -> int:
    """The number of examples at which progress is reported: 2d, or the longest prefix if that is
    shorter.
    """
    return min(2 * task.dim, task.num_examples - 1)


class TrainingRun:
    """A training run that can stop and go on: `train` drives it, a checkpoint is its whole
    state.
    """

    def __init__(self, recipe: Recipe, device: str = "auto"):
        self.recipe, task, training = recipe, recipe.task, recipe.training
        self.device = resolve_device(device)
        self.rank, self.num_ranks = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        if training.batch_size % self.num_ranks:
            raise ValueError(
                f"training.batch_size={training.batch_size} cannot be shared evenly by "
                f"{self.num_ranks} "
                f"processes; allowed are multiples of {self.num_ranks}"
            )
        self.name = recipe.run_name(self.device)
        self.step, self.history = 0, []
        self._window = torch.zeros(training.log_every, device=self.device)
        evaluation = draw_prompts(task, 512, recipe.seed, stream="progress", device=self.device)
        ols = OrdinaryLeastSquares()(evaluation.xs.double(), evaluation.ys.double())
        self._evaluation, self._ols = evaluation, ols[:, reporting_prefix(task)]

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Set weights, optimiser, step and history: from the seed, or from a checkpoint."""
        num_examples = self.recipe.task.num_examples
        step = TrainingStep(self.model(checkpoint), self.recipe.training, num_examples=num_examples)
        step.prepare(self.draw(0))
        self.training_step: State = step
        self._take_step, self._predict = step, step.predict
        if checkpoint is not None:
            step.load_state(checkpoint.tensors, checkpoint.step)
            self.restore(checkpoint)

    def model(self, checkpoint: Checkpoint | None) -> Network:
        """The network that training starts from, or goes on with, on the device."""
        model, prefix = self._new_model(), "model."
        if checkpoint is None:
            draw_initial(model, generator(self.recipe.seed, "initial weights"))
        else:
            named = checkpoint.tensors.items()
            saved = {n.removeprefix(prefix): t for n, t in named if n.startswith(prefix)}
            model.load_state_dict(saved)
        return model.to(self.device)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the step, the history and the losses since the last report."""
        self._window.copy_(checkpoint.tensors["window"])
        self.step = checkpoint.step
        self.history = [Progress(**row) for row in checkpoint.description["history"]]

    def _new_model(self) -> Network:
        task = self.recipe.task
        return build_learner(task.dim, task.num_examples, self.recipe.model)

    def draw(self, step: int) -> Prompts:
        """This process's share of the batch of a step."""
        prompts = draw_prompts(
            self.recipe.task,
            self.recipe.training.batch_size,
            self.recipe.seed,
            step,
            device=self.device,
        )
        return Prompts(*(tensor[self.rank :: self.num_ranks] for tensor in prompts))

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return learning_rate_at(self.step, self.recipe.training)

    def advance(self) -> Progress | None:
        """Take one step; report at every ``log_every``-th and at the last."""
        is_due = self.count(self._take_step(self.draw(self.step), self.learning_rate))
        return self.report(self._predict(*self.held_out)) if is_due else None

    def count(self, loss: Float[Tensor, ""]) -> bool:
        """Keep the loss of a step that was taken; gives whether a report is due."""
        slot = self.step % self.recipe.training.log_every
        self._window[slot] = loss
        self.step += 1
        training = self.recipe.training
        return slot + 1 == training.log_every or self.step == training.num_steps

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Prompts that progress is reported on, up to the prefix that counts."""
        k = reporting_prefix(self.recipe.task)
        return self._evaluation.xs[:, : k + 1], self._evaluation.ys[:, : k + 1]

    def report(self, predictions: Float[Tensor, "batch example"]) -> Progress:
        """A row of the history, from what the learner predicts on `held_out`.

        Raises:
            TrainingDivergedError: if a loss since the last report is bad.
        """
        training = self.recipe.training
        losses = self._shared(self._window[: (self.step - 1) % training.log_every + 1])
        self._check_losses(losses)
        spd = (predictions[:, -1].double() - self._ols).square().mean().item()
        rate = learning_rate_at(self.step - 1, training)
        self.history.append(Progress(self.step, losses.mean().item(), spd, rate))
        return self.history[-1]

    def _shared(self, losses: Tensor) -> Tensor:
        """Means over the processes, so that all of them come to the same conclusion."""
        losses = losses.clone()
        if self.num_ranks > 1:
            dist.all_reduce(losses)
            losses /= self.num_ranks
        return losses

    def _check_losses(self, losses: Tensor) -> None:
        limit = EXPLOSION_FACTOR * self._evaluation.ys.square().mean().clamp_min(1.0)
        bad = (~(losses <= limit)).nonzero()
        if len(bad):
            step = self.step - len(losses) + bad[0].item()
            raise TrainingDivergedError(
                f"training diverged at step {step} of {self.recipe.training.num_steps}: the loss "
                "is "
                f"{losses[bad[0]].item():.3g} at learning rate "
                f"{learning_rate_at(step, self.recipe.training):.3g}; "
                f"try a training.learning_rate below {self.recipe.training.learning_rate:g} or a "
                "longer "
                f"training.warmup_fraction than {self.recipe.training.warmup_fraction:g}"
            )

    def is_good(self) -> bool:
        """Whether the state may be saved: no loss since the last report is bad, and all weights are
        finite.

        Raises:
            TrainingDivergedError: if a loss is bad.
        """
        self._check_losses(self._shared(self._window[: self.step % self.recipe.training.log_every]))
        return all(
            bool(tensor.isfinite().all()) for tensor in self.training_step.weights().values()
        )

    def checkpoint(self) -> Checkpoint:
        """All that `start` needs to go on from here."""
        weights = {f"model.{name}": tensor for name, tensor in self.training_step.weights().items()}
        tensors = weights | self.training_step.state() | {"window": self._window}
        description = {"history": [vars(row) for row in self.history], "seed": self.recipe.seed}
        return Checkpoint(self.step, tensors, description)

    def learner(self) -> Learner:
        """The trained learner, on the CPU in float32, with its record."""
        model = self._new_model()
        model.load_state_dict(self.training_step.weights())
        record: dict[str, Any] = {
            "seed": self.recipe.seed,
            "step": self.step,
            "num_threads": torch.get_num_threads(),
            "training": self.recipe.training.model_dump(mode="json"),
            "history": [vars(row) for row in self.history],
        }
        return Learner(model.eval(), self.recipe.task, record, self.recipe.model)


def _start(
    run: TrainingRun, checkpoints: CheckpointStore | None, snapshots: SnapshotStore | None
) -> None:
    """Go on from the newest checkpoint that can be used; else begin.

    One that lies behind a missing snapshot cannot be used: the snapshot would never be made.
    """
    for checkpoint in checkpoints.readable(run.name) if checkpoints else ():
        if snapshots and not snapshots.has_until(run.name, checkpoint.step):
            logger.warning(
                "Passing over the checkpoint at step %d: a snapshot before it is missing",
                checkpoint.step,
            )
            continue
        try:
            run.start(checkpoint)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            logger.warning(
                "Passing over the checkpoint at step %d, which does not fit: %s",
                checkpoint.step,
                (str(error) or type(error).__name__).splitlines()[0],
            )
            run.step, run.history = 0, []
            continue
        logger.info("Training goes on from the checkpoint at step %d", run.step)
        return
    run.start(None)


def say_divergence(
    error: TrainingDivergedError, checkpoints: CheckpointStore | None, name: str
) -> TrainingDivergedError:
    """The error of a run, with where its last good checkpoint lies."""
    good = checkpoints.paths(name)[-1:] if checkpoints else []
    saved = f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been saved"
    return TrainingDivergedError(f"{error}; {saved}")


def train(
    recipe: Recipe,
    device: str = "auto",
    checkpoints: CheckpointStore | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    snapshots: SnapshotStore | None = None,
) -> Learner:
    """Train an in-context learner; the same arguments give the same learner.

    Args:
        recipe: the task, the learner's shape, the training and the seed.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        checkpoints: where to save, and to resume from, every ``training.checkpoint_every`` steps; a
            run killed at any moment goes on from its newest readable checkpoint. None: not saved.
        on_progress: called with each report (in the first process only, if there are several).
        snapshots: keeps the learner as it is at some steps; None: none are kept.

    Returns:
        The learner, on the CPU in float32; its record holds the history of reports.

    Raises:
        TrainingDivergedError: naming the step, the learning rate and the last good checkpoint.
        ValueError: if the device is not there, or processes cannot share the batch evenly.
    """
    run, training = TrainingRun(recipe, device), recipe.training
    _start(run, checkpoints, snapshots)
    try:
        if snapshots and run.rank == 0 and run.step == 0 and 0 in snapshots.steps:
            snapshots.keep(run.name, run.learner())
        while run.step < training.num_steps:
            report = run.advance()
            is_due = checkpoints is not None and run.step % training.checkpoint_every == 0
            is_kept = snapshots is not None and run.step in snapshots.steps
            # Asked of every process: they share their losses.
            is_good = (is_due or is_kept) and run.is_good()
            if run.rank > 0:
                continue
            if report and on_progress:
                on_progress(report)
            if snapshots is not None and is_kept and is_good:  # before the checkpoint: see _start
                snapshots.keep(run.name, run.learner())
            if is_due and is_good:
                checkpoints.save(run.name, run.checkpoint())
    except TrainingDivergedError as error:
        raise say_divergence(error, checkpoints, run.name) from None
    return run.learner()
