"""How often each kind of interval covers the mean: ``python -m benchmarks.coverage``.

A confidence interval is checked by drawing samples from a population whose mean is known. The main
population is made of per-prompt squared differences (SPD, paper section 4) between the learner that
ships and least squares, at k = 1, …, 39; its mean over all prompts is the truth, and samples are
drawn from it with replacement. Others have textbook shapes. All kinds get the same samples and the
same resamples. Prints the tables that ``docs/reference/statistics.md`` shows, and
writes every row to a CSV.

The learner's predictions (about a quarter of an hour for 98,304 prompts on one core) are kept in
``--predictions``.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from incontext_linear.learner.saved import load_learner
from incontext_linear.predictors import OrdinaryLeastSquares, Ridge
from incontext_linear.statistics import (
    BootstrapConfig,
    Draws,
    interval,
    mean_interval,
    median_interval,
    nested_draws,
    paired_log_ratio,
    sample_draws,
    seeds_interval,
)
from incontext_linear.tasks import draw_prompts

PROJECT = Path(__file__).parents[1]
PROMPTS_AT_ONCE = 1024
BOOTSTRAP = BootstrapConfig()
OURS = "mean_interval"
SOME = [*range(1, 17), 20, 24, 32, 39]
NEAR_DIM = [7, 8, 9, 10, 11]

Limits = tuple[np.ndarray, np.ndarray]
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def learner_predictions(path: Path, num_prompts: int) -> Float[np.ndarray, "prompt example"]:
    """What the shipped learner predicts on the population's prompts; read, or made and kept."""
    if path.exists():
        return np.load(path)[:num_prompts]
    learner = load_learner(PROJECT / "data/06_models/pretrained/learner.safetensors")
    found = []
    for step in range(num_prompts // PROMPTS_AT_ONCE):
        prompts = draw_prompts(learner.task, PROMPTS_AT_ONCE, 0, step, "coverage")
        chunks = zip(prompts.xs.split(128), prompts.ys.split(128), strict=True)
        with torch.inference_mode():
            found.append(torch.cat([learner.model(xs, ys) for xs, ys in chunks]))
        print(f"\r{(step + 1) * PROMPTS_AT_ONCE:,} of {num_prompts:,} prompts", end="", flush=True)
    print()
    predictions = torch.cat(found).numpy()
    np.save(path, predictions)
    return predictions


def squared_differences(
    predictions: Float[np.ndarray, "prompt example"],
) -> dict[str, Float[np.ndarray, "prompt example"]]:
    """SPD of the learner to least squares and to ridge(0.1), prompt by prompt."""
    task = load_learner(PROJECT / "data/06_models/pretrained/learner.safetensors").task
    others = {"ols": OrdinaryLeastSquares(), "ridge_0.1": Ridge(0.1)}
    found = {name: [] for name in others}
    for step, start in enumerate(range(0, len(predictions), PROMPTS_AT_ONCE)):
        prompts = draw_prompts(task, PROMPTS_AT_ONCE, 0, step, "coverage").to(torch.float64)
        learned = predictions[start : start + PROMPTS_AT_ONCE].astype(float)
        for name, other in others.items():
            found[name].append((learned - other(prompts.xs, prompts.ys).numpy()) ** 2)
    return {name: np.concatenate(parts) for name, parts in found.items()}


SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, size: rng.normal(1, 1, size), 1.0),
    "uniform": (lambda rng, size: rng.random(size), 0.5),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0),
    "log-normal, σ = 1": (lambda rng, size: rng.lognormal(0, 1, size), np.exp(0.5)),
    "log-normal, σ = 2": (lambda rng, size: rng.lognormal(0, 2, size), np.exp(2.0)),
    "log-normal, σ = 3": (lambda rng, size: rng.lognormal(0, 3, size), np.exp(4.5)),
    "Pareto, α = 3": (lambda rng, size: 1 + rng.pareto(3, size), 1.5),
    "Pareto, α = 2": (lambda rng, size: 1 + rng.pareto(2, size), 2.0),
    "Pareto, α = 1.5": (lambda rng, size: 1 + rng.pareto(1.5, size), 3.0),
    "9 of 10 zero, else exponential": (
        lambda rng, size: rng.exponential(size=size) * (rng.random(size) < 0.1),
        0.1,
    ),
    "constant": (lambda rng, size: np.ones(size), 1.0),
}


