"""Learners whose algorithm is known before they are trained: ``python -m
benchmarks.positive_controls``.

A method that names a learner's algorithm must name these right:

- ``one_layer``: one layer of linear attention is one (preconditioned) gradient step, of a size
known in
  closed form (Ahn et al. 2023, theorem 1, here for the mean of the loss over prefixes);
- ``depth``: L layers of linear attention are L steps, of GD or of GD++ (von Oswald et al. 2023);
- ``tokens``: one softmax layer on the paper's tokens, and on joint ones;
- ``scales``: a learner trained on several scales of x and w keeps to least squares further out;
- ``clusters``: where w comes from two clusters, the Bayes predictor is not a ridge regression.

Every learner is trained for some seeds on a CPU. Candidates' free numbers are fitted to the learner
on calibration prompts, and its squared prediction difference (SPD) to each is measured on others,
as a share of Var(y), mean over k = 1 … n−1. ``--table`` prints the table of a finished run.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.learner.registry import build_learner
from incontext_linear.predictors import FirstExamples, OrdinaryLeastSquares, Ridge
from incontext_linear.predictors.batching import grams_before, moments_before
from incontext_linear.predictors.mixture_bayes import MixturePosteriorMean
from incontext_linear.predictors.optimal_step import TaskMoments, optimal_step, prefix_scales
from incontext_linear.tasks import Prompts, draw_prompts, generator

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "positive_controls.csv"
CALIBRATION, SCORED = 2048, 4096
PENALTIES = np.geomspace(1e-3, 1e3, 37)
STEP_SIZES = np.geomspace(1e-3, 3.0, 36)
NUM_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
COVARIANCE_STDS = (2.0, 1.0, 0.5)
NO_CLIP = 1e6
SCALES = (0.5, 1.0, 2.0, 3.0, 5.0)

Predictor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Distribution:
    """A task, and what multiplies its x and w: by coordinate, and at a test."""

    task: TaskConfig
    input_stds: tuple[float, ...] | None = None
    shift: tuple[float, float] = (1.0, 1.0)
    """Multiplies all x, and all w: a test's shift."""

    def draw(self, num_prompts: int, seed: int, step: int = 0, stream: str = "training") -> Prompts:
        """Prompts in float32; as `draw_prompts`, a pure function of its arguments."""
        plain = draw_prompts(self.task, num_prompts, seed, step, stream)
        noise = plain.ys - (plain.xs @ plain.ws.unsqueeze(-1)).squeeze(-1)
        xs = plain.xs * self.shift[0]
        if self.input_stds is not None:
            xs = xs * torch.tensor(self.input_stds)
        ws = plain.ws * self.shift[1]
        return Prompts(xs, (xs @ ws.unsqueeze(-1)).squeeze(-1) + noise, ws)


@dataclass(frozen=True)
class Control:
    """One learner to be trained, and what it is trained on."""

    experiment: str
    learner: str
    model: dict[str, Any]
    distribution: Distribution
    num_steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3
    gradient_clip: float = 1.0
    """Linear learners are not clipped: it favours small prompts, and made Γ 1 to 3 % too large."""
    families: tuple[str, ...] = ()
    """Families that are tried beside those tried on every learner."""
    seeds: int = 3

    @property
    def name(self) -> str:
        """Experiment and learner."""
        return f"{self.experiment}: {self.learner}"


# --- training ----------------------------------------------------------------------------------


def train(control: Control, seed: int) -> nn.Module:
    """Train by AdamW on the mean squared error of all prefixes; warm-up, then cosine to 0."""
    task = control.distribution.task
    model = build_learner(task.dim, task.num_examples, LearnerConfig.model_validate(control.model))
    model.initialize(generator(seed, "weights"))
    optimizer = torch.optim.AdamW(
        model.parameters(), control.learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    warmup = control.num_steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / control.num_steps))
        ),
    )
    for step in range(control.num_steps):
        xs, ys, _ = control.distribution.draw(control.batch_size, seed, step)
        loss = (model(xs, ys) - ys).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), control.gradient_clip)
        optimizer.step()
        schedule.step()
    return model.eval().double()


