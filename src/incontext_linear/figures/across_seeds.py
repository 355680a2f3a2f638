"""Curves over seeds: the mean with its interval, and every single training as a thin line."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from incontext_linear.figures.style import (
    PALETTE,
    draw_curve,
    layer_axis,
    legend_beside,
    log_scale,
    panel_grid,
    prepare_axes,
    styles,
    without_diverged,
)
from incontext_linear.figures.words import algorithm_name

CURVES = ("SPD", "ILWD", "squared error", "R²")
LAYERS = (
    "probe error",
    "selectivity",
    "causality",
    "nearest steps",
    "filters",
    "share of the counterfactual",
    "variable found",
)
LOGARITHMIC = ("SPD", "ILWD", "squared error", "nearest steps")
REACHED = ("R²", "selectivity", "causality", "share of the counterfactual", "variable found")
"""Where what is asked is how much is reached somewhere; elsewhere it is how little is left."""
SHARES = ("share of the counterfactual",)
"""Shares of a variance, which may be far below 0 where nothing is found."""
MOST = 8
"""Series of one panel at most: those that reach most, or that leave least."""


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
        _draw(axes, mean, single, measure)
        if measure in LOGARITHMIC:
            log_scale(axes)
        if measure in SHARES:
            axes.set_ylim(max(axes.get_ylim()[0], -1.0), 1.05)
        layer_axis(axes)
        over = mean["over"].iloc[0]
        prepare_axes(axes, f"{measure} {point}".strip(), x, f"mean, interval over {over}")
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    if not cells:
        legend_beside(figure, panels[0])
    return figure


def _draw(axes: Axes, mean: pd.DataFrame, single: pd.DataFrame, measure: str) -> None:
    shown = without_diverged(mean)
    groups = shown.groupby("series", sort=False)["mean"]
    order = (groups.max().nlargest if measure in REACHED else groups.mean().nsmallest)(MOST).index
    looks = styles(map(str, order))
    if measure in LAYERS:  # no algorithms: told apart here, and nowhere else
        looks = {
            name: {"color": color} for name, color in zip(sorted(looks), PALETTE, strict=False)
        }
    for series in order:
        rows = shown[shown["series"] == series].sort_values("position")
        look, label = looks[str(series)], algorithm_name(str(series))
        draw_curve(axes, rows, "position", look, label)
        own = single[single["series"] == series].sort_values("position")
        for _, one in own.groupby("seed"):
            axes.plot(one["position"], one["mean"], color=look["color"], linewidth=0.5, alpha=0.6)


def _seeds(means: pd.DataFrame) -> str:
    fewest, most = int(means["seeds"].min()), int(means["seeds"].max())
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{number} seeds" + (" (few)" if fewest < 5 else "")
