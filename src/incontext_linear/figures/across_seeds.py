"""Curves over seeds: the mean with its interval, and every single training as a thin line."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from incontext_linear.figures.alignment import model_name, position_name
from incontext_linear.figures.style import (
    DASHES,
    PALETTE,
    Axes,
    Figure,
    draw_curve,
    layer_axis,
    legend_beside,
    log_scale,
    panel_grid,
    prepare_axes,
    styles,
    without_diverged,
)
from incontext_linear.figures.words import algorithm_name, method_name, program_name, target_name
from incontext_linear.phase_diagram.across_seeds.measures import FOUND

CURVES = ("SPD", "ILWD", "squared error", "R²")
LAYERS = (
    "probe error",
    "selectivity",
    "causality",
    "nearest steps",
    "filters",
    "share of the counterfactual",
    FOUND,
)
_WORDS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "probe error": (target_name, str),
    "selectivity": (target_name, str),
    "causality": (method_name, target_name),
    "nearest steps": (program_name, str),
    "filters": (algorithm_name, str),
    "share of the counterfactual": (model_name, position_name),
    FOUND: (model_name, position_name),
}
"""Measure along layers → how the first of a series' names is said, and how its others are."""
LOGARITHMIC = ("SPD", "ILWD", "squared error", "nearest steps")
REACHED = ("R²", "selectivity", "causality", "share of the counterfactual", FOUND)
"""Where what is asked is how much is reached somewhere; elsewhere it is how little is left."""
SHARES = ("share of the counterfactual",)
"""Shares of a variance, which may be far below 0 where nothing is found."""
LEAST_SHARE = -1.0
"""Smaller shares are not told apart: an exchange does harm there."""
MOST = 8
"""Series of one panel at most: those that reach most, or that leave least."""


def chosen_series(rows: pd.DataFrame, measure: str) -> list[str]:
    """The series that one panel shows, in the order of its legend, `MOST` at most.

    Args:
        rows: means of one measure at one of the sweep's points.
        measure: what they are.
    """
    groups = without_diverged(rows).groupby("series", sort=False)["mean"]
    if measure not in REACHED:
        return groups.mean().nsmallest(MOST).index.astype(str).tolist()
    most = groups.max().nlargest(MOST)
    if measure == FOUND and most.gt(0).any():
        most = most[most > 0]  # lines at 0 would lie on each other
    return most.index.astype(str).tolist()


def series_looks(means: pd.DataFrame, measure: str) -> dict[str, dict[str, Any]]:
    """Colour and dash of every series that panels of a measure show, at any of the sweep's points.

    Those of an algorithm depend on its name alone. What is read from layers has colours that can be
    told apart, the same in all panels of such series; dashes too, since curves lie on each other.

    Args:
        means: of all measures.
        measure: of the panels.
    """
    alike = [other for other in LAYERS if _WORDS[other] == _WORDS.get(measure)] or [measure]
    chosen = [
        series
        for other in alike
        for _, rows in means[means["measure"] == other].groupby("point", sort=False)
        for series in chosen_series(rows, other)
    ]
    names = list(dict.fromkeys(chosen))
    if measure not in LAYERS:
        return styles(names)
    colors, dashes = len(PALETTE), len(DASHES)
    return {
        name: {
            "color": PALETTE[place % colors],
            "linestyle": DASHES[(place + place // colors) % dashes],
        }
        for place, name in enumerate(names)
    }


def series_name(series: str, measure: str) -> str:
    """A series in words: ``x′ exchanged, the query's token`` for ``query, query``."""
    first, *others = series.split(", ")
    of_first, of_others = _WORDS.get(measure, (algorithm_name, str))
    return ", ".join((of_first(first), *map(of_others, others)))


def plot_curves(means: pd.DataFrame, singles: pd.DataFrame, sweep: str) -> Figure:
    """SPD, ILWD, squared error and linearity against the number of examples seen."""
    return _plot(means, singles, sweep, CURVES, "examples seen, k")


def plot_layers(means: pd.DataFrame, singles: pd.DataFrame, sweep: str) -> Figure:
    """Probe errors, interventions, nearest steps, filters and causal variables, by layer."""
    return _plot(means, singles, sweep, LAYERS, "layer")


def _plot(
    means: pd.DataFrame, singles: pd.DataFrame, sweep: str, measures: Sequence[str], x: str
) -> Figure:
    """A row for each of the sweep's points, a panel for each measure that it has."""
    cells = [
        (str(point), measure)
        for point in means["point"].unique()
        for measure in measures
        if ((means["measure"] == measure) & (means["point"] == point)).any()
    ]
    columns = max(1, min(2, len(cells)))
    run = f"sweep {sweep} · {_seeds(means)} · thin lines: single trainings"
    figure, panels = panel_grid(max(1, len(cells)), columns, (5.6, 4.2), extra=(3.2, 0.4), run=run)
    for axes, (point, measure) in zip(panels, cells, strict=False):
        mean, single = (
            table[(table["measure"] == measure) & (table["point"] == point)]
            for table in (means, singles)
        )
        _draw(axes, mean, single, measure, series_looks(means, measure))
        if measure in LOGARITHMIC:
            log_scale(axes)
        if measure in SHARES:
            axes.set_ylim(max(axes.get_ylim()[0], LEAST_SHARE), 1.05)
        layer_axis(axes)
        over = mean["over"].iloc[0]
        prepare_axes(axes, f"{measure} {point}".strip(), x, f"mean, interval over {over}")
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    if not cells:
        legend_beside(figure, panels[0])
    return figure


def _draw(
    axes: Axes,
    mean: pd.DataFrame,
    single: pd.DataFrame,
    measure: str,
    looks: dict[str, dict[str, Any]],
) -> None:
    shown = without_diverged(mean)
    for series in chosen_series(mean, measure):
        rows = shown[shown["series"] == series].sort_values("position")
        look, label = looks[series], series_name(series, measure)
        draw_curve(axes, rows, "position", look, label)
        own = single[single["series"] == series].sort_values("position")
        for _, one in own.groupby("seed"):
            axes.plot(one["position"], one["mean"], color=look["color"], linewidth=0.5, alpha=0.6)


def _seeds(means: pd.DataFrame) -> str:
    fewest, most = int(means["seeds"].min()), int(means["seeds"].max())
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{number} seeds" + (" (few)" if fewest < 5 else "")
