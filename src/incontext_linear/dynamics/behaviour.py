"""Distances along training: to every textbook algorithm, at every step and number of examples.

All learners and all algorithms answer the same prompts, so every comparison is paired. Means over
seeds and prompts have intervals over both (`statistics.crossed_means`), lengthened for few seeds.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from incontext_linear.comparison.divergence import implicit_weights
from incontext_linear.config import BootstrapConfig, TaskConfig, resolve_device
from incontext_linear.dynamics.trajectories import Trajectories
from incontext_linear.learner.devices import on_device
from incontext_linear.predictors import Baselines, build_predictor
from incontext_linear.statistics import crossed_means, seeds_interval
from incontext_linear.tasks import Prompts, draw_mixture, generator

LABELS = "labels"
"""Among the algorithms: the labels themselves, so that the distance to them is the risk."""
DISCRETE = "discrete_mmse"
"""Among them where w comes from a pool: the posterior mean over it."""

Predictions = Float[Tensor, "seed step batch example"]


def answer_prompts(
    prompts: Prompts, baselines: Baselines, task: TaskConfig
) -> dict[str, Float[Tensor, "batch example"]]:
    """What every baseline, `DISCRETE` for a task with a pool, and the `LABELS` say, float64."""
    xs, ys = prompts.xs.double(), prompts.ys.double()
    predictors = baselines.build(task)
    if task.pool_size is not None:
        own = build_predictor(DISCRETE, {"type": "DiscreteMMSE"}, task)
        predictors = {DISCRETE: own} | predictors
    return {name: predictor(xs, ys) for name, predictor in predictors.items()} | {LABELS: ys}


def squared_differences(
    predictions: Predictions,
    answers: Float[Tensor, "batch example"],
    scale: float,
) -> Float[np.ndarray, "seed step batch example"]:
    """(learner − algorithm)² of every prompt, as shares of the labels' mean square."""
    missed = predictions.double() - answers.double()
    return (missed.square() / scale).numpy()


