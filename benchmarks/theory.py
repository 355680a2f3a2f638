"""One layer of linear attention, trained by our loop, beside its optimum in closed form.

    python -m benchmarks.theory            # trains (some 100 learners in stacks), measures, draws
    python -m benchmarks.theory --draw     # draws the figure from the tables again
    python -m benchmarks.theory --only plain --seeds 2 --steps 100 --output /tmp/theory

The learner is `learner.linear_attention` with free matrices on joint tokens; the loss is the mean
over all prefixes, k = 0 … n−1, or ``likelihood`` where a setting says so, and the closed form is
that of the same loss (`predictors.optimal_step`, `predictors.pooled_step`).

- ``theory_steps.csv``, a row a learner: how its matrix Γ, read off its weights, agrees with the
  closed form's Γ*. ``size`` is ⟨Γ, Γ*⟩/⟨Γ*, Γ*⟩ (1: agreement), ``off`` is ‖Γ − Γ*‖/‖Γ*‖, and
  ``excess`` is what the difference adds to the loss, as a share of the least loss, by the closed
  form of the risk.
- ``theory_risks.csv``, a row a setting and k: the squared error on fresh prompts, mean over seeds
  with Student's interval over them (each seed has prompts of its own), beside R_k(Γ*).

With a pool of tasks the learners' prompts come from it, and ``prompts`` says whether the error was
measured on the pool's tasks or on new ones. The closed form is then that of the best step, which
``preconditioned`` learners are held to; ``full`` ones also have terms that are even in y, which a
pool lets them use, and which ``size``, ``off`` and ``excess`` leave out.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    legend_under,
    panel_grid,
    prepare_axes,
)
from incontext_linear.learner import Learner
from incontext_linear.learner.linear_attention import LinearAttentionConfig, learned_step
from incontext_linear.predictors.optimal_step import (
    TaskMoments,
    optimal_step,
    optimal_step_by_likelihood,
    prefix_scales,
    step_risk,
)
from incontext_linear.predictors.pooled_step import pooled_step_risk
from incontext_linear.statistics import mean_interval
from incontext_linear.tasks import draw_prompts
from incontext_linear.training import Recipe, TrainingConfig, stack_key, train_stacked

DOCS = Path(__file__).parents[1] / "docs"
STEPS, RISKS = "theory_steps.csv", "theory_risks.csv"
NUM_PROMPTS, AT_ONCE = 40_000, 4_000
NO_CLIP = 1e6
"""Clipping favours small prompts: it made Γ 1 to 3 % too large (benchmarks.positive_controls)."""
POOLS = (2, 8, 32, 512)


@dataclass(frozen=True)
class Setting:
    """What is trained, once a seed."""

    name: str
    task: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """Of seed 0."""
        # With one layer both contexts are the same function, and the causal one is cheaper.
        model = LinearAttentionConfig.model_validate({"context": "causal"} | self.model)
        training = {"num_steps": 1000, "batch_size": 128, "learning_rate": 1e-2, "beta2": 0.999}
        training |= {"gradient_clip": NO_CLIP, "log_every": 500} | self.training
        task = TaskConfig.model_validate({"dim": 4, "num_examples": 12} | self.task)
        return Recipe(task, model, TrainingConfig.model_validate(training), 0)


def settings() -> Iterator[Setting]:
    """All that is trained; those of one shape train in one stack."""
    yield Setting("plain", {})
    yield Setting("noise 1", {"noise_std": 1.0})
    yield Setting("inputs in two groups", {"inputs": "normal*1+0.5,normal*1+-0.5"})
    yield Setting("weights in two groups", {"weights": "normal*0.5+1,normal*0.5+-1"})
    yield Setting("uniform inputs", {"inputs": "uniform*3.4641+-1.73205"})
    yield Setting("likelihood", {"noise_std": 0.5}, training={"loss": "likelihood"})
    yield Setting(
        "sums, not means", {}, {"normalization": "none"}, training={"learning_rate": 3e-3}
    )
    yield Setting("d = 2", {"dim": 2})
    yield Setting("d = 8", {"dim": 8})
    for form in ("preconditioned", "full"):
        for size in POOLS:
            task = {"dim": 8, "num_examples": 17, "noise_std": 0.5, "pool_size": size}
            yield Setting(f"pool of {size}, {form}", task, {"matrices": form}, {"batch_size": 64})


@dataclass(frozen=True)
class Theory:
    """The closed form for a recipe: Γ*, the weights of the prefixes, the risks."""

    moments: TaskMoments
    scales: Tensor
    prefixes: Tensor
    step: Tensor

    @classmethod
    def of(cls, recipe: Recipe) -> "Theory":
        """For the loss that the recipe trains with."""
        moments, size = TaskMoments.of(recipe.task), recipe.task.num_examples
        scales = prefix_scales(size, recipe.model.model_dump()["normalization"])
        if recipe.training.loss == "likelihood":
            floor = recipe.training.loss_floor
            step, prefixes = optimal_step_by_likelihood(moments, scales, floor)
        else:
            prefixes = torch.ones(size, dtype=torch.float64)
            step = optimal_step(moments, prefixes, scales)
        return cls(moments, scales, prefixes, step)

    def risk(self, step: Tensor, moments: TaskMoments | None = None) -> Tensor:
        """R_k of a step, (n,): on the task's own prompts, or on those of other moments."""
        return step_risk(step, moments or self.moments, self.scales)

    def agreement(self, step: Tensor) -> dict[str, float]:
        """How a learned Γ agrees with Γ*."""
        best, found = (float(self.prefixes @ self.risk(one)) for one in (self.step, step))
        size = (step * self.step).sum() / self.step.square().sum()
        off = (step - self.step).norm() / self.step.norm()
        return {"size": size.item(), "off": off.item(), "excess": found / best - 1}


