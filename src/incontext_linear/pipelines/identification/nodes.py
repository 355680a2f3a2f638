"""Which algorithm a learner follows, with controls: tables, words, metrics and tags."""

import math

import pandas as pd
from matplotlib.figure import Figure

from incontext_linear.comparison.filters.layers import LayerFilters, layer_filters
from incontext_linear.comparison.identification import (
    Identification,
    IdentificationConfig,
    identify,
)
from incontext_linear.config import LearnerConfig, TaskConfig, resolve_device
from incontext_linear.figures.filters import plot_layer_filters
from incontext_linear.figures.identification import plot_identification, plot_shift_curves
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


def identify_with_controls(
    learner: Learner,
    control: Learner,
    identification: IdentificationConfig,
    seed: int,
    device: str,
) -> dict[str, Identification]:
    """The whole method on the learner, and with fewer prompts on two that must show nothing.

    The controls are a learner that was trained on the single w = 1, and one that was not trained.
    """
    where, task = str(resolve_device(device)), learner.task
    untrained = build_untrained(task, learner.config, generator(seed, "untrained learner"))
    few = identification.for_controls()
    asked = {
        LEARNER: (learner.model, identification),
        "control_learner": (control.model, few),
        "untrained_learner": (untrained, few),
    }
    return {
        name: identify(on_device(network, where), task, settings, seed, where)
        for name, (network, settings) in asked.items()
    }


def tabulate(found: dict[str, Identification]) -> tuple[pd.DataFrame, ...]:
    """The tables of identification, with a column that says whose each row is."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for source, result in found.items():
        for name, table in result.tables().items():
            parts[name].append(table.assign(source=source))
    return tuple(pd.concat(parts[name], ignore_index=True) for name in TABLES)


def tell_verdict(
    found: dict[str, Identification],
) -> tuple[str, dict[str, str], MetricHistories]:
    """The verdict in words, as tags and as metrics of the run."""
    words = [f"{source}: {result.verdict.words()}" for source, result in found.items()]
    verdict = found[LEARNER].verdict
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
    found: dict[str, Identification], task: TaskConfig, model: LearnerConfig, seed: int
) -> Figure:
    """Where the verdict's candidate explains the learner, and every candidate shift by shift."""
    result = found[LEARNER]
    return plot_identification(
        result.distances,
        result.verdict.domain,
        result.verdict.reference,
        1 - result.verdict.thresholds.explained,
        describe_run(task, model, seed),
    )


def draw_shift_curves(
    found: dict[str, Identification], task: TaskConfig, model: LearnerConfig, seed: int
) -> Figure:
    """Distances to the nearest candidates against the strength of every shift."""
    run = describe_run(task, model, seed)
    return plot_shift_curves(found[LEARNER].distances, run=run)


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
