"""Does a change make the training recipe better? ``python -m benchmarks.variants``

Trains learners by an environment's recipe and by the same recipe with one change, several seeds in
one stack, at an equal number of tokens (so of arithmetic, but for what an optimiser adds), and
writes one row a learner and read-out: SPD to OLS on 4,096 prompts that training has not seen.
``--table`` sets every change beside the recipe: seeds are paired, since a seed's initial weights
and prompts are the same under every change, and a ratio counts only where the 95 % interval over
seeds (t, of the log ratio) leaves out 1.

    python -m benchmarks.variants --seeds 8
    python -m benchmarks.variants --env paper --model width=128 num_layers=8 --seeds 4 \\
        --training num_steps=2000 batch_size=64 learning_rate=3e-3
    python -m benchmarks.variants --table variants.csv

``conditional mean`` is a measuring stick, not a recipe: it is taught by the answer, and says what
the labels' noise costs.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from benchmarks.speedrun import PROJECT, spd_and_risk, told
from incontext_linear.config import Config
from incontext_linear.environment import read_environment
from incontext_linear.learner import Learner
from incontext_linear.predictors import BayesPosteriorMean
from incontext_linear.tasks import Prompts, draw_prompts
from incontext_linear.training import Recipe, TrainingConfig, TrainingRun
from incontext_linear.training.loop import learning_rate_at
from incontext_linear.training.optimizers import FlatOptimizer, FlatParameters
from incontext_linear.training.stacked import StackedStep

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Coefficients of x, x³ and x⁵, one row an iteration (Amsel et al. 2025, The Polar Express)."""


class PolarExpress(FlatOptimizer):
    """Muon with the iterations of Amsel et al. 2025, each of which is best after those before."""

    def _orthogonal(self, stack: Tensor) -> Tensor:
        tall = stack.shape[-2] > stack.shape[-1]
        result = stack.mT if tall else stack
        result = result / (1.01 * torch.linalg.matrix_norm(result, keepdim=True) + 1e-7)
        for linear, cubic, quintic in POLAR_EXPRESS:
            gram = result @ result.mT
            result = linear * result + (cubic * gram + quintic * gram @ gram) @ result
        return result.mT if tall else result


class NorMuon(FlatOptimizer):
    """Muon whose update has rows of one size (Li et al. 2025): each row is divided by the root of
    a running mean of its squares, and the whole brought back to the size that it had.
    """

    ROW_MOMENTUM = 0.95

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._rows: dict[torch.Size, Tensor] = {}

    def _orthogonal(self, stack: Tensor) -> Tensor:
        direction = super()._orthogonal(stack)
        squares = direction.square().mean(-1, keepdim=True)
        rows = self._rows.setdefault(squares.shape, torch.zeros_like(squares))
        rows.lerp_(squares, 1 - self.ROW_MOMENTUM)
        even = direction / (rows.sqrt() + 1e-8)
        size = torch.linalg.matrix_norm(direction, keepdim=True)
        return even * size / torch.linalg.matrix_norm(even, keepdim=True)

    def reset(self) -> None:
        """Forget all steps taken."""
        super().reset()
        for rows in self._rows.values():
            rows.zero_()


class Soap(FlatOptimizer):
    """Adam in the eigenbasis of Shampoo's preconditioners (Vyas et al. 2024), the basis renewed by
    one QR iteration at every tenth step.
    """

    MOMENTUM, EVERY = 0.95, 10

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def _muon(self, group: FlatParameters, gradient: Tensor) -> None:
        group.moments["first_moment"].lerp_(gradient, 1 - self.training.beta1)
        parts = (group.master, gradient, group.moments["first_moment"])
        for number, stacks in enumerate(zip(*map(group.stacks, parts), strict=True)):
            self._update_stack(number, *stacks)

    def _update_stack(self, number: int, weights: Tensor, new: Tensor, momentum: Tensor) -> None:
        rows, columns = new @ new.mT, new.mT @ new
        if number not in self._kept:
            bases = [torch.linalg.eigh(gram)[1] for gram in (rows, columns)]
            self._kept[number] = (rows, columns, *bases, torch.zeros_like(new))
            return  # as in the paper, the first step makes the basis and updates nothing
        left, right, left_basis, right_basis, second = self._kept[number]
        left.lerp_(rows, 1 - self.MOMENTUM)
        right.lerp_(columns, 1 - self.MOMENTUM)
        rotated = left_basis.mT @ new @ right_basis
        second.lerp_(rotated.square(), 1 - self.MOMENTUM)
        debiased = self._step_size[..., None, None, None]
        correction = (1 - self.MOMENTUM**self.num_steps) ** -0.5
        step = left_basis.mT @ momentum @ right_basis / (second.sqrt() * correction + 1e-8)
        weights.sub_(debiased * left_basis @ step @ right_basis.mT)
        if self.num_steps % self.EVERY == 0:
            bases = [torch.linalg.qr(gram @ basis)[0] for gram, basis in
                     ((left, left_basis), (right, right_basis))]  # fmt: skip
            self._kept[number] = (left, right, *bases, second)