def bca(
    values: Float[np.ndarray, "sample column"], drawn: Float[np.ndarray, "resample column"]
) -> Limits:
    """Bias-corrected and accelerated percentiles (Efron 1987) of resampled means."""
    centred = values - values.mean(0)
    scale = (centred**2).sum(0)
    skewness = np.divide(
        (centred**3).sum(0), 6 * scale**1.5, out=np.zeros_like(scale), where=scale > 0
    )
    below = ((drawn < values.mean(0)).mean(0) + (drawn <= values.mean(0)).mean(0)) / 2
    bias, ordered = stats.norm.ppf(below.clip(1e-6, 1 - 1e-6)), np.sort(drawn, axis=0)
    limits = []
    for level in (BOOTSTRAP.tail, 1 - BOOTSTRAP.tail):
        moved = bias + stats.norm.ppf(level)
        share = stats.norm.cdf(bias + moved / (1 - skewness * moved))
        place = np.rint(share * (len(ordered) - 1)).astype(int)
        limits.append(np.take_along_axis(ordered, place[None], axis=0)[0])
    return limits[0], limits[1]


def cox(values: Float[np.ndarray, "sample column"]) -> Limits:
    """Cox's interval of a log-normal mean (Zhou and Gao 1997): exp(m + s²/2 ± z √(s²/n +
    s⁴/2(n−1))).
    """
    logs = np.log(np.maximum(values, 1e-300))
    number, variance = len(values), logs.var(0, ddof=1)
    center = logs.mean(0) + variance / 2
    error = np.sqrt(variance / number + variance**2 / (2 * (number - 1)))
    half = stats.norm.ppf(1 - BOOTSTRAP.tail) * error
    with np.errstate(over="ignore"):
        return np.exp(center - half), np.exp(center + half)


def fewer_out_of_n(values: Float[np.ndarray, "sample column"]) -> Limits:
    """m-out-of-n bootstrap, m = n^0.7: the quantiles of m* − m, scaled to n samples."""
    number = len(values)
    fewer = round(number**0.7)
    draws = Draws(number, BOOTSTRAP.num_resamples, (3,), (fewer,) * BOOTSTRAP.num_resamples)
    mean = values.mean(0)
    low, high = interval(draws.sums(values) / fewer - mean, BOOTSTRAP.confidence)
    return mean - high * np.sqrt(fewer / number), mean - low * np.sqrt(fewer / number)


def studentised(mean, error, drawn, drawn_error, log: bool) -> Limits:
    """Bootstrap-t without a tail, on the plain or the log scale."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t = np.log(drawn / mean) * drawn / drawn_error if log else (drawn - mean) / drawn_error
        low, high = interval(np.where(np.isfinite(t), t, 0.0), BOOTSTRAP.confidence)
        if log:
            return mean * np.exp(-high * error / mean), mean * np.exp(-low * error / mean)
    return mean - high * error, mean - low * error


def intervals(values: Float[np.ndarray, "sample column"]) -> dict[str, Limits]:
    """Every kind of interval of every column's mean."""
    draws = sample_draws(len(values), BOOTSTRAP.num_resamples, 0)
    number, mean = len(values), values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(number)
    drawn = draws.sums(values) / number
    spread = draws.sums((values - mean) ** 2) / number - (drawn - mean) ** 2
    drawn_error = np.sqrt(spread.clip(0) / (number - 1))
    half = stats.t.ppf(1 - BOOTSTRAP.tail, number - 1) * error
    table = mean_interval(values, BOOTSTRAP, 0)
    with np.errstate(divide="ignore", over="ignore"):
        on_log = mean * np.exp(-half / mean), mean * np.exp(half / mean)
    return {
        "percentile": interval(drawn, BOOTSTRAP.confidence),
        "BCa": bca(values, drawn),
        "Student's t": (mean - half, mean + half),
        "t on log": on_log,
        "log-normal (Cox)": cox(values),
        "m out of n": fewer_out_of_n(values),
        "bootstrap-t": studentised(mean, error, drawn, drawn_error, log=False),
        "bootstrap-t on log": studentised(mean, error, drawn, drawn_error, log=True),
        OURS: (table["low"].to_numpy(), table["high"].to_numpy()),
    }