def new_tasks(task: TaskConfig) -> TaskConfig:
    """The same task without its pool."""
    return task.model_copy(update={"pool_size": None})


@torch.no_grad()
def measure(learner: Learner, task: TaskConfig, seed: int) -> np.ndarray:
    """Mean squared error at every k (n,), on fresh prompts."""
    total = np.zeros(task.num_examples)
    for part in range(NUM_PROMPTS // AT_ONCE):
        xs, ys, _ = draw_prompts(task, AT_ONCE, seed, part, stream="evaluation")
        total += (learner.model(xs, ys) - ys).double().square().mean(0).numpy()
    return total * AT_ONCE / NUM_PROMPTS


def train_together(recipes: list[Recipe]) -> list[Learner]:
    """Train a stack, and refuse one in which a learner diverged."""
    ended = train_stacked(recipes, "cpu")
    sound = [one for one in ended if isinstance(one, Learner)]
    if len(sound) < len(ended):
        raise RuntimeError(f"{len(ended) - len(sound)} of {len(ended)} learners diverged")
    return sound


def study(setting: Setting, learners: list[Learner]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of one setting in both tables."""
    recipe, theory = setting.recipe, Theory.of(setting.recipe)
    known = {"setting": setting.name, "dim": recipe.task.dim}
    steps = [
        known | {"seed": seed} | theory.agreement(learned_step(one.model))  # pyright: ignore
        for seed, one in enumerate(learners)
    ]
    kinds = {"own tasks": recipe.task}
    if recipe.task.pool_size is not None:
        kinds["new tasks"] = new_tasks(recipe.task)
    risks = []
    for kind, task in kinds.items():
        errors = np.stack([measure(one, task, 1000 + seed) for seed, one in enumerate(learners)])
        table = mean_interval(errors, BootstrapConfig(), 0)[["mean", "low", "high"]]
        expected = theory.risk(theory.step, TaskMoments.of(task)).numpy()
        own = known | {"prompts": kind, "k": np.arange(len(expected)), "seeds": len(learners)}
        risks.append(table.assign(**own, theory=expected))
    return pd.DataFrame(steps), pd.concat(risks)


def run(chosen: list[Setting], seeds: int, steps: int | None) -> Iterator[list[pd.DataFrame]]:
    """Train all settings of one shape together; both tables so far, after each stack."""
    stacks: dict[Any, list[Setting]] = {}
    for setting in chosen:
        stacks.setdefault(stack_key(setting.recipe), []).append(setting)
    tables = []
    for members in stacks.values():
        recipes = []
        for recipe in (member.recipe for member in members):
            update = {} if steps is None else {"num_steps": steps}
            training = recipe.training.model_copy(update=update)
            recipes += [Recipe(recipe.task, recipe.model, training, s) for s in range(seeds)]
        learners = train_together(recipes)
        for place, member in enumerate(members):
            tables.append(study(member, learners[place * seeds : (place + 1) * seeds]))
        yield [pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True)]


def summary(steps: pd.DataFrame, risks: pd.DataFrame) -> str:
    """A Markdown row a setting: size of Γ with its interval, and how the risks agree."""
    lines = ["| setting | seeds | size of Γ | off | excess | risks within | largest deviation |"]
    lines.append("|---|--:|---|---|---|---|---|")
    for name, part in steps.groupby("setting", sort=False):
        low, high = _student(part["size"])
        own = risks[(risks["setting"] == name) & (risks["k"] > 0)]
        within = ((own["low"] <= own["theory"]) & (own["theory"] <= own["high"])).sum()
        deviation = (own["mean"] / own["theory"] - 1).abs().max()
        lines.append(
            f"| {name} | {len(part)} | {part['size'].mean():.4f} [{low:.4f}, {high:.4f}] | "
            f"{part['off'].mean():.4f} | {part['excess'].mean():.1e} | {within} of {len(own)} | "
            f"{deviation:.2%} |"
        )
    return "\n".join(lines)


def _student(values: pd.Series) -> tuple[float, float]:
    """95 % interval of a mean over seeds."""
    table = mean_interval(values.to_numpy()[:, None], BootstrapConfig(), 0).iloc[0]
    return table["low"], table["high"]


def draw(steps: pd.DataFrame, risks: pd.DataFrame, path: Path) -> None:
    """Risk along k, sizes of Γ, and risk along the number of tasks."""
    seeds = risks["seeds"].iloc[0]
    run = f"one layer of linear attention · {seeds} trainings each, intervals over them"
    figure, (curves, sizes, pools) = panel_grid(3, 3, (4.0, 4.0), extra=(0.0, 0.2), run=run)
    _draw_curves(curves, risks)
    plain = steps[~steps["setting"].str.startswith("pool")]
    for row, (_, part) in enumerate(plain.groupby("setting", sort=False)):
        low, high = _student(part["size"])
        sizes.plot(part["size"], [row] * len(part), "|", color=MUTED)
        sizes.plot([low, high], [row, row], color=PALETTE[0], lw=2)
    names = list(plain["setting"].unique())
    sizes.set_yticks(range(len(names)), names)
    sizes.invert_yaxis()
    sizes.axvline(1, color=INK, lw=0.8)
    prepare_axes(sizes, "The learned step", "size of the learned Γ; closed form: 1", "")
    _draw_pools(pools, risks)
    figure.savefig(path, dpi=110)


def _draw_curves(axes: Any, risks: pd.DataFrame) -> None:
    for color, (name, words) in zip(
        PALETTE,
        {"d = 2": "d = 2", "plain": "d = 4", "noise 1": "d = 4, σ = 1", "d = 8": "d = 8"}.items(),
        strict=False,
    ):
        own = risks[risks["setting"] == name]
        if own.empty:
            continue
        axes.plot(own["k"], own["theory"], color=color, lw=1, label=words)
        errors = (own["mean"] - own["low"], own["high"] - own["mean"])
        axes.errorbar(own["k"], own["mean"], yerr=errors, fmt=".", color=color)
    prepare_axes(axes, "Lines: closed form", "examples seen, k", "squared error")
    legend_under(axes, 4)


def _draw_pools(axes: Any, risks: pd.DataFrame) -> None:
    """Mean over k ≥ 1 of the risk, over the pool and over new tasks."""
    own = risks[risks["setting"].str.startswith("pool") & (risks["k"] > 0)].copy()
    own[["size", "form"]] = own["setting"].str.extract(r"pool of (\d+), (\w+)")
    own["size"] = own["size"].astype(int)
    task = next(s for s in settings() if s.name.startswith("pool")).recipe.task
    scales = prefix_scales(task.num_examples, "examples")
    many = np.geomspace(min(POOLS), max(POOLS), 60).round().astype(int)
    limits = [
        pooled_step_risk(task.dim, int(m), task.noise_std, torch.ones_like(scales), scales)
        for m in many
    ]
    for color, kind, number in ((PALETTE[0], "own tasks", 0), (PALETTE[1], "new tasks", 1)):
        curve = [limit[number][1:].mean().item() for limit in limits]
        axes.plot(many, curve, ":", color=color, lw=1)
        for form, mark in (("preconditioned", "o"), ("full", "x")):
            part = own[(own["prompts"] == kind) & (own["form"] == form)]
            means = part.groupby("size")[["mean", "theory"]].mean()
            axes.plot(means.index, means["mean"], mark, color=color, label=f"{kind}, {form}")
        theory = own[own["prompts"] == kind].groupby("size")["theory"].mean()
        axes.plot(theory.index, theory, color=color, lw=1)
    axes.set(xscale="log", yscale="log")
    title = "Lines: closed form; dotted: its limit"
    prepare_axes(axes, title, "tasks in the pool, M", "squared error, mean over k ≥ 1")
    legend_under(axes)


def main() -> None:
    """Train, measure, save, draw; or draw alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="settings whose name holds one of these")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of training, instead of each setting's own")
    parser.add_argument("--output", type=Path, default=DOCS / "results")
    parser.add_argument("--draw", action="store_true", help="draw the saved tables, train nothing")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.draw:
        wanted = arguments.only or [""]
        chosen = [s for s in settings() if any(part in s.name for part in wanted)]
        for tables in run(chosen, arguments.seeds, arguments.steps):
            for table, name in zip(tables, (STEPS, RISKS), strict=True):
                table.to_csv(arguments.output / name, index=False, float_format="%.5g")
    steps, risks = (pd.read_csv(arguments.output / name) for name in (STEPS, RISKS))
    print(summary(steps, risks))
    if arguments.only is None:
        figures = DOCS / "figures" if arguments.output == DOCS / "results" else arguments.output
        draw(steps, risks, figures / "theory.png")


if __name__ == "__main__":
    main()
