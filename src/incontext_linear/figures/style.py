"""The look that all figures share: colours, axes, curves with intervals, grids of panels.

Figures are made without pyplot, so they hold no global state and need no display.
"""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
LEARNER_COLOR = "#111827"
# Okabe and Ito's palette: distinguishable with the common forms of colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7b61c9")
LARGEST_DRAWN = 1e12
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def styles(names: Iterable[str]) -> dict[str, dict]:
    """A colour and dash for each name, in order; the palette repeats with other dashes."""
    chosen = {}
    for index, name in enumerate(dict.fromkeys(names)):
        dash = DASHES[(index // len(PALETTE)) % len(DASHES)]
        chosen[name] = {"color": PALETTE[index % len(PALETTE)], "linestyle": dash}
    return chosen


def prepare_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """The look that all panels share."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=MUTED)
    axes.set_ylabel(ylabel, color=MUTED)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, right of its panels, made of what one panel shows."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def draw_curves(axes: Axes, table: pd.DataFrame, x: str, by: str, looks: dict[str, dict]) -> None:
    # What diverged leaves the picture instead of squeezing the rest of it to a line.
    shown = table.assign(
        **table[["mean", "low", "high"]].where(lambda values: values.abs() < LARGEST_DRAWN)
    )
    for name, rows in shown.groupby(by, sort=False):
        look = looks[str(name)]
        axes.plot(rows[x], rows["mean"], label=str(name), linewidth=1.8, **look)
        axes.fill_between(
            rows[x], rows["low"], rows["high"], color=look["color"], alpha=0.18, linewidth=0
        )


def mark_dimension(axes: Axes, dim: int) -> None:
    axes.axvline(dim, color=MUTED, linewidth=0.9, linestyle=":")
    axes.annotate(
        "k = d",
        (dim, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -10),
        textcoords="offset points",
    ).set(color=MUTED, fontsize=8)
