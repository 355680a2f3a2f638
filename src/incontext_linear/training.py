"""The training loop: fresh prompts at every step, AdamW, warm-up and cosine, checkpoints.

The loss is the paper's (section 2): the squared error of the prediction at every prefix, averaged over
prompts and prefixes. A step's batch is a pure function of (task, seed, step), so nothing about the data
needs saving, and a resumed run sees the very batches that an unbroken one does.

Speed comes from three switches that change no arithmetic but the precision of matrix products: bfloat16
matrices with float32 master copies, compiled blocks, and one captured CUDA graph a step. On a CPU, or
with the switches off, the same lines run plainly.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.checkpoints import Checkpoint, CheckpointStore, Learner, fingerprint, resolve_device
from incontext_linear.config import ModelConfig, TaskConfig, TrainingConfig
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.transformer import Transformer

EXPLOSION_FACTOR = 1e3
"""A loss this many times the mean square of the labels is no spike: training has diverged."""

_NUMERICS = ("num_steps", "batch_size", "learning_rate", "warmup_fraction", "beta1", "beta2", "weight_decay")
_RUN_FIELDS = (*_NUMERICS, "gradient_clip", "precision", "log_every")


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


def learning_rate_at(step: int, training: TrainingConfig) -> float:
    """Linear warm-up over ``warmup_fraction`` of the steps, then cosine decay towards zero."""
    warmup = max(1, round(training.warmup_fraction * training.num_steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, training.num_steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def reporting_prefix(task: TaskConfig) -> int:
    """The number of examples at which progress is reported: 2d, or the longest prefix if that is shorter."""
    return min(2 * task.dim, task.num_examples - 1)


def run_fingerprint(task: TaskConfig, model: ModelConfig, training: TrainingConfig, seed: int) -> str:
    """Names a training run by all that its result depends on (not by device or compilation)."""
    numerics = training.model_dump(mode="json", include=set(_RUN_FIELDS))
    return fingerprint(task.model_dump(mode="json"), model.model_dump(mode="json"), numerics, seed)


class MasterWeights:
    """Float32 master copies, in one flat tensor, of matrices that the model keeps in bfloat16.

    The matrices are turned into views of one bfloat16 buffer. One cast a step then replaces a cast a
    matrix and a product, and the optimiser updates one large tensor.

    Args:
        matrices: the parameters to keep in bfloat16; changed in place.
    """

    def __init__(self, matrices: list[nn.Parameter]):
        self.matrices = matrices
        sizes = [matrix.numel() for matrix in matrices]
        self.flat = nn.Parameter(torch.cat([matrix.detach().flatten() for matrix in matrices]))
        self.flat.grad = torch.zeros_like(self.flat)
        self._low = self.flat.detach().bfloat16()
        shapes = [matrix.shape for matrix in matrices]
        self.views = [part.view(s) for part, s in zip(self.flat.detach().split(sizes), shapes, strict=True)]
        self._gradients = [part.view(s) for part, s in zip(self.flat.grad.split(sizes), shapes, strict=True)]
        for matrix, part in zip(matrices, self._low.split(sizes), strict=True):
            matrix.data = part.view(matrix.shape)

    def take_gradients(self) -> None:
        """Copy the matrices' bfloat16 gradients into the master's, and free them."""
        torch._foreach_copy_(self._gradients, [matrix.grad for matrix in self.matrices])
        for matrix in self.matrices:
            matrix.grad = None

    def update_matrices(self) -> None:
        """Round the updated master copies to bfloat16, into the model."""
        with torch.no_grad():
            self._low.copy_(self.flat)


class TrainingStep:
    """Forward, backward, clip, AdamW: one call a batch.

    Args:
        model: the learner, on its device, in float32; trained in place.
        training: optimiser settings and the three speed switches.
    """

    def __init__(self, model: Transformer, training: TrainingConfig):
        self.model, self.training = model, training
        self.device = model.positions.device
        on_gpu = self.device.type == "cuda"
        self.low_precision = training.precision == "bfloat16" or (training.precision == "auto" and on_gpu)
        matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if self.low_precision else []
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._matrix_names = [names[id(matrix)] for matrix in matrices]
        self.masters = MasterWeights(matrices) if matrices else None
        kept = {id(matrix) for matrix in matrices}
        self._trained = [p for p in model.parameters() if id(p) not in kept]
        self._trained += [self.masters.flat] if self.masters else []
        self.graphed = on_gpu if training.cuda_graph == "auto" else training.cuda_graph and on_gpu
        self.optimizer = torch.optim.AdamW(
            self._trained,
            lr=torch.zeros((), device=self.device) if on_gpu else 0.0,
            betas=(training.beta1, training.beta2),
            weight_decay=training.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        if on_gpu if training.compile == "auto" else training.compile:
            for block in model.blocks:
                block.compile()
        self._forward = nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, prompts: Prompts, learning_rate: float) -> Float[Tensor, ""]:
        """Train on one batch; returns its loss, still on the device (no synchronisation)."""
        self._set_learning_rate(learning_rate)
        if not self.graphed:
            return self._step(prompts.xs, prompts.ys)
        if self._graph is None:
            raise RuntimeError("call prepare(prompts) once before the first step of a graphed run")
        self._xs.copy_(prompts.xs)
        self._ys.copy_(prompts.ys)
        self._graph.replay()
        return self._loss

    def _step(self, xs: Tensor, ys: Tensor) -> Tensor:
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.low_precision else nullcontext()
        with autocast:
            predictions = self._forward(xs, ys)
        loss = F.mse_loss(predictions.float(), ys)
        loss.backward()
        if self.masters:
            self.masters.take_gradients()
        nn.utils.clip_grad_norm_(self._trained, self.training.gradient_clip)
        self.optimizer.step()
        for parameter in self._trained:
            if self.masters is None or parameter is not self.masters.flat:
                parameter.grad = None
        if self.masters:
            self.masters.update_matrices()
        return loss.detach()

    def prepare(self, prompts: Prompts) -> None:
        """Make the optimiser's state, and capture the graph, by steps that leave the weights unchanged."""
        self._set_learning_rate(0.0)
        if not self.graphed:
            self._step(prompts.xs, prompts.ys)
        else:
            self._capture(prompts)
        self.load_state({})

    def _capture(self, prompts: Prompts) -> None:
        self._xs, self._ys = prompts.xs.clone(), prompts.ys.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step(self._xs, self._ys)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._step(self._xs, self._ys)

    def _set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def _state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for index, parameter in enumerate(self._trained):
            for name, tensor in self.optimizer.state[parameter].items():
                yield f"optimizer.{index}.{name}", tensor

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors by name."""
        return dict(self._state_tensors())

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Set the optimiser's tensors in place, to those saved or else to zero (a fresh start)."""
        for name, tensor in self._state_tensors():
            tensor.copy_(saved[name]) if name in saved else tensor.zero_()

    def weights(self) -> dict[str, Tensor]:
        """The model's weights in float32: of matrices kept in bfloat16, the master copies."""
        weights = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        if self.masters:
            weights.update(zip(self._matrix_names, self.masters.views, strict=True))
        return weights


