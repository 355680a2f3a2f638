"""A finished sweep's variants, by the values of its axes, averaged over their seeds."""

import logging
from collections.abc import Callable
from typing import Any

import pandas as pd

from incontext_linear.phase_diagram.across_seeds.config import AcrossSeedsConfig
from incontext_linear.phase_diagram.across_seeds.measures import Readers, read_measures
from incontext_linear.phase_diagram.across_seeds.summary import describe_seeds, summarize_seeds
from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.tables import MetricHistories, metric_history

logger = logging.getLogger(__name__)
Partitions = dict[str, Callable[[], Any]]


def average_seeds(
    variants: Partitions,
    tables: Partitions,
    tensors: Partitions,
    across_seeds: AcrossSeedsConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every curve of the sweep as mean over its seeds, and of the single seeds.

    Returns:
        As `summarize_seeds`, with the column ``point``: the values of the sweep's axes, empty for a
        run over seeds.

    Raises:
        PhaseDiagramError: if the sweep is not the one that the parameters name, or no variant of it
            is done.
    """
    name, records = across_seeds.sweep, {folder: load() for folder, load in variants.items()}
    found = {record["sweep"] for record in records.values()}
    if found != {name}:
        raise PhaseDiagramError(
            f"across_seeds.sweep is {name!r}, but the catalog reads "
            f"{', '.join(map(repr, sorted(found)))}; name the sweep by "
            f"`--params across_seeds.sweep={name}`"
        )
    points: dict[str, dict[int, str]] = {}
    for folder, record in records.items():
        if record["status"] != "done":
            logger.warning("Sweep %s: %s is not used: it is %s", name, folder, record["status"])
            continue
        point = ",".join(f"{axis}={value}" for axis, value in record["axes"].items())
        points.setdefault(point, {})[record["seed"]] = folder
    if not points:
        raise PhaseDiagramError(
            f"no variant of the sweep {name!r} is done; make them with `kedro sweep run {name}`"
        )
    means, singles = [], []
    for point, folders in points.items():
        learners = {
            one: read_measures(_below(tables, folder), _below(tensors, folder))
            for one, folder in folders.items()
        }
        logger.info("%s: %s", point or name, describe_seeds(len(learners)))
        mean, single = summarize_seeds(learners, across_seeds.bootstrap, seed)
        means.append(mean.assign(point=point))
        singles.append(single.assign(point=point))
    return pd.concat(means, ignore_index=True), pd.concat(singles, ignore_index=True)


def _below(partitions: Partitions, folder: str) -> Readers:
    """The files of one variant, by their place in its folder."""
    prefix = f"{folder}/"
    return {
        key.removeprefix(prefix): read for key, read in partitions.items() if key.startswith(prefix)
    }


def report_seeds_metrics(means: pd.DataFrame) -> MetricHistories:
    """Mean, standard deviation over seeds, interval and number of seeds, for the sweep's run in
    MLflow; the step is the number of examples or the layer.
    """
    metrics: MetricHistories = {}
    keys = ["point", "measure", "series"]
    for group, rows in means.groupby(keys, sort=False):
        name = "/".join(part for part in ("seeds", *map(str, group)) if part)
        for statistic in ("mean", "sd", "low", "high"):
            history = metric_history(rows["position"], rows[statistic])
            if history:
                metrics[f"{_plain(name)}/{statistic}"] = history
    counts = means.groupby("point", sort=False)["seeds"].first()
    for point, count in counts.items():
        name = "/".join(part for part in ("seeds", str(point), "number") if part)
        metrics[_plain(name)] = metric_history([0], [count])
    return metrics


def _plain(name: str) -> str:
    """A name that MLflow takes: letters, digits, _ - . / and spaces."""
    kept = name.replace("²", "2").replace("=", " ").replace(",", " ")
    return " ".join("".join(c if c.isalnum() or c in "_-./ " else "_" for c in kept).split())