def score(limits: dict[str, Limits], truth: float, **labels: object) -> pd.DataFrame:
    """Coverage, misses on either side, and width of each kind."""
    rows = []
    slack = 1e-12 * abs(truth)
    for kind, (low, high) in limits.items():
        below, above = high < truth - slack, low > truth + slack
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.median(np.where(low > 0, high / low, np.inf))
            width = np.median(high - low) / abs(truth)
        rows.append(
            {**labels, "kind": kind, "coverage": 1 - (below | above).mean()}
            | {"too_low": below.mean(), "too_high": above.mean()}
            | {"high_over_low": ratio, "width_over_truth": width}
        )
    return pd.DataFrame(rows)


def means(
    spd: Float[np.ndarray, "prompt example"], number: int, repetitions: int, ks: Iterable[int]
) -> Iterator[pd.DataFrame]:
    """Coverage of the mean of SPD over that many prompts, and of its median."""
    rng = np.random.default_rng(number)
    for k in ks:
        column = spd[:, k]
        values = column[rng.integers(len(column), size=(number, repetitions))]
        labels = {"population": "SPD to OLS", "examples_seen": k, "samples": number}
        yield score(intervals(values), column.mean(), **labels)
        yield score({"median": medians(values)}, float(np.median(column)), **labels)
        print(f"n = {number}, k = {k}", flush=True)


def shapes(number: int, repetitions: int) -> Iterator[pd.DataFrame]:
    """Coverage of the means of textbook shapes."""
    rng = np.random.default_rng(number)
    for name, (draw, truth) in SHAPES.items():
        labels = {"population": name, "examples_seen": None, "samples": number}
        yield score(intervals(draw(rng, (number, repetitions))), truth, **labels)


def medians(values: Float[np.ndarray, "sample column"]) -> Limits:
    """The median's limits, as `mean_interval` gives them."""
    table = median_interval(values, BOOTSTRAP)
    return table["median_low"].to_numpy(), table["median_high"].to_numpy()


def ratios(
    spds: dict[str, Float[np.ndarray, "prompt example"]], number: int, repetitions: int
) -> Iterator[pd.DataFrame]:
    """Coverage of the ratio of SPD to ridge(0.1) and to OLS, on the same prompts."""
    rng = np.random.default_rng(number)
    for k in SOME:
        first, second = spds["ridge_0.1"][:, k], spds["ols"][:, k]
        chosen = rng.integers(len(first), size=(number, repetitions))
        xs, ys = first[chosen], second[chosen]
        draws = sample_draws(number, BOOTSTRAP.num_resamples, 0)
        table = paired_log_ratio(xs, ys, BOOTSTRAP, 0)
        drawn = np.log(draws.sums(xs) / draws.sums(ys))
        limits = {
            "percentile": interval(drawn, BOOTSTRAP.confidence),
            "paired_log_ratio": (table["low"].to_numpy(), table["high"].to_numpy()),
        }
        limits = {kind: (np.exp(low), np.exp(high)) for kind, (low, high) in limits.items()}
        labels = {"population": "SPD to ridge / SPD to OLS", "examples_seen": k, "samples": number}
        yield score(limits, first.mean() / second.mean(), **labels)


