"""Which algorithm a finished sweep's learners are nearest to, along one of its axes (paper, section
4).
"""

import logging
from collections.abc import Callable
from typing import Any

import pandas as pd

from incontext_linear.phase_diagram.config import PhaseDiagramConfig
from incontext_linear.phase_diagram.nearest import heat_map_table
from incontext_linear.phase_diagram.resampling import (
    MEAN,
    Differences,
    Resamples,
    resample_sweep,
    signed_differences,
)
from incontext_linear.phase_diagram.variants import (
    PhaseDiagramError,
    differing_parameters,
    list_variants,
    missing_cells,
    ridge_penalties,
)
from incontext_linear.tables import MetricHistories, MetricHistory, metric_history

logger = logging.getLogger(__name__)
Partitions = dict[str, Callable[[], Any]]


def select_variants(
    variants: Partitions,
    learner: Partitions,
    baselines: Partitions,
    phase_diagram: PhaseDiagramConfig,
) -> pd.DataFrame:
    """Every variant along the axis, used or not; what is missing is logged by name.

    Raises:
        PhaseDiagramError: if no variant can be used, or as `list_variants`.
    """
    records = {folder: load() for folder, load in variants.items()}
    _check_sweep(records, phase_diagram.sweep)
    table = list_variants(
        records, learner.keys() & baselines.keys(), phase_diagram.axis, phase_diagram.where
    )
    used = [records[folder] for folder in table.loc[table["used"], "folder"]]
    axes = {name for record in used for name in (*record["axes"], *record.get("follow", {}))}
    for line in missing_cells(table) + differing_parameters([r["parameters"] for r in used], axes):
        logger.warning("Sweep %s: %s", phase_diagram.sweep, line)
    if not table["used"].any():
        reasons = "\n".join(f"- {row.folder}: {row.reason}" for row in table.itertuples())
        raise PhaseDiagramError(
            f"No variant of the sweep {phase_diagram.sweep!r} can be used:\n{reasons}\n"
            f"Make them with `kedro sweep run {phase_diagram.sweep}`."
        )
    return table


def _check_sweep(records: dict[str, Any], sweep: str) -> None:
    """The catalog finds a sweep by ``--params`` or globals.yml, and not by a file of parameters."""
    found = {record["sweep"] for record in records.values()}
    if found != {sweep}:
        raise PhaseDiagramError(
            f"phase_diagram.sweep is {sweep!r}, but the catalog reads "
            f"{', '.join(map(repr, sorted(found)))}; "
            f"name the sweep by `--params phase_diagram.sweep={sweep}` or by `sweep` in globals.yml"
        )


def resample_divergences(
    selected: pd.DataFrame,
    learner: Partitions,
    baselines: Partitions,
    phase_diagram: PhaseDiagramConfig,
    seed: int,
) -> Resamples:
    """SPD means of all values, k and predictors in every resample; one variant is read at a
    time.
    """

    def read(folder: str) -> Differences:
        return signed_differences(learner[folder](), baselines[folder]())

    config, used = phase_diagram, selected[selected["used"]]
    return resample_sweep(
        used, read, config.examples_seen, config.points, config.bootstrap.num_resamples, seed
    )


def measure_heat_map(
    resamples: Resamples,
    variants: Partitions,
    selected: pd.DataFrame,
    phase_diagram: PhaseDiagramConfig,
) -> pd.DataFrame:
    """Learner × predictor; for a noise axis learner × ridge(λ), with the diagonal λ = σ²/τ²."""
    parameters = [
        variants[folder]()["parameters"] for folder in selected.loc[selected["used"], "folder"]
    ]
    confidence = phase_diagram.bootstrap.confidence
    return heat_map_table(resamples, ridge_penalties(parameters), confidence)


def report_phase_metrics(
    divergences: pd.DataFrame,
    nearest: pd.DataFrame,
    heat_map: pd.DataFrame,
    transitions: pd.DataFrame,
) -> MetricHistories:
    """Means over k as metric histories along the axis, for MLflow; where the nearest algorithm
    changes.

    The step is the axis value where all are whole numbers, and its position in the sweep otherwise.
    """
    values = sorted(set(divergences["axis_value"]))
    whole = all(float(value).is_integer() for value in values)
    steps = {value: int(value) if whole else position for position, value in enumerate(values)}

    def history(rows: pd.DataFrame, column: str) -> MetricHistory:
        return metric_history(rows["axis_value"].map(steps), rows[column])

    mean, best, grid, changes = (
        table[table["scope"] == MEAN] for table in (divergences, nearest, heat_map, transitions)
    )
    metrics = {
        f"phase.spd.{name}": history(rows, "mean") for name, rows in mean.groupby("predictor")
    }
    metrics |= {f"phase.{name}": history(best, name) for name in ("margin", "certainty")}
    metrics["phase.diagonal_share"] = history(grid[grid["diagonal"]], "share")
    for pair, rows in changes.groupby(["before", "after"]):
        name = f"phase.transition.{pair[0]}_to_{pair[1]}"
        metrics[name] = metric_history(range(len(rows)), rows["location"])
    return {name: values for name, values in metrics.items() if values}
