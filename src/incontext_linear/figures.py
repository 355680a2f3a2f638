"""Every plot of the pipelines: tables in, Matplotlib figures out, nothing computed on the way.

Figures are made without pyplot, so they hold no global state and need no display.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def _curves(axes: Axes, table: pd.DataFrame, x: str, by: str, looks: dict[str, dict]) -> None:
    # What diverged leaves the picture instead of squeezing the rest of it to a line.
    shown = table.assign(**table[["mean", "low", "high"]].where(lambda values: values.abs() < LARGEST_DRAWN))
    for name, rows in shown.groupby(by, sort=False):
        look = looks[str(name)]
        axes.plot(rows[x], rows["mean"], label=str(name), linewidth=1.8, **look)
        axes.fill_between(rows[x], rows["low"], rows["high"], color=look["color"], alpha=0.18, linewidth=0)


def _mark_dimension(axes: Axes, dim: int) -> None:
    axes.axvline(dim, color=MUTED, linewidth=0.9, linestyle=":")
    axes.annotate(
        "k = d", (dim, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -10), textcoords="offset points"
    ).set(color=MUTED, fontsize=8)


def plot_divergences(spd: pd.DataFrame, ilwd: pd.DataFrame, dim: int) -> Figure:
    """SPD and ILWD to each predictor against examples seen, log scale, intervals shaded (Figure 1)."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    looks = styles(spd["predictor"])
    panels = (
        (spd, "Squared prediction difference", "SPD(transformer, algorithm)"),
        (ilwd, "Implicit weight difference", "ILWD(transformer, algorithm)"),
    )
    for axes, (table, title, label) in zip(figure.subplots(1, 2), panels, strict=True):
        # Before any example is seen, all predict close to 0: a log scale would show only that.
        _curves(axes, table[table["examples_seen"] > 0], "examples_seen", "predictor", looks)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        prepare_axes(axes, title, "examples seen, k", label)
        _mark_dimension(axes, dim)
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
    _curves(
        left,
        risk.assign(**risk[["mean", "low", "high"]].clip(lower=floor)),
        "examples_seen",
        "predictor",
        looks,
    )
    left.set_yscale("log")
    prepare_axes(left, "Squared error against the label", "examples seen, k", "mean squared error")
    _mark_dimension(left, dim)
    if (risk["low"] < floor).any():
        place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        left.annotate("smaller values are drawn here", (1.0, floor), **place).set(color=MUTED, fontsize=8)
    shown = linearity[linearity["examples_seen"] > 0]
    unexplained = shown.assign(mean=1 - shown["mean"], low=1 - shown["high"], high=1 - shown["low"])
    _curves(right, unexplained, "examples_seen", "predictor", looks)
    right.set_yscale("log")
    prepare_axes(
        right, "How far from linear the transformer is", "examples seen, k", "1 − R² of its implicit weights"
    )
    _mark_dimension(right, dim)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(figure, left)
    return figure


def plot_history(history: pd.DataFrame) -> Figure:
    """Training loss and SPD to OLS against the step, log scale."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["loss"], color=PALETTE[0], label="training loss")
    axes.plot(history["step"], history["spd_to_ols"], color=PALETTE[1], label="SPD to OLS")
    axes.set_yscale("log")
    prepare_axes(axes, "Training", "step", "mean square")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_probe_scores(scores: pd.DataFrame) -> Figure:
    """Probe error against layer: a panel a read-out and number of examples, a curve a target."""
    keys = ["kind", *(name for name in ("hidden_units", "examples_seen") if name in scores)]
    panels = list(scores.groupby(keys, sort=False))
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(4.6 * num_columns + 1, 4.0 * num_rows), layout="constrained")
    looks = styles(scores["target"])
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flatten()
    for axes, (group, rows) in zip(grid, panels, strict=False):
        _curves(axes, rows.rename(columns={"squared_error": "mean"}), "layer", "target", looks)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=":")
        kind, units, seen = (*group, "", "")[:3]
        title = f"{kind} {units or ''} read-out".replace("  ", " ") + (f", k = {seen}" if seen else "")
        prepare_axes(axes, title, "layer (0: embedding)", "squared error / variance")
    for axes in grid[len(panels) :]:
        axes.remove()
    grid[0].legend(frameon=False, fontsize=9)
    return figure


def token_names(num_tokens: int) -> list[str]:
    """x₁ y₁ x₂ …, as tick labels."""
    return [f"{'xy'[index % 2]}{index // 2 + 1}" for index in range(num_tokens)]


def plot_probe_attention(attention: pd.DataFrame) -> Figure:
    """Attention of the probes: a panel a target, read-out and number of examples, a row a layer."""
    keys = ["target", "kind", *(name for name in ("hidden_units", "examples_seen") if name in attention)]
    panels = list(attention.groupby(keys, sort=False))
    num_tokens = attention["token"].nunique()
    num_columns = 1 if len(panels) < 4 else 3
    num_rows = -(-len(panels) // num_columns)
    width = (max(6.0, 0.22 * num_tokens) + 1) * (1 if num_columns == 1 else 0.8)
    figure = Figure(figsize=(width * num_columns, 2.4 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, (group, rows) in zip(grid, panels, strict=False):
        values = rows.pivot(index="layer", columns="token", values="attention")
        image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, origin="lower")
        target, kind, units, seen = (*group, "", "")[:4]
        title = f"{target}, {kind} {units or ''} read-out".replace("  ", " ")
        prepare_axes(axes, title + (f", k = {seen}" if seen else ""), "", "layer")
        axes.grid(visible=False)
        axes.set_yticks(range(len(values)), values.index, fontsize=7)
        axes.set_xticks(range(num_tokens), token_names(num_tokens), fontsize=6, rotation=90)
        figure.colorbar(image, ax=axes, label="attention")
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def plot_attention(attention: np.ndarray) -> Figure:
    """Mean attention maps (L, M, T, T) of the learner: a row a layer, a column a head."""
    num_layers, num_heads, num_tokens, _ = attention.shape
    figure = Figure(figsize=(2.4 * num_heads + 0.8, 2.3 * num_layers), layout="constrained")
    grid = figure.subplots(num_layers, num_heads, squeeze=False)
    for layer, row in enumerate(grid):
        for head, axes in enumerate(row):
            image = axes.imshow(attention[layer, head], cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8, color=INK)
            axes.tick_params(colors=MUTED, labelsize=6)
    figure.supxlabel(f"attended token (of {num_tokens}: x1 y1 x2 …)", fontsize=9, color=MUTED)
    figure.supylabel("attending token", fontsize=9, color=MUTED)
    figure.colorbar(image, ax=grid, label="mean attention", shrink=min(1.0, 2 / num_layers))
    return figure
