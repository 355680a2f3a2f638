"""Microseconds a fit of every predictor, beside what people run today: ``python -m
benchmarks.predictors``.

A fit is one prompt at one prefix. Three programs answer the same prompts in the same process: ours;
a Python loop over prompts and prefixes that calls scikit-learn, as the paper's code does; and a
Python loop over prefixes that calls batched PyTorch functions, as Garg et al.'s code does. Prints
one table; writes ``results/benchmarks.md`` and ``figures/benchmark_predictors.png`` into the folder
given by ``--output``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LinearRegression, SGDRegressor
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from incontext_linear.figures.style import styles
from incontext_linear.predictors import (
    Averaging,
    BayesPosteriorMean,
    DiscreteMMSE,
    GradientDescent,
    IterativeNewton,
    NearestNeighbors,
    OnePassSGD,
    OrdinaryLeastSquares,
    Predictor,
    Ridge,
)

NUM_PROMPTS, NUM_EXAMPLES, DIM, NOISE_STD = 1024, 40, 8, 0.5
SKLEARN_PROMPTS = 4
STEP_SIZE, PENALTY = 0.01, 0.1
POOL = torch.randn(64, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Comparison(NamedTuple):
    """One predictor and its two counterparts.

    Attributes:
        name: as the table shows it.
        ours: the predictor.
        estimator: makes scikit-learn's estimator for a prefix of k examples; None where it has
            none.
        batched: predicts y_k of all prompts (B,) from their first k examples; arguments X (B, k,
            d), y (B, k) and queries (B, d).
        goal: microseconds a fit that we set out to need at most.
    """

    name: str
    ours: Predictor
    estimator: Callable[[int], object] | None
    batched: Callable[[Tensor, Tensor, Tensor], Tensor]
    goal: float | None


def batched_least_squares(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    return dot(torch.linalg.lstsq(x, y.unsqueeze(-1)).solution.squeeze(-1), query)


def batched_ridge(penalty: float, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    gram = x.mT @ x + penalty * torch.eye(x.shape[-1], dtype=x.dtype)
    return dot(torch.linalg.solve(gram, moment(x, y)), query)


def batched_gradient_step(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    return dot(2 * STEP_SIZE * moment(x, y), query)


def batched_sgd(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    weights = torch.zeros_like(query)
    for k in range(x.shape[1]):
        weights = weights - 2 * STEP_SIZE * x[:, k] * (dot(x[:, k], weights) - y[:, k]).unsqueeze(
            -1
        )
    return dot(weights, query)


def batched_neighbors(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    distances = torch.cdist(query.unsqueeze(1), x).squeeze(1)
    nearest = distances.topk(min(3, x.shape[1]), largest=False).indices
    return y.gather(1, nearest).mean(1)


def batched_newton(num_steps: int, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    gram = x.mT @ x
    inverse = gram / gram.square().sum((-2, -1), keepdim=True)
    for _ in range(num_steps):
        inverse = 2 * inverse - inverse @ gram @ inverse
    return dot((inverse @ moment(x, y).unsqueeze(-1)).squeeze(-1), query)


def batched_averaging(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    return dot(moment(x, y) / x.shape[1], query)


def batched_mmse(x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    errors = (y.unsqueeze(-1) - x @ POOL.T).square().sum(1)
    return dot((-errors / (2 * NOISE_STD**2)).softmax(-1) @ POOL, query)


def dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1)


def moment(x: Tensor, y: Tensor) -> Tensor:
    return (x.mT @ y.unsqueeze(-1)).squeeze(-1)


def sklearn_sgd(k: int) -> SGDRegressor:
    rate: dict[str, Any] = {"learning_rate": "constant", "eta0": 2 * STEP_SIZE, "penalty": None}
    return SGDRegressor(fit_intercept=False, shuffle=False, max_iter=1, tol=None, **rate)


def sklearn_ridge(penalty: float, k: int) -> SklearnRidge:
    return SklearnRidge(penalty, fit_intercept=False)


COMPARISONS = (
    Comparison(
        "OrdinaryLeastSquares()",
        OrdinaryLeastSquares(),
        lambda k: LinearRegression(fit_intercept=False),
        batched_least_squares,
        1.0,
    ),
    Comparison(
        "Ridge(0.1)",
        Ridge(PENALTY),
        partial(sklearn_ridge, PENALTY),
        partial(batched_ridge, PENALTY),
        0.4,
    ),
    Comparison(
        "BayesPosteriorMean(0.5, 1)",
        BayesPosteriorMean(NOISE_STD, 1.0),
        partial(sklearn_ridge, NOISE_STD**2),
        partial(batched_ridge, NOISE_STD**2),
        0.4,
    ),
    Comparison(
        "GradientDescent(0.01, 1)", GradientDescent(STEP_SIZE, 1), None, batched_gradient_step, 0.3
    ),
    Comparison("OnePassSGD(0.01)", OnePassSGD(STEP_SIZE), sklearn_sgd, batched_sgd, 0.3),
    Comparison(
        "NearestNeighbors(3)",
        NearestNeighbors(3),
        lambda k: KNeighborsRegressor(min(3, k)),
        batched_neighbors,
        1.0,
    ),
    Comparison("IterativeNewton(10)", IterativeNewton(10), None, partial(batched_newton, 10), 10.0),
    Comparison("Averaging()", Averaging(), None, batched_averaging, None),
    Comparison(
        "DiscreteMMSE(64 vectors, 0.5)", DiscreteMMSE(POOL, NOISE_STD), None, batched_mmse, None
    ),
)


class Row(NamedTuple):
    """One measured line of the table: microseconds a fit."""

    name: str
    ours: float
    sklearn: float | None
    batched: float
    goal: float | None
    disagreement: float


def draw(num_prompts: int, num_examples: int, dim: int) -> tuple[Tensor, Tensor]:
    """Noisy prompts in float64."""
    rng = torch.Generator().manual_seed(0)
    xs = torch.randn(num_prompts, num_examples, dim, generator=rng, dtype=torch.float64)
    ws = torch.randn(num_prompts, dim, 1, generator=rng, dtype=torch.float64)
    noise = torch.randn(num_prompts, num_examples, generator=rng, dtype=torch.float64)
    return xs, (xs @ ws).squeeze(-1) + NOISE_STD * noise


def seconds(
    action: Callable[[], object],
    repeats: int,
    summary: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Wall-clock time of a call, the median unless told, after one call that is not counted."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return summary(times)


def loop_over_prefixes(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], xs: Tensor, ys: Tensor
) -> Tensor:
    """A batched function called once a prefix; predictions (B, n−1), of the prefixes with an
    example.
    """
    return torch.stack(
        [predict(xs[:, :k], ys[:, :k], xs[:, k]) for k in range(1, xs.shape[1])], dim=1
    )


def loop_over_fits(estimator: Callable[[int], Any], xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """A scikit-learn estimator fitted once a prompt and prefix; predictions (B, n−1)."""
    predictions = np.empty((xs.shape[0], xs.shape[1] - 1))
    for b, (x, y) in enumerate(zip(xs, ys, strict=True)):
        for k in range(1, len(x)):
            predictions[b, k - 1] = estimator(k).fit(x[:k], y[:k]).predict(x[k : k + 1])[0]
    return predictions


def compare(comparison: Comparison, xs: Tensor, ys: Tensor) -> Row:
    """Time one predictor and its counterparts, and see how far their predictions lie apart."""
    num_fits = xs.shape[0] * (xs.shape[1] - 1)
    ours = comparison.ours(xs, ys)[:, 1:]
    disagreement = (loop_over_prefixes(comparison.batched, xs, ys) - ours).abs().median().item()
    run_ours, run_batched = (
        partial(comparison.ours, xs, ys),
        partial(loop_over_prefixes, comparison.batched, xs, ys),
    )
    microseconds = 1e6 / num_fits
    sklearn_time = None
    if comparison.estimator:
        few = xs[:SKLEARN_PROMPTS].numpy(), ys[:SKLEARN_PROMPTS].numpy()
        run = partial(loop_over_fits, comparison.estimator, *few)
        disagreement = max(
            disagreement, float(np.median(np.abs(run() - ours[:SKLEARN_PROMPTS].numpy())))
        )
        sklearn_time = seconds(run, 3) * 1e6 / (SKLEARN_PROMPTS * (xs.shape[1] - 1))
    return Row(
        comparison.name,
        seconds(run_ours, 15) * microseconds,
        sklearn_time,
        seconds(run_batched, 3) * microseconds,
        comparison.goal,
        disagreement,
    )


# What grows → (label of its axis, its values, the prompts' shape (B, n, d) for a value).
GROWTH = {
    "n": (
        "examples a prompt, n  (B = 256, d = 8)",
        (10, 20, 40, 80, 160, 320),
        lambda n: (256, n, 8),
    ),
    "d": ("dimensions, d  (B = 256, n = 40)", (2, 4, 8, 16, 32), lambda d: (256, 40, d)),
    "B": ("prompts, B  (n = 40, d = 8)", (16, 64, 256, 1024, 4096, 16384), lambda b: (b, 40, 8)),
}

# What grows → name → (value, milliseconds a call).
Growth = dict[str, dict[str, list[tuple[int, float]]]]


def measure_growth() -> Growth:
    """Time every predictor on prompts of growing n, d and B, on one thread: other threads would
    blur it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    curves: Growth = {axis: {} for axis in GROWTH}
    for axis, (_, values, shape) in GROWTH.items():
        for value in values:
            prompts = draw(*shape(value))
            pool = torch.randn(64, shape(value)[2], dtype=torch.float64)
            for comparison in COMPARISONS:
                if comparison.name.startswith("Bayes"):
                    continue  # ridge under another name
                predictor = comparison.ours
                if isinstance(predictor, DiscreteMMSE):
                    predictor = DiscreteMMSE(pool, NOISE_STD)
                milliseconds = 1e3 * seconds(partial(predictor, *prompts), 5, min)
                curves[axis].setdefault(comparison.name, []).append((value, milliseconds))
    torch.set_num_threads(threads)
    return curves


