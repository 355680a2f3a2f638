"""The figure of the task_diversity pipeline: distances and preference along the pool's size."""

import numpy as np
import pandas as pd

from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    Axes,
    Figure,
    draw_curve,
    legend_beside,
    legend_under,
    panel_grid,
    prepare_axes,
)
from incontext_linear.figures.words import prompts_name

_LOOKS = {
    "discrete_mmse": ("the pool's posterior mean", PALETTE[1], "-"),
    "ridge": ("ridge (the prior's posterior mean)", PALETTE[0], "-"),
    "zero": ("zero", MUTED, ":"),
    "labels": ("labels (the learner's risk)", INK, "--"),
}
SIZE = "number of tasks in the pool, M"


def plot_diversity(curves: pd.DataFrame, thresholds: pd.DataFrame, run: str = "") -> Figure:
    """Distances of learners to the two posterior means against M, on the pool and on the prior, and
    the preference on both; grey: the thresholds with their intervals. The last place on the axis is
    a fresh w for every prompt.
    """
    seeds = int(curves["seeds"].max())
    run = " · ".join(part for part in (run, f"{seeds} seeds") if part)
    kinds = list(dict.fromkeys(curves["prompts"]))
    figure, grid = panel_grid(len(kinds) + 1, 3, (4.5, 4.2), extra=(2.8, 0.3), run=run)
    table = curves.assign(place=_places(curves["pool_size"]))
    for axes, kind in zip(grid, kinds, strict=False):
        for name, (label, color, line) in _LOOKS.items():
            rows = table[(table["prompts"] == kind) & (table["quantity"] == name)]
            look = {"color": color, "linestyle": line}
            draw_curve(axes, rows.dropna(subset="mean"), "place", look, label, marker="o", ms=3)
        axes.set_yscale("log")
        _mark(axes, thresholds[thresholds["prompts"] == kind], MUTED)
        _size_axis(axes, table)
        prepare_axes(axes, prompts_name(str(kind)), SIZE, "squared distance, share of Var(y)")
    axes = grid[-1]
    for kind, color in zip(kinds, (PALETTE[2], PALETTE[3]), strict=False):
        rows = table[(table["prompts"] == kind) & (table["quantity"] == "preference")]
        look = {"color": color, "linestyle": "-"}
        draw_curve(axes, rows.dropna(subset="mean"), "place", look, kind, marker="o", ms=3)
        _mark(axes, thresholds[thresholds["prompts"] == kind], color)
    axes.axhline(0, color=INK, linewidth=0.8)
    legend_under(axes)
    _size_axis(axes, table)
    prepare_axes(axes, "below 0: the pool's is nearer", SIZE, "log SPD(pool's) − log SPD(ridge)")
    legend_beside(figure, grid[0])
    return figure


def _places(sizes: pd.Series) -> np.ndarray:
    """Pool sizes; no pool lies two octaves behind the largest."""
    return sizes.astype(float).fillna(4 * float(sizes.max())).to_numpy()


def _size_axis(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_xscale("log", base=2)
    ticks = sorted(set(table["place"]))
    names = [f"{tick:g}" for tick in ticks]
    if table["pool_size"].isna().any():
        names[-1] = "∞"
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.minorticks_off()


def _mark(axes: Axes, thresholds: pd.DataFrame, color: str) -> None:
    for place, low, high in thresholds[["threshold", "low", "high"]].dropna().to_numpy(float):
        axes.axvline(place, color=color, linestyle=":", linewidth=1.2)
        axes.axvspan(low, high, color=color, alpha=0.15, linewidth=0)
