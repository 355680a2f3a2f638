"""Which algorithm a learner follows, with controls: tables, words, metrics and tags."""

import math

import pandas as pd

from incontext_linear.comparison.filters.layers import LayerFilters, layer_filters
from incontext_linear.comparison.identification import (
    Identification,
    IdentificationConfig,
    identify,
)
from incontext_linear.config import LearnerConfig, TaskConfig, resolve_device
from incontext_linear.figures.filters import plot_layer_filters
from incontext_linear.figures.identification import plot_identification, plot_shift_curves
from incontext_linear.figures.style import Figure
from incontext_linear.figures.words import describe_run
from incontext_linear.learner import Learner
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.registry import build_untrained
from incontext_linear.tables import MetricHistories, metric_history
from incontext_linear.tasks import generator

LEARNER = "learner"
"""The source of the rows that are about the learner; the other sources are controls."""
TABLES = (
    "distances",
    "separations",
    "confirmations",
    "symmetries",
    "structure",
    "numbers",
    "contexts",
    "evidence",
    "domain",
)
"""What `tabulate` gives, in this order."""


def identify_learner(
    learner: Learner, identification: IdentificationConfig, seed: int, device: str
) -> Identification:
    """The whole method on the learner."""
    where = str(resolve_device(device))
    return identify(on_device(learner.model, where), learner.task, identification, seed, where)


def identify_controls(
    control: Learner,
    task: TaskConfig,
    model: LearnerConfig,
    identification: IdentificationConfig,
    seed: int,
    device: str,
) -> dict[str, Identification]:
    """The method, with fewer prompts, on two that must show nothing: a learner that was trained on
    the single w = 1, and one that was not trained. They need no learner to be there.
    """
    where, few = str(resolve_device(device)), identification.for_controls()
    untrained = build_untrained(task, model, generator(seed, "untrained learner"))
    controls = {"control_learner": control.model, "untrained_learner": untrained}
    return {
        name: identify(on_device(network, where), task, few, seed, where)
        for name, network in controls.items()
    }


def tabulate(
    learner: Identification, controls: dict[str, Identification]
) -> tuple[pd.DataFrame, ...]:
    """The tables of identification, with a column that says whose each row is."""
    found = {LEARNER: learner, **controls}
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for source, result in found.items():
        for name, table in result.tables().items():
            parts[name].append(table.assign(source=source))
    return tuple(pd.concat(parts[name], ignore_index=True) for name in TABLES)


def tell_verdict(
    learner: Identification, controls: dict[str, Identification]
) -> tuple[str, dict[str, str], MetricHistories]:
    """The verdict in words, as tags and as metrics of the run."""
    found = {LEARNER: learner, **controls}
    words = [f"{source}: {result.verdict.words()}" for source, result in found.items()]
    verdict = learner.verdict
    tags = {
        "verdict": verdict.named or "none",
        "verdict.survivors": ", ".join(verdict.survivors) or "none",
        "verdict.nearest": verdict.nearest_home,
    }
    metrics = {
        f"identification/{name}": metric_history([0], [value])
        for name, value in verdict.scalars().items()
        if not math.isnan(value)  # a shift under which nothing holds has no bounds
    }
    return "\n\n".join(words) + "\n", tags, metrics


def draw_identification(
    found: Identification, task: TaskConfig, model: LearnerConfig, seed: int
) -> Figure:
    """Where the verdict's candidate explains the learner, and every candidate shift by shift."""
    return plot_identification(
        found.distances,
        found.verdict.domain,
        found.verdict.reference,
        1 - found.verdict.thresholds.explained,
        describe_run(task, model, seed),
    )


def draw_shift_curves(
    found: Identification, task: TaskConfig, model: LearnerConfig, seed: int
) -> Figure:
    """Distances to the nearest candidates against the strength of every shift."""
    run = describe_run(task, model, seed)
    return plot_shift_curves(found.distances, run=run)


def measure_filters(
    learner: Learner, identification: IdentificationConfig, seed: int, device: str
) -> tuple[LayerFilters, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The spectral filter of every layer: bins, the families' scores, and what filters explain."""
    where = resolve_device(device)
    model = on_device(learner.model, where)
    found = layer_filters(model, learner.task, identification.filters, seed)
    return found, found.bins, found.scores, found.shares


def draw_filters(found: LayerFilters, task: TaskConfig, model: LearnerConfig, seed: int) -> Figure:
    """The filters, layer by layer, and the families fitted to them."""
    tables = found.bins, found.curves, found.scores, found.shares
    return plot_layer_filters(*tables, title=describe_run(task, model, seed))