@dataclass(frozen=True)
class Phase:
    """A part of a training with prompts of one length in batches of one size."""

    share: float = 1.0
    """Of the tokens of the whole training."""
    batch: float = 1.0
    """Times the recipe's batch size."""
    length: float = 1.0
    """Times n."""


@dataclass(frozen=True)
class Variant:
    """One change of the recipe."""

    training: dict[str, Any] = field(default_factory=dict)
    optimizer: type[FlatOptimizer] | None = None
    phases: tuple[Phase, ...] = (Phase(),)
    last_rate: float = 0.0
    """Where the learning rate's decay ends, as a share of its peak."""
    taught: bool = False
    """By E[y | prompt] in place of y."""


HORIZONS = (0.01, 0.03, 0.1)
"""Of the running means of the weights, as shares of all steps; read out beside the last weights."""


def variants(training: TrainingConfig) -> dict[str, Variant]:
    """What is tried, each alone, by name."""
    rate = training.learning_rate
    plain = {
        "recipe": {},
        "uniform loss": {"loss": "uniform"},
        "floor x 1/4": {"loss_floor": training.loss_floor / 4},
        "floor x 4": {"loss_floor": training.loss_floor * 4},
        "loss momentum 0.9": {"loss_momentum": 0.9},
        "loss momentum 0.999": {"loss_momentum": 0.999},
        "rate x 1/2": {"learning_rate": rate / 2},
        "rate x 2": {"learning_rate": rate * 2},
        "linear decay": {"decay": "linear"},
        "warm-up 0.02": {"warmup_fraction": 0.02},
        "warm-up 0.3": {"warmup_fraction": 0.3},
        "momentum 0.9": {"muon_momentum": 0.9},
        "momentum 0.98": {"muon_momentum": 0.98},
        "beta2 0.999": {"beta2": 0.999},
        "weight decay 0.1": {"weight_decay": 0.1},
        "no clipping": {"gradient_clip": 1e6},
        "float32": {"precision": "float32"},
    }
    return {name: Variant(changes) for name, changes in plain.items()} | {
        "rate ends at 0.1": Variant(last_rate=0.1),
        "Polar Express": Variant(optimizer=PolarExpress),
        "NorMuon": Variant(optimizer=NorMuon),
        "SOAP": Variant(optimizer=Soap),
        "SOAP, rate x 1/2": Variant({"learning_rate": rate / 2}, Soap),
        "batch x 1/2": Variant(phases=(Phase(batch=0.5),)),
        "batch x 2": Variant(phases=(Phase(batch=2.0),)),
        "batch x 1/2, then x 2": Variant(phases=(Phase(0.5, 0.5), Phase(0.5, 2.0))),
        "half the prompt for a quarter": Variant(phases=(Phase(0.25, length=0.5), Phase(0.75))),
        "conditional mean": Variant(taught=True),
    }


AnyConfig = TypeVar("AnyConfig", bound=Config)


class TaughtStep(StackedStep):
    """A step whose target is E[y | prompt]: "labels" are pairs of it and of what is read."""

    def _step(self, xs: Tensor, ys: Tensor) -> Tensor:
        read, target = ys.unbind(-1)
        with self.autocast():
            predictions = self._forward(xs, read)
        loss, error = self.loss(predictions.to(target.dtype), target)
        loss.sum().backward()
        self.optimizer.step()
        return error