def plot_growth(curves: Growth) -> Figure:
    """Milliseconds a call against n, d and B, on logarithmic axes."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    looks = styles(curves["n"])
    for axes, (axis, lines) in zip(panels, curves.items(), strict=True):
        for name, points in lines.items():
            axes.loglog(
                *zip(*points, strict=True), marker="o", markersize=3.5, label=name, **looks[name]
            )
        label, values, _ = GROWTH[axis]
        axes.set_xlabel(label)
        axes.set_xticks(values, labels=map(str, values))
        axes.minorticks_off()
        axes.grid(which="major", color="#e5e7eb")
    panels[0].set_ylabel("milliseconds for all prefixes of all prompts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


MEASURE_MANY = """
import resource, sys, time, torch
from incontext_linear.predictors import *
torch.set_num_threads(int(sys.argv[1]))
xs = torch.randn(100_000, 40, 8, dtype=torch.float64)
ys = torch.randn(100_000, 40, dtype=torch.float64)
start = time.perf_counter()
OrdinaryLeastSquares()(xs, ys)
elapsed = time.perf_counter() - start
print(elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def measure_many_prompts() -> tuple[float, float]:
    """Seconds and peak GiB of a process that fits least squares to 100,000 prompts."""
    command = [sys.executable, "-c", MEASURE_MANY, str(torch.get_num_threads())]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    elapsed, gibibytes = map(float, output.split())
    return elapsed, gibibytes


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = "| predictor | ours | goal | scikit-learn loop | ratio | batched PyTorch loop | ratio |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        goal = (
            ""
            if row.goal is None
            else f"≤ {row.goal:g}{'' if row.ours <= row.goal else ' (missed)'}"
        )
        sklearn_time, ratio = ("", "")
        if row.sklearn is not None:
            sklearn_time, ratio = f"{row.sklearn:,.0f}", f"{row.sklearn / row.ours:,.0f}×"
        batched = f"{row.batched:.2f} | {row.batched / row.ours:.1f}×"
        lines.append(
            f"| `{row.name}` | {row.ours:.3f} | {goal} | {sklearn_time} | {ratio} | {batched} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """What the numbers depend on."""
    return (
        f"{os.cpu_count()} CPU cores ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}, Python {sys.version.split()[0]}"
    )


def report(rows: list[Row], many: tuple[float, float]) -> str:
    """The page that `docs/` holds."""
    disagreement = max(row.disagreement for row in rows)
    return f"""# How fast the predictors are

Written by `python -m benchmarks.predictors`. Microseconds for one fit (one prompt, one prefix),
medians of 15 calls (3 for the loops), on {NUM_PROMPTS} prompts of {NUM_EXAMPLES} examples in {DIM}
dimensions, float64, noise {NOISE_STD}. The scikit-learn loop takes the first {SKLEARN_PROMPTS} of
these prompts; all run in one process, and give the same predictions (median difference at most
{disagreement:.0e}).

{table(rows)}

Machine: {machine()}.

{verdict(rows)}
- 100,000 prompts of 40 examples in d = 8, least squares, float64: aim within 4 GiB, measured
  {many[1]:.1f} GiB at the peak of the whole process, PyTorch and the prompts included, in
  {many[0]:.1f} s.

## How ours grows

![Milliseconds a call against n, d and B](../figures/benchmark_predictors.png)

On one thread, the fastest of five calls. Linear in n and B, but for nearest neighbours, which
compare every pair of examples (n²). In d, least squares and ridge grow as d², Newton as d³, and the
others as d. Below d = 8 or so, and below a few hundred prompts, the cost of starting PyTorch's
operations shows instead.

## Why

- Least squares, ridge and Bayes share one recursion of O(d²) an example
  (`predictors/least_squares.py`). The batched loop sums XᵀX anew and solves a system of O(d³) at
  each prefix; the scikit-learn loop spends most of its time on checks and Python.
- Prompts lie along the innermost axis, so that every operation runs over contiguous memory, and are
  taken in chunks that stay in a core's cache.
- Newton is the same matrix products in either program, and so takes the same time. Nearest
  neighbours are near the batched loop too: ours never holds the n² distances of a prompt, and
  settles ties by order.
- All is computed in float64; float32 prompts cost as much, and get the float64 answer rounded once.
- The numbers hold for idle cores. PyTorch splits operations of some ten microseconds between
  threads that wait for each other, so that another busy program costs far more than its share; one
  thread (`torch.set_num_threads(1)`, `--threads 1` here) is then faster.
"""


def verdict(rows: list[Row]) -> str:
    """Which aims are met, and why one is not."""
    named = {row.name.partition("(")[0]: row for row in rows}
    lines = []
    for name in ("OrdinaryLeastSquares", "Ridge"):
        row = named[name]
        for loop, aim, other in (("scikit-learn", 2000, row.sklearn), ("batched", 10, row.batched)):
            ratio = other / row.ours
            outcome = "met" if ratio >= aim else "missed"
            lines.append(
                f"- `{name}`: aim {aim:,}× the {loop} loop, measured {ratio:,.0f}×: {outcome}."
            )
    if named["Ridge"].batched / named["Ridge"].ours < 10:
        lines.append(WHY_RIDGE_IS_NOT_TEN_TIMES_FASTER)
    return "\n".join(lines)


WHY_RIDGE_IS_NOT_TEN_TIMES_FASTER = """\
- Ridge misses 10× because `torch.linalg.solve` is fast by itself on 8×8 systems: less than a
  microsecond. The recursion holds a square root of the inverse, at five passes over a d×d matrix an
  example. Plain Sherman–Morrison would take three, some 1.7 times faster, and lose digits with the
  square of the condition number, where this loses them with the number itself. We keep the
  digits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("docs"), help="folder for the page and the figure"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    arguments = parser.parse_args()
    output = arguments.output
    torch.set_num_threads(arguments.threads)
    xs, ys = draw(NUM_PROMPTS, NUM_EXAMPLES, DIM)
    rows = [compare(comparison, xs, ys) for comparison in COMPARISONS]
    print(table(rows), flush=True)
    figure = plot_growth(measure_growth())
    (output / "figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(output / "figures" / "benchmark_predictors.png", dpi=130)
    page = output / "results" / "benchmarks.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report(rows, measure_many_prompts()), encoding="utf-8")


if __name__ == "__main__":
    main()
