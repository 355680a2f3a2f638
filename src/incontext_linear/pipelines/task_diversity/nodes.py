"""Learners of a finished sweep over the pool's size, on their own pool and on the prior."""

import logging
from collections.abc import Callable
from typing import Any

import pandas as pd

from incontext_linear.learner.saved import Learner
from incontext_linear.phase_diagram.config import DiversityConfig
from incontext_linear.phase_diagram.diversity import (
    POOL,
    PRIOR,
    Measured,
    diversity_table,
    measure_learners,
    threshold_table,
)
from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.tables import MetricHistories, metric_history

logger = logging.getLogger(__name__)

AXIS = "task.pool_size"


def measure_diversity(
    variants: dict[str, Callable[[], Any]],
    learners: dict[str, Callable[[], Learner]],
    diversity: DiversityConfig,
    seed: int,
    device: str,
) -> list[Measured]:
    """Every learner on prompts of its pool, and of the prior.

    A pool size of which a seed is missing or unfinished is left out, with a warning.

    Raises:
        PhaseDiagramError: if the sweep has no such axis, or fewer than two pools are complete.
    """
    records = {folder: load() for folder, load in variants.items()}
    if any(AXIS not in record["axes"] for record in records.values()):
        raise PhaseDiagramError(
            f"diversity.sweep: {diversity.sweep!r} has no axis {AXIS}; allowed: a sweep over it"
        )
    done = {
        (record["axes"][AXIS], record["seed"]): folder
        for folder, record in records.items()
        if record.get("status") == "done" and folder in learners
    }
    seeds = {record["seed"] for record in records.values()}
    sizes = {record["axes"][AXIS] for record in records.values()}
    complete = {size for size in sizes if all((size, one) in done for one in seeds)}
    for size in sorted(sizes - complete, key=str):
        logger.warning("Pool size %s is left out: not all of its trainings are finished", size)
    if len(complete - {None}) < 2:
        raise PhaseDiagramError(
            f"{len(complete - {None})} pools of the sweep {diversity.sweep!r} are finished; "
            f"allowed: at least 2. Make them with `kedro sweep run {diversity.sweep}`."
        )
    loaded = {key: learners[folder]() for key, folder in done.items() if key[0] in complete}
    return [
        measure_learners(loaded, diversity.num_prompts, prompts, seed, device)
        for prompts in (POOL, PRIOR)
    ]


def tabulate_diversity(
    measured: list[Measured], diversity: DiversityConfig, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Distances at every pool size, and the thresholds."""
    curves = [diversity_table(one, diversity.bootstrap, seed) for one in measured]
    return (
        pd.concat(curves, ignore_index=True),
        threshold_table(measured, diversity.bootstrap, seed),
    )


def report_diversity_metrics(curves: pd.DataFrame, thresholds: pd.DataFrame) -> MetricHistories:
    """The preference against the pool's size, and the thresholds."""
    places = zip(thresholds["prompts"], thresholds["threshold"], strict=True)
    metrics = {
        f"diversity.threshold.{prompts}": metric_history([0], [place]) for prompts, place in places
    }
    own = curves[(curves["quantity"] == "preference") & curves["pool_size"].notna()]
    for prompts, rows in own.groupby("prompts", sort=False):
        sizes = rows["pool_size"].astype(int).tolist()
        metrics[f"diversity.preference.{prompts}"] = metric_history(sizes, rows["mean"].tolist())
    return {name: points for name, points in metrics.items() if points}