class Training:
    """Learners of one recipe and several seeds, trained in one stack by a variant of it."""

    def __init__(self, recipe: Recipe, variant: Variant, seeds: Sequence[int], device: str):
        changes = recipe.training.model_dump() | variant.training
        # Eager kernels in one graph: no minute of compilation for every variant.
        training = TrainingConfig.model_validate(changes | {"compile": False})
        self.recipe = Recipe(recipe.task, recipe.model, training, recipe.seed)
        self.variant, self.seeds = variant, seeds
        recipes = [Recipe(recipe.task, recipe.model, training, seed) for seed in seeds]
        self.runs = [TrainingRun(one, device) for one in recipes]
        self.device = self.runs[0].device
        self.models = [run.model(None) for run in self.runs]
        self.step: StackedStep | None = None
        self.means: dict[float, dict[str, Tensor]] = {}
        self.done = 0.0
        """Share of the tokens that training has seen."""

    def run(self) -> None:
        """All phases, one after the other; the state goes along."""
        training, task = self.recipe.training, self.recipe.task
        for phase in self.variant.phases:
            length = round(phase.length * task.num_examples)
            batch = round(phase.batch * training.batch_size)
            # Equal tokens: half the batch, twice the steps.
            steps = round(phase.share * training.num_steps / (phase.batch * phase.length))
            draw = self._drawing(batch, length)
            step = self._step(draw, length)
            self.step = step
            for number in range(steps):
                rate = self._rate(self.done + phase.share * number / steps)
                step(draw(number), [rate] * len(self.seeds))
                self._average(step.weights(), steps / phase.share)
            self.done += phase.share

    def _rate(self, progress: float) -> float:
        training = self.recipe.training
        rate = learning_rate_at(int(progress * training.num_steps), training)
        return max(rate, self.variant.last_rate * training.learning_rate * min(1.0, 20 * progress))

    def _drawing(self, batch: int, length: int) -> Callable[[int], Prompts]:
        begun = round(self.done * 10 * self.recipe.training.num_steps)
        task = self.recipe.task

        def draw(number: int) -> Prompts:
            parts = [
                draw_prompts(task, batch, seed, begun + number, device=self.device)
                for seed in self.seeds
            ]
            xs = torch.stack([part.xs[:, :length] for part in parts])
            ys = torch.stack([part.ys[:, :length] for part in parts])
            if self.variant.taught:
                teacher = BayesPosteriorMean(task.noise_std, task.prior_std)
                means = teacher(xs.flatten(0, 1).double(), ys.flatten(0, 1).double())
                ys = torch.stack((ys, means.to(ys.dtype).view_as(ys)), -1)
            return Prompts(xs, ys, torch.stack([part.ws for part in parts]))

        return draw

    def _step(self, draw: Callable[[int], Prompts], length: int) -> StackedStep:
        """A step on prompts of this length, which goes on where the one before it ended."""
        before, training, kind = self.step, self.recipe.training, self.variant.optimizer
        if kind is Soap:  # its QR iterations cannot be captured
            training = training.model_copy(update={"cuda_graph": False})
        if before is not None:
            self._load(before.weights())
        step = (TaughtStep if self.variant.taught else StackedStep)(self.models, training, length)
        if kind is not None:
            for name, parameter in step.model.named_parameters():
                parameter.data = step.weights()[name].clone()  # not what bfloat16 has rounded
            stack = (len(self.seeds),)
            step.optimizer = kind(step.model, training, step.low_precision, False, stack)
        step.prepare(draw(0))
        if before is not None:
            step.optimizer.load_state(before.optimizer.state(), before.optimizer.num_steps)
        return step

    def _load(self, weights: dict[str, Tensor]) -> None:
        for position, model in enumerate(self.models):
            model.load_state_dict({name: own[position] for name, own in weights.items()})

    @torch.no_grad()
    def _average(self, weights: dict[str, Tensor], num_steps: float) -> None:
        for horizon in HORIZONS:
            means = self.means.setdefault(horizon, {n: own.clone() for n, own in weights.items()})
            for name, own in weights.items():
                means[name].lerp_(own, min(1.0, 1 / (horizon * num_steps)))

    def learners(self) -> dict[str, list[Learner]]:
        """The learners by what is read out: the last weights, and each running mean of them."""
        found = {"last": self.step.weights()} if self.step else {}
        found |= {f"mean over {horizon:.0%}": means for horizon, means in self.means.items()}
        learners = {}
        for name, weights in found.items():
            self._load(weights)
            learners[name] = [
                Learner(copy.deepcopy(model).eval(), self.recipe.task, {}, self.recipe.model)
                for model in self.models
            ]
        return learners