def seeds(
    spd: Float[np.ndarray, "prompt example"], num_prompts: int, repetitions: int
) -> Iterator[pd.DataFrame]:
    """Coverage over S trainings that differ by a log-normal factor (σ = 0.5), each with its
    prompts.
    """
    rng = np.random.default_rng(1)
    for k in (4, 8, 9, 16):
        column, truth = spd[:, k], spd[:, k].mean() * np.exp(0.5**2 / 2)
        for number in (3, 5, 8):
            factors = np.exp(0.5 * rng.normal(size=(number, 1, repetitions)))
            chosen = rng.integers(len(column), size=(number, num_prompts, repetitions))
            values = column[chosen] * factors
            drawn = sum(
                nested_draws(range(number), s, num_prompts, BOOTSTRAP.num_resamples, 0).sums(part)
                for s, part in enumerate(values)
            ) / (number * num_prompts)
            mean = values.mean((0, 1))
            table = mean_interval(values.mean(1), BOOTSTRAP, 0)
            limits = {
                "nested percentile": interval(drawn, BOOTSTRAP.confidence),
                "seeds_interval": seeds_interval(
                    drawn, mean, number, BOOTSTRAP.confidence, log=True
                ),
                "mean_interval of seeds": (table["low"].to_numpy(), table["high"].to_numpy()),
            }
            labels = {"population": f"{number} seeds", "examples_seen": k, "samples": num_prompts}
            yield score(limits, float(truth), **labels)


def summary(table: pd.DataFrame, ks: list[int]) -> str:
    """Coverage and width (upper over lower limit) as Markdown, a row a kind of interval."""
    chosen = table[table["examples_seen"].isin(ks)]
    kinds = list(dict.fromkeys(table["kind"]))
    lines = ["| interval | " + " | ".join(f"k = {k}" for k in ks) + " | least, all k |"]
    lines += ["|---|" + "--:|" * (len(ks) + 1)]
    for kind in kinds:
        rows = chosen[chosen["kind"] == kind].set_index("examples_seen")
        cells = [f"{100 * rows.coverage[k]:.0f} ({rows.high_over_low[k]:.3g})" for k in ks]
        least = table.loc[table["kind"] == kind, "coverage"].min()
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {100 * least:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PROJECT / "docs/results/coverage.csv")
    parser.add_argument(
        "--predictions", type=Path, default=Path(tempfile.gettempdir()) / "coverage_predictions.npy"
    )
    parser.add_argument("--num-prompts", type=int, default=98_304, help="of the population")
    parser.add_argument("--repetitions", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, repetitions = time.perf_counter(), arguments.repetitions
    spds = squared_differences(learner_predictions(arguments.predictions, arguments.num_prompts))
    few = max(1, repetitions // 5)
    parts = [
        *means(spds["ols"], 1024, repetitions, range(1, spds["ols"].shape[1])),
        *means(spds["ols"], 4096, repetitions, SOME),
        *means(spds["ols"], 16_384, few, NEAR_DIM),
        *means(spds["ols"], 65_536, few, NEAR_DIM),
        *shapes(1024, repetitions),
        *ratios(spds, 1024, repetitions),
        *seeds(spds["ols"], 1024, few),
    ]
    table = pd.concat(parts, ignore_index=True)
    table.round(4).to_csv(arguments.output, index=False)
    of_spd = table[(table["population"] == "SPD to OLS") & (table["kind"] != "median")]
    for number, rows in of_spd.groupby("samples"):
        ks = [k for k in (1, 4, 7, 8, 9, 10, 11, 16, 39) if k in set(rows["examples_seen"])]
        print(f"\n{number} prompts: coverage in % (upper over lower limit)\n")
        print(summary(rows, ks))
    print("\n", table[table["population"] != "SPD to OLS"].to_string())
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