class TrainingRun:
    """A training run that can stop and go on: `train` drives it, a checkpoint is its whole state."""

    def __init__(
        self, task: TaskConfig, model: ModelConfig, training: TrainingConfig, seed: int, device: str = "auto"
    ):
        self.task, self.config, self.training, self.seed = task, model, training, seed
        self.device = resolve_device(device)
        self.rank, self.num_ranks = (
            (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        )
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        if training.batch_size % self.num_ranks:
            raise ValueError(
                f"training.batch_size={training.batch_size} cannot be shared evenly by {self.num_ranks} "
                f"processes; allowed are multiples of {self.num_ranks}"
            )
        self.name = run_fingerprint(task, model, training, seed)
        self.step, self.history = 0, []
        self._window = torch.zeros(training.log_every, device=self.device)
        evaluation = draw_prompts(task, 512, seed, stream="progress", device=self.device)
        ols = OrdinaryLeastSquares()(evaluation.xs.double(), evaluation.ys.double())
        self._evaluation, self._ols = evaluation, ols[:, reporting_prefix(task)]

    def start(self, checkpoint: Checkpoint | None) -> None:
        """Set weights, optimiser, step and history: from the seed, or from a checkpoint."""
        model = Transformer(self.task.dim, self.task.num_examples, self.config)
        if checkpoint is None:
            model.initialize(generator(self.seed, "initial weights"))
        else:
            prefix = "model."
            model.load_state_dict(
                {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
            )
        self.training_step = TrainingStep(model.to(self.device), self.training)
        self.training_step.prepare(self.draw(0))
        if checkpoint is not None:
            self.training_step.load_state(checkpoint.tensors)
            self._window.copy_(checkpoint.tensors["window"])
            self.step = checkpoint.step
            self.history = [Progress(**row) for row in checkpoint.description["history"]]

    def draw(self, step: int) -> Prompts:
        """This process's share of the batch of a step."""
        prompts = draw_prompts(self.task, self.training.batch_size, self.seed, step, device=self.device)
        return Prompts(*(tensor[self.rank :: self.num_ranks] for tensor in prompts))

    def advance(self) -> Progress | None:
        """Take one step; report at every ``log_every``-th and at the last."""
        learning_rate = learning_rate_at(self.step, self.training)
        slot = self.step % self.training.log_every
        self._window[slot] = self.training_step(self.draw(self.step), learning_rate)
        self.step += 1
        if slot + 1 < self.training.log_every and self.step < self.training.num_steps:
            return None
        losses = self._window[: slot + 1].clone()
        if self.num_ranks > 1:
            dist.all_reduce(losses)
            losses /= self.num_ranks
        self._check_losses(losses)
        report = Progress(self.step, losses.mean().item(), self._spd_to_ols(), learning_rate)
        self.history.append(report)
        return report

    def _check_losses(self, losses: Tensor) -> None:
        limit = EXPLOSION_FACTOR * self._evaluation.ys.square().mean().clamp_min(1e-12)
        bad = (~(losses <= limit)).nonzero()
        if len(bad):
            step = self.step - len(losses) + bad[0].item()
            raise TrainingDivergedError(
                f"training diverged at step {step} of {self.training.num_steps}: the loss is "
                f"{losses[bad[0]].item():.3g} at learning rate {learning_rate_at(step, self.training):.3g}; "
                f"try a training.learning_rate below {self.training.learning_rate:g} or a longer "
                f"training.warmup_fraction than {self.training.warmup_fraction:g}"
            )

    def _spd_to_ols(self) -> float:
        prompts, k = self._evaluation, reporting_prefix(self.task)
        low = self.training_step.low_precision
        autocast = torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext()
        with torch.no_grad(), autocast:
            predictions = self.training_step.model(prompts.xs[:, : k + 1], prompts.ys[:, : k + 1])
        return (predictions[:, k].double() - self._ols).square().mean().item()

    def checkpoint(self) -> Checkpoint:
        """All that `start` needs to go on from here."""
        weights = {f"model.{name}": tensor for name, tensor in self.training_step.weights().items()}
        tensors = weights | self.training_step.state() | {"window": self._window}
        description = {"history": [vars(row) for row in self.history], "seed": self.seed}
        return Checkpoint(self.step, tensors, description)

    def learner(self) -> Learner:
        """The trained learner, on the CPU in float32, with its record."""
        model = Transformer(self.task.dim, self.task.num_examples, self.config)
        model.load_state_dict(self.training_step.weights())
        record: dict[str, Any] = {
            "seed": self.seed,
            "step": self.step,
            "training": self.training.model_dump(mode="json"),
            "history": [vars(row) for row in self.history],
        }
        return Learner(model.eval(), self.task, record)


def train(
    task: TaskConfig,
    model: ModelConfig,
    training: TrainingConfig,
    seed: int,
    device: str = "auto",
    checkpoints: CheckpointStore | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Learner:
    """Train an in-context learner; the same arguments give the same learner.

    Args:
        task: what prompts to draw.
        model: the learner's shape.
        training: steps, batch, optimiser, precision.
        seed: decides the initial weights and every batch.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        checkpoints: where to save, and to resume from, every ``training.checkpoint_every`` steps; a
            run killed at any moment goes on from its newest readable checkpoint. None: not saved.
        on_progress: called with each report (in the first process only, if there are several).

    Returns:
        The learner, on the CPU in float32; its record holds the history of reports.

    Raises:
        TrainingDivergedError: naming the step, the learning rate and the last good checkpoint.
        ValueError: if the device is not there, or processes cannot share the batch evenly.
    """
    run = TrainingRun(task, model, training, seed, device)
    run.start(checkpoints.latest(run.name) if checkpoints else None)
    try:
        while run.step < training.num_steps:
            report = run.advance()
            if run.rank > 0:
                continue
            if report and on_progress:
                on_progress(report)
            if checkpoints and run.step % training.checkpoint_every == 0 and _is_good(run):
                checkpoints.save(run.name, run.checkpoint())
    except TrainingDivergedError as error:
        good = checkpoints.paths(run.name)[-1:] if checkpoints else []
        saved = f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been saved"
        raise TrainingDivergedError(f"{error}; {saved}") from None
    return run.learner()


def _is_good(run: TrainingRun) -> bool:
    """Whether the state may be saved: its weights are finite, so a checkpoint is always a good one."""
    return all(bool(tensor.isfinite().all()) for tensor in run.training_step.weights().values())
