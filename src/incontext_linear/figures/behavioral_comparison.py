"""SPD, ILWD, squared error and linearity against the number of examples seen."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from incontext_linear.figures.style import (
    LEARNER_COLOR,
    MUTED,
    draw_curves,
    legend_beside,
    mark_dimension,
    prepare_axes,
    styles,
)


def plot_divergences(spd: pd.DataFrame, ilwd: pd.DataFrame, dim: int) -> Figure:
    """SPD and ILWD to each predictor against examples seen, log scale, intervals shaded (Figure
    1).
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    looks = styles(spd["predictor"])
    panels = (
        (spd, "Squared prediction difference", "SPD(transformer, algorithm)"),
        (ilwd, "Implicit weight difference", "ILWD(transformer, algorithm)"),
    )
    for axes, (table, title, label) in zip(figure.subplots(1, 2), panels, strict=True):
        # Before any example is seen, all predict close to 0: a log scale would show only that.
        draw_curves(axes, table[table["examples_seen"] > 0], "examples_seen", "predictor", looks)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        prepare_axes(axes, title, "examples seen, k", label)
        mark_dimension(axes, dim)
    legend_beside(figure, axes)
    return figure


def plot_risks(risk: pd.DataFrame, linearity: pd.DataFrame, dim: int) -> Figure:
    """Squared error of every predictor, and how linear the learner is, against examples seen."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [name for name in dict.fromkeys(risk["predictor"]) if name != "transformer"]
    looks = styles(names) | {"transformer": {"color": LEARNER_COLOR, "linestyle": "-"}}
    # Exact predictors reach zero in a noiseless task; a log axis needs a floor to be drawn on.
    floor = max(1e-10, risk["mean"].max() * 1e-7)
    draw_curves(
        left,
        risk.assign(**risk[["mean", "low", "high"]].clip(lower=floor)),
        "examples_seen",
        "predictor",
        looks,
    )
    left.set_yscale("log")
    prepare_axes(left, "Squared error against the label", "examples seen, k", "mean squared error")
    mark_dimension(left, dim)
    if (risk["low"] < floor).any():
        place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        left.annotate("smaller values are drawn here", (1.0, floor), **place).set(
            color=MUTED, fontsize=8
        )
    shown = linearity[linearity["examples_seen"] > 0]
    unexplained = shown.assign(mean=1 - shown["mean"], low=1 - shown["high"], high=1 - shown["low"])
    draw_curves(right, unexplained, "examples_seen", "predictor", looks)
    right.set_yscale("log")
    prepare_axes(
        right,
        "How far from linear the transformer is",
        "examples seen, k",
        "1 − R² of its implicit weights",
    )
    mark_dimension(right, dim)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(figure, left)
    return figure