def spd_tables(
    predictions: Predictions,
    answers: Mapping[str, Float[Tensor, "batch example"]],
    scale: float,
    seeds: Sequence[int],
    steps: Sequence[int],
    bootstrap: BootstrapConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """SPD, as shares of the labels' mean square, to every algorithm at every step and k.

    Args:
        predictions: the learners'.
        answers: of every algorithm, `LABELS` among them for the risk.
        scale: the labels' mean square.
        seeds: of the trainings.
        steps: of the snapshots.
        bootstrap: level and number of resamples.
        seed: of the resamples.

    Returns:
        Over seeds: ``predictor``, ``step``, ``examples_seen``, ``mean``, ``low``, ``high``,
        ``seeds``, ``prompts``. And of each: ``predictor``, ``seed``, ``step``, ``examples_seen``,
        ``spd``.
    """
    pooled, single = [], []
    num_prompts, num_examples = predictions.shape[2:]
    places = pd.MultiIndex.from_product([steps, range(num_examples)], names=["step", "k"])
    places = places.to_frame(index=False).rename(columns={"k": "examples_seen"})
    for name, answer in answers.items():
        shares = squared_differences(predictions, answer, scale)
        by_prompt = np.moveaxis(shares, 2, 1).reshape(len(seeds), num_prompts, -1)
        mean, low, high = _over_seeds(by_prompt, bootstrap, seed)
        pooled.append(places.assign(predictor=name, mean=mean, low=low, high=high))
        for one, values in zip(seeds, by_prompt.mean(1), strict=True):
            single.append(places.assign(predictor=name, seed=one, spd=values))
    table = pd.concat(pooled, ignore_index=True).assign(seeds=len(seeds), prompts=num_prompts)
    return table, pd.concat(single, ignore_index=True)


def _over_seeds(
    values: Float[np.ndarray, "seed prompt column"], bootstrap: BootstrapConfig, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high of each column over seeds and prompts."""
    mean = values.mean((0, 1))
    drawn = crossed_means(values, bootstrap.num_resamples, seed)
    low, high = seeds_interval(drawn, mean, len(values), bootstrap.confidence, log=True)
    # Where every seed is exact there is nothing to lengthen on the log scale.
    return mean, np.where(mean > 0, low, 0.0), np.where(mean > 0, high, 0.0)


def nearest_along_training(
    single: pd.DataFrame, others: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The nearest algorithm at every step and k, chosen on some prompts and scored on others.

    Args:
        single: SPD of each seed, as `spd_tables` gives it, on the prompts that score.
        others: the same on the prompts that choose; None: those that score, which favours the
            chosen one.

    Returns:
        ``step``, ``examples_seen``, ``nearest`` (by the geometric mean of the SPD over seeds),
        ``spd`` (its geometric mean), ``margin`` (the runner-up's over it; below 1 if the prompts
        that score prefer another one), and ``agreeing``, the share of seeds whose own nearest it
        is.
    """
    rows = []
    chosen = single if others is None else others
    for (step, k), table in single[single["predictor"] != LABELS].groupby(
        ["step", "examples_seen"]
    ):
        choose = chosen[(chosen["step"] == step) & (chosen["examples_seen"] == k)]
        choose = _by_seed(choose[choose["predictor"] != LABELS])
        score = _by_seed(table)
        best = str(choose.mean().idxmin())
        means = score.mean()
        margin = float(np.exp(means.drop(best).min() - means[best])) if len(means) > 1 else np.nan
        agreeing = float((choose.idxmin(axis=1) == best).mean())
        rows.append((step, k, best, float(np.exp(means[best])), margin, agreeing))
    columns = ["step", "examples_seen", "nearest", "spd", "margin", "agreeing"]
    return pd.DataFrame(rows, columns=columns)


def _by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Logarithms of the SPD, a row a seed and a column a predictor, in the table's order."""
    wide = table.pivot(index="seed", columns="predictor", values="spd")
    names = list(dict.fromkeys(table["predictor"]))
    return wide[names].clip(lower=1e-30).transform("log")


def linearity_table(
    trajectories: Trajectories,
    prompts: Prompts,
    task: TaskConfig,
    bootstrap: BootstrapConfig,
    seed: int,
    device: str,
    queries_a_dimension: int = 6,
) -> pd.DataFrame:
    """How linear the learners are in the query: R² of their implicit weights.

    Args:
        trajectories: the trainings.
        prompts: on which they are asked.
        task: whose inputs the queries are drawn from.
        bootstrap: level and number of resamples.
        seed: of the queries and resamples.
        device: where the learners compute.
        queries_a_dimension: Q / d.

    Returns:
        ``step``, ``examples_seen`` (from 1 on), ``mean`` (of the prompts' adjusted R², those below
        0 counted as 0), ``low``, ``high``, ``seeds`` and ``prompts``.
    """
    where, shape = (
        resolve_device(device),
        (len(prompts.xs), queries_a_dimension * task.dim, task.dim),
    )
    queries = draw_mixture(task.inputs, shape, generator(seed, "dynamics queries")).to(where)
    xs, ys = prompts.xs.to(where), prompts.ys.to(where)
    found = np.stack(
        [
            np.stack(
                [
                    implicit_weights(on_device(learner.model, where), xs, ys, queries)
                    .r_squared[:, 1:]
                    .cpu()
                    .numpy()
                    for _, learner in trajectories.learners(one)
                ],
                axis=1,
            )
            for one in trajectories.seeds
        ]
    )  # (seeds, prompts, steps, k)
    values = np.nan_to_num(found).clip(0).reshape(*found.shape[:2], -1)
    mean = values.mean((0, 1))
    drawn = crossed_means(values, bootstrap.num_resamples, seed)
    low, high = seeds_interval(drawn, mean, len(values), bootstrap.confidence)
    seen = range(1, found.shape[-1] + 1)
    places = pd.MultiIndex.from_product(
        [trajectories.steps, seen], names=["step", "examples_seen"]
    ).to_frame(index=False)
    counts = {"seeds": len(values), "prompts": values.shape[1]}
    return places.assign(mean=mean, low=low, high=high.clip(max=1.0), **counts)


def visits(single: pd.DataFrame, others: pd.DataFrame, algorithms: Sequence[str]) -> pd.DataFrame:
    """Whether a training comes near an algorithm and leaves it again (Carroll et al. 2025).

    Args:
        single: SPD of each seed (`spd_tables`), on the prompts that score.
        others: the same on the prompts that choose the step of the nearest approach: the least of
            many would be too small on its own prompts.
        algorithms: which ones.

    Returns:
        ``predictor``, ``seed``, ``step`` (of the nearest approach), ``spd`` there (mean over
        k ≥ 1), ``last`` (at the end of training), and ``left``, last over spd: 1 where the training
        ends at its nearest, above 1 where the visit was transient.
    """
    rows = []
    for name in algorithms:
        scored, chosen = (
            table[(table["predictor"] == name) & (table["examples_seen"] >= 1)]
            .groupby(["seed", "step"])["spd"]
            .mean()
            .unstack()
            for table in (single, others)
        )
        nearest = chosen.to_numpy().argmin(axis=1)
        for one, place, values in zip(scored.index, nearest, scored.to_numpy(), strict=True):
            spd, last = values[place], values[-1]
            rows.append((name, one, scored.columns[place], spd, last, last / max(spd, 1e-30)))
    return pd.DataFrame(rows, columns=["predictor", "seed", "step", "spd", "last", "left"])