# --- candidates --------------------------------------------------------------------------------


def share(difference: Tensor, ys: Tensor) -> float:
    """Mean square over prompts and k ≥ 1, as a share of Var(y)."""
    return (difference[:, 1:].square().mean() / ys[:, 1:].square().mean()).item()


def moments(xs: Tensor, ys: Tensor, normalized: bool) -> Tensor:
    """Xᵀy of every prefix, or Xᵀy / k: (B, n, d)."""
    seen = torch.arange(xs.shape[1]).clamp(min=1)[:, None] if normalized else 1
    return moments_before(xs, ys) / seen


def descend(
    xs: Tensor,
    ys: Tensor,
    step_sizes: Tensor,
    changes: Tensor | None = None,
    normalized: bool = True,
) -> Tensor:
    """Predictions after some steps; with ``changes`` γ, those of GD++, x ← (I − γ s_k XᵀX) x."""
    seen = torch.arange(xs.shape[1]).clamp(min=1) if normalized else torch.ones(xs.shape[1])
    gram = grams_before(xs) / seen[:, None, None]
    moment = (moments_before(xs, ys) / seen[:, None]).unsqueeze(-1)
    weights, change = torch.zeros_like(moment), None
    for layer, size in enumerate(step_sizes):
        slope = moment - gram @ weights
        if changes is not None and layer:
            last = changes[layer - 1]
            once = last * (gram if change is None else change @ gram @ change)
            identity = torch.eye(xs.shape[2], dtype=xs.dtype)
            change = identity - once if change is None else (identity - once) @ change
            slope = change @ change @ slope
        weights = weights + size * slope
    return (weights.squeeze(-1) * xs).sum(-1)