def measure(
    recipe: Recipe, name: str, variant: Variant, seeds: Sequence[int], device: str
) -> Iterator[dict[str, Any]]:
    """Train all seeds by a variant; a row for every seed and read-out."""
    training = Training(recipe, variant, seeds, device)
    start = time.perf_counter()
    training.run()
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    dim, last = recipe.task.dim, recipe.task.num_examples - 1
    ks = sorted({1, dim // 2, dim - 1, dim, dim + 1, min(2 * dim, last), last} - {0})
    for read_out, learners in training.learners().items():
        for seed, learner in zip(seeds, learners, strict=True):
            spd = spd_and_risk(learner, training.device)[0]
            row = {"variant": name, "read_out": read_out, "seed": seed, "seconds": f"{seconds:.1f}"}
            yield row | {f"k = {k}": f"{spd[k].item():.4g}" for k in ks}


def table(path: Path) -> str:
    """Ratios of SPD to the recipe's: geometric means over paired seeds, with 95 % intervals; of the
    recipe itself the SPD.
    """
    read = pd.read_csv(path)
    ks = [column for column in read.columns.astype(str) if column.startswith("k = ")]
    logs = {
        name: own.set_index("seed")[ks].transform(np.log)
        for name, own in read.groupby(["variant", "read_out"], sort=False)
    }
    recipe = logs["recipe", "last"]
    lines = []
    for (name, read_out), own in logs.items():
        ratios = (own - recipe).dropna()
        mean, half = ratios.mean(), stats.t.ppf(0.975, len(ratios) - 1) * ratios.sem()
        bounds = np.exp([mean, mean - half, mean + half]).T
        shown = [
            f"{ratio:.2f}" if low <= 1 <= high else f"**{ratio:.2f}** [{low:.2f}, {high:.2f}]"
            for ratio, low, high in bounds
        ]
        if (name, read_out) == ("recipe", "last"):
            shown = [f"{value:.2g}" for value in np.exp(recipe.mean())]
        lines.append([name, read_out, str(len(ratios)), *shown])
    heads = ["variant", "read-out", "seeds", *ks]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *lines])


def changed(part: AnyConfig, settings: Sequence[str]) -> AnyConfig:
    """A part of the parameters with ``name=value`` laid over it."""
    return type(part).model_validate(part.model_dump() | told([*settings]))


def main() -> None:
    """Read the command line, train, and write as each variant ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default=None, help="a Kedro environment, such as paper")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=None, help="names of variants")
    parser.add_argument("--task", nargs="*", default=[], help="name=value … of the task")
    parser.add_argument("--model", nargs="*", default=[], help="name=value … of the model")
    parser.add_argument("--training", nargs="*", default=[], help="name=value … of the recipe")
    parser.add_argument("--device", default=None, help="in place of the environment's")
    parser.add_argument("--output", type=Path, default=Path("variants.csv"))
    parser.add_argument("--table", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    parameters = read_environment(PROJECT, arguments.env)[0]
    recipe = Recipe(
        changed(parameters.task, arguments.task),
        changed(parameters.model, arguments.model),
        changed(parameters.training, arguments.training),
        seed=0,
    )
    device = arguments.device or parameters.device
    for name, variant in variants(recipe.training).items():
        if arguments.only is not None and name not in arguments.only:
            continue
        start = time.perf_counter()
        rows = [*measure(recipe, name, variant, range(arguments.seeds), device)]
        new = not arguments.output.exists()
        pd.DataFrame(rows).to_csv(arguments.output, mode="a", header=new, index=False)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