def fit_steps(
    predictions: Tensor, xs: Tensor, ys: Tensor, num_steps: int, plus_plus: bool
) -> Tensor:
    """The step sizes, and the γ of the inputs' changes, nearest to the predictions: (2, steps)."""
    best, fitted = math.inf, torch.zeros(2, num_steps)
    for start in (0.3, 0.6):
        # Steps of equal size are a saddle point of the fit, so the start has unequal ones.
        sizes = start * torch.linspace(0.5, 1.5, num_steps, dtype=torch.float64)
        numbers = torch.stack((sizes, torch.zeros_like(sizes))) / xs.square().mean()
        numbers.requires_grad_()
        optimizer = torch.optim.LBFGS([numbers], max_iter=60, line_search_fn="strong_wolfe")

        def closure(numbers=numbers, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            answer = descend(xs, ys, numbers[0], numbers[1] if plus_plus else None)
            loss = (answer - predictions).square().mean() / ys.square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        loss = closure().item()
        if loss < best:
            best, fitted = loss, numbers.detach().clone()
    return fitted


def best_step(distribution: Distribution, normalized: bool) -> Tensor:
    """Γ of the step w = s_k Γ Xᵀy that is best in the mean over k; w ~ N(0, I), x ~ N(0, V)."""
    task = distribution.task
    stds = torch.tensor(distribution.input_stds or (1.0,) * task.dim, dtype=torch.float64)
    identity = torch.eye(task.dim, dtype=torch.float64)
    moments = TaskMoments.normal(torch.diag(stds.square()), identity)
    prefixes = torch.ones(task.num_examples, dtype=torch.float64)
    scales = prefix_scales(task.num_examples, "examples" if normalized else "none")
    return optimal_step(moments, prefixes, scales)


def nearest(predictions: Tensor, ys: Tensor, members: Iterator[tuple[str, Tensor]]) -> str:
    """The label of the family's member nearest to the predictions."""
    return min((share(answer - predictions, ys), label) for label, answer in members)[1]


def fit_candidates(
    control: Control, predictions: Tensor, xs: Tensor, ys: Tensor
) -> dict[str, tuple[str, Predictor]]:
    """Every candidate with its free numbers fitted to the learner's predictions.

    Returns:
        Name → (the fitted numbers, predictor).
    """
    found: dict[str, tuple[str, Predictor]] = {
        "zero": ("", lambda xs, ys: torch.zeros_like(ys)),
        "ols": ("", OrdinaryLeastSquares()),
        **{f"first_{m}": ("", FirstExamples(m)) for m in (1, 2, 4)},
    }
    found |= _fit_ridge(predictions, xs, ys) | _fit_one_step(predictions, xs, ys)
    found |= _fit_descent(predictions, xs, ys)
    for family in control.families:
        found |= FAMILIES[family](control, predictions, xs, ys)
    return found


def _fit_ridge(predictions: Tensor, xs: Tensor, ys: Tensor) -> dict[str, tuple[str, Predictor]]:
    members = ((f"{penalty:.4g}", Ridge(float(penalty))(xs, ys)) for penalty in PENALTIES)
    penalty = nearest(predictions, ys, members)
    return {"ridge": (f"λ={penalty}", Ridge(float(penalty)))}


def _fit_one_step(predictions: Tensor, xs: Tensor, ys: Tensor) -> dict[str, tuple[str, Predictor]]:
    """w = cXᵀy and w = ΓXᵀy, with and without 1/k, and w = c(k)Xᵀy with a size for each k."""
    found: dict[str, tuple[str, Predictor]] = {}
    for name, normalized in (("step", False), ("step/k", True)):
        moment = moments(xs, ys, normalized)
        plain = (moment * xs).sum(-1)
        size = ((plain * predictions).sum() / plain.square().sum()).item()
        found[name] = (
            f"c={size:.4g}",
            lambda xs, ys, c=size, n=normalized: c * (moments(xs, ys, n) * xs).sum(-1),
        )
        products = (xs.unsqueeze(-1) * moment.unsqueeze(-2)).flatten(2).flatten(0, 1)
        gamma = torch.linalg.lstsq(products, predictions.flatten()[:, None]).solution
        gamma = gamma.view(xs.shape[2], -1)
        found[f"preconditioned {name}"] = (
            "Γ=" + " ".join(f"{value:.4g}" for value in gamma.flatten().tolist()),
            lambda xs, ys, g=gamma, n=normalized: ((moments(xs, ys, n) @ g.T) * xs).sum(-1),
        )
    plain = (moments(xs, ys, False) * xs).sum(-1)
    sizes = (plain * predictions).sum(0) / plain.square().sum(0).clamp(min=1e-300)
    found["step c(k)"] = (
        "c=" + " ".join(f"{value:.4g}" for value in sizes[1:].tolist()),
        lambda xs, ys: sizes * (moments(xs, ys, False) * xs).sum(-1),
    )
    return found


def _fit_descent(predictions: Tensor, xs: Tensor, ys: Tensor) -> dict[str, tuple[str, Predictor]]:
    """Gradient descent of one step size: nearest over sizes, numbers of steps, 1/k or not."""
    members = (
        (
            f"{normalized} {steps} {size:.4g}",
            descend(xs, ys, torch.full((steps,), size), None, normalized),
        )
        for normalized in (True, False)
        for steps in NUM_STEPS
        for size in STEP_SIZES / xs.square().mean().item()
    )
    normalized, steps, size = nearest(predictions, ys, members).split()
    sizes, by_k = torch.full((int(steps),), float(size)), normalized == "True"
    label = f"m={steps} 2α={size}{'/k' if by_k else ''}"
    return {"gd": (label, lambda xs, ys: descend(xs, ys, sizes, None, by_k))}


def _optimum(control: Control, *_) -> dict[str, tuple[str, Predictor]]:
    normalized = control.model.get("normalization", "examples") == "examples"
    gamma = best_step(control.distribution, normalized)
    label = "Γ=diag " + " ".join(f"{value:.4g}" for value in gamma.diagonal().tolist())
    return {
        "optimal step (theory)": (
            label,
            lambda xs, ys: ((moments(xs, ys, normalized) @ gamma.T) * xs).sum(-1),
        )
    }


def _free_steps(
    control: Control, predictions: Tensor, xs: Tensor, ys: Tensor
) -> dict[str, tuple[str, Predictor]]:
    """GD and GD++ of as many steps as the learner has layers, each step of a size of its own."""
    found: dict[str, tuple[str, Predictor]] = {}
    num_steps = control.model["num_layers"]
    for name, plus_plus in (("gd, free sizes", False), ("gd++, free sizes", True)):
        sizes, changes = fit_steps(predictions[:1024], xs[:1024], ys[:1024], num_steps, plus_plus)
        used = torch.cat((sizes, changes[:-1])) if plus_plus else sizes
        found[f"{name}, m={num_steps}"] = (
            " ".join(f"{value:.4g}" for value in used.tolist()),
            lambda xs, ys, a=sizes, g=changes if plus_plus else None: descend(xs, ys, a, g),
        )
    return found


def _priors(
    control: Control, predictions: Tensor, xs: Tensor, ys: Tensor
) -> dict[str, tuple[str, Predictor]]:
    """The Bayes predictor of the clusters, and the linear estimators that could pass for it."""
    task = control.distribution.task
    bayes = MixturePosteriorMean.of_task(task)
    scatter = torch.cov(bayes.means.T, correction=0) + bayes.stds.square().mean() * torch.eye(
        task.dim
    )
    center = bayes.means.mean(0)
    root = torch.linalg.cholesky(scatter.double())

    def around(xs: Tensor, ys: Tensor, penalty: float, transform: Tensor) -> Tensor:
        return xs @ center + Ridge(penalty)(xs @ transform, ys - xs @ center)

    identity = torch.eye(task.dim, dtype=torch.float64)
    members = ((f"{p:.4g}", around(xs, ys, float(p), identity)) for p in PENALTIES)
    to_mean = float(nearest(predictions, ys, members))
    members = ((f"{p:.4g}", around(xs, ys, float(p), root)) for p in PENALTIES)
    shaped = float(nearest(predictions, ys, members))
    return {
        "bayes (clusters)": ("", bayes),
        "ridge to the mean": (f"λ={to_mean:.4g}", lambda xs, ys: around(xs, ys, to_mean, identity)),
        "best linear (prior's covariance)": (
            f"λ={shaped:.4g}",
            lambda xs, ys: around(xs, ys, shaped, root),
        ),
    }


FAMILIES: dict[str, Callable[..., dict[str, tuple[str, Predictor]]]] = {
    "optimum": _optimum,
    "free_steps": _free_steps,
    "priors": _priors,
}


# --- measurements ------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: nn.Module, prompts: Prompts) -> Tensor:
    """The learner's predictions in float64."""
    return model(prompts.xs, prompts.ys)


def measure(control: Control, model: nn.Module, seed: int) -> list[dict[str, Any]]:
    """SPD of the learner to every candidate and to y, on its training distribution."""
    kinds = (("calibration", CALIBRATION), ("evaluation", SCORED))
    calibration, scored = (
        control.distribution.draw(number, seed, stream=stream).to(torch.float64)
        for stream, number in kinds
    )
    found = fit_candidates(control, predict(model, calibration), calibration.xs, calibration.ys)
    predictions = predict(model, scored)
    rows = [row(control, seed, "training", "y", "", share(predictions - scored.ys, scored.ys))]
    for name, (fitted, predictor) in found.items():
        difference = predictions - predictor(scored.xs, scored.ys)
        rows.append(row(control, seed, "training", name, fitted, share(difference, scored.ys)))
    if "priors" in control.families:
        rows += margins(control, seed, predictions, scored, found)
    return rows


def margins(
    control: Control, seed: int, predictions: Tensor, scored: Prompts, found: dict[str, Any]
) -> list[dict[str, Any]]:
    """SPD to each linear estimator over SPD to Bayes, with its 95 % interval over prompts."""
    errors = {
        name: (predictions - predictor(scored.xs, scored.ys))[:, 1:].square().mean(1).numpy()
        for name, (_, predictor) in found.items()
    }
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(SCORED, np.full(SCORED, 1 / SCORED), size=1000)
    bayes = errors["bayes (clusters)"]
    rows = []
    for name in ("ridge", "ridge to the mean", "best linear (prior's covariance)", "ols"):
        ratios = (counts @ errors[name]) / (counts @ bayes)
        low, high = np.quantile(ratios, [0.025, 0.975])
        ratio = errors[name].mean() / bayes.mean()
        rows.append(row(control, seed, "ratio to bayes", name, f"[{low:.3g}, {high:.3g}]", ratio))
    return rows


def measure_shifts(control: Control, model: nn.Module, seed: int) -> list[dict[str, Any]]:
    """SPD to least squares, as a share of the shifted Var(y), where all x, or w, are scaled."""
    rows = []
    shifts = [(scale, 1.0) for scale in SCALES] + [(1.0, scale) for scale in SCALES if scale != 1]
    shifts += [(3.0, 1 / 3), (3.0, 3.0)]
    base = TaskConfig(
        dim=control.distribution.task.dim, num_examples=control.distribution.task.num_examples
    )
    for shift in shifts:
        prompts = (
            Distribution(base, shift=shift).draw(SCORED, seed, stream="shift").to(torch.float64)
        )
        difference = predict(model, prompts) - OrdinaryLeastSquares()(prompts.xs, prompts.ys)
        condition = f"x*{shift[0]:.3g} w*{shift[1]:.3g}"
        rows.append(row(control, seed, condition, "ols", "", share(difference, prompts.ys)))
    return rows


def row(
    control: Control, seed: int, condition: str, candidate: str, fitted: str, value: float
) -> dict:
    """One line of the results."""
    return {
        "experiment": control.experiment,
        "learner": control.learner,
        "seed": seed,
        "condition": condition,
        "candidate": candidate,
        "fitted": fitted,
        "spd_share": value,
    }


def run(job: tuple[Control, int]) -> tuple[str, float, list[dict[str, Any]]]:
    """Train one learner and measure it, on one thread."""
    control, seed = job
    torch.set_num_threads(1)
    start = time.process_time()
    model = train(control, seed)
    seconds = time.process_time() - start
    rows = measure(control, model, seed)
    if control.experiment == "scales":
        rows += measure_shifts(control, model, seed)
    return f"{control.name}, seed {seed}", seconds, rows


# --- the learners ------------------------------------------------------------------------------


def controls() -> list[Control]:
    """All learners of all experiments."""
    return [*_one_layer(), *_depth(), *_tokens(), *_scales(), *_clusters()]


def _one_layer() -> Iterator[Control]:
    task = TaskConfig(dim=3, num_examples=12)
    for inputs, stds in (("isotropic", None), ("anisotropic", COVARIANCE_STDS)):
        for normalization, scale in (("examples", "1/k"), ("none", "1")):
            # With one layer both contexts are the same function; the causal one is cheaper.
            model = {
                "type": "linear_attention",
                "context": "causal",
                "normalization": normalization,
            }
            yield Control(
                "one_layer",
                f"linear attention, s_k={scale}, {inputs}",
                model,
                Distribution(task, stds),
                num_steps=2000,
                batch_size=128,
                learning_rate=1e-2 if normalization == "examples" else 3e-3,
                gradient_clip=NO_CLIP,
                families=("optimum",),
            )


def _depth() -> Iterator[Control]:
    # Predictions are polynomials of degree 2·3^L − 1 in x: with normal x, a few prompts decide the
    # mean of the loss and of the SPD (from L = 2 on). Bounded x of the same variance have no tail.
    task = TaskConfig(dim=3, num_examples=10, inputs="uniform*3.4641+-1.73205")
    forms = [(2, "preconditioned"), (2, "gd_plus_plus"), (2, "full"), (4, "preconditioned")]
    for num_layers, matrices in forms:
        yield Control(
            "depth",
            f"linear attention, {matrices}, L={num_layers}",
            {"type": "linear_attention", "num_layers": num_layers, "matrices": matrices},
            Distribution(task),
            num_steps=3000 if matrices == "full" else 1500,
            learning_rate=5e-3 if matrices == "full" else 1e-2,
            families=("free_steps",),
        )


def _tokens() -> Iterator[Control]:
    for kind, name in (("transformer", "interleaved"), ("joint_transformer", "joint")):
        yield Control(
            "tokens",
            f"softmax attention, {name} tokens, L=1",
            {"type": kind, "num_layers": 1, "num_heads": 4, "width": 64},
            Distribution(TaskConfig(dim=2, num_examples=8)),
            num_steps=2000,
        )


def _scales() -> Iterator[Control]:
    sizes = {"dim": 2, "num_examples": 8}
    both = "normal*1+0,normal*3+0"
    trained_on = {
        "one scale": Distribution(TaskConfig(**sizes)),
        "each x and each w at scale 1 or 3": Distribution(
            TaskConfig(inputs=both, weights=both, **sizes)
        ),
    }
    for name, distribution in trained_on.items():
        model = {"type": "transformer", "num_layers": 3, "num_heads": 2, "width": 32}
        yield Control("scales", name, model, distribution, num_steps=12000)


def _clusters() -> Iterator[Control]:
    clusters = "normal*0.3+2,normal*0.3+-2"
    task = TaskConfig(dim=2, num_examples=8, noise_std=1.0, weights=clusters)
    model = {"type": "transformer", "num_layers": 3, "num_heads": 2, "width": 32}
    yield Control(
        "clusters", "w in two clusters", model, Distribution(task), families=("priors",), seeds=5
    )


def summary(results: pd.DataFrame) -> str:
    """Geometric mean and range over seeds, a line a learner, condition and candidate."""
    lines = [
        "| learner | condition | candidate | SPD / Var(y) | lowest | highest | seeds | fitted |"
    ]
    lines.append("|" + "---|" * 8)
    keys = ["experiment", "learner", "condition"]
    for (experiment, learner, condition), part in results.groupby(keys, sort=False):
        by_candidate = part.groupby("candidate", sort=False)
        order = by_candidate["spd_share"].mean().sort_values(kind="stable").index
        for candidate in order:
            rows = by_candidate.get_group(candidate)
            values = rows["spd_share"].clip(lower=1e-300)
            fitted = rows["fitted"].iloc[0]
            lines.append(
                f"| {experiment}: {learner} | {condition} | {candidate} | "
                f"{np.exp(np.log(values).mean()):.3g} | {values.min():.3g} | {values.max():.3g} | "
                f"{len(rows)} | {fitted} |"
            )
    return "\n".join(lines)


def load(path: Path) -> pd.DataFrame:
    """The results, as `save` wrote them."""
    return pd.read_csv(path, dtype={"fitted": "string"}).fillna({"fitted": ""})


def save(rows: pd.DataFrame, path: Path) -> None:
    """Put one training's rows into the results, in place of those of that learner and seed."""
    if path.exists():
        older, keys = load(path), ["experiment", "learner", "seed"]
        known = pd.MultiIndex.from_frame(older[keys]).isin(pd.MultiIndex.from_frame(rows[keys]))
        rows = pd.concat((older[~known], rows))
    place = {control.name: index for index, control in enumerate(controls())}
    order = (rows["experiment"] + ": " + rows["learner"]).map(place).fillna(len(place))
    rows = rows.assign(order=order).sort_values(["order", "seed"], kind="stable")
    rows.drop(columns="order").to_csv(path, index=False, float_format="%.6g")


def main() -> None:
    """Train and measure, or print the table of a finished run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="run learners whose name holds one of these")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seeds", type=int, help="instead of each experiment's own number")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--table", action="store_true", help="print the table of --output, run nothing"
    )
    arguments = parser.parse_args()
    if not arguments.table:
        wanted = arguments.only or [""]
        chosen = [c for c in controls() if any(name in c.name for name in wanted)]
        jobs = [(c, seed) for c in chosen for seed in range(arguments.seeds or c.seeds)]
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            for done, (name, seconds, rows) in enumerate(pool.imap_unordered(run, jobs), start=1):
                print(f"{done}/{len(jobs)} {name}: trained in {seconds:.0f} s of CPU", flush=True)
                save(pd.DataFrame(rows), arguments.output)
    print(summary(load(arguments.output)))


if __name__ == "__main__":
    main()
