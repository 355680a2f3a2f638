"""The figures of the probing pipeline beyond the probes' own: controls, selectivity, causality,
progress.

Tables in, Matplotlib figures out, nothing computed on the way.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from incontext_linear.figures.style import INK, MUTED, PALETTE, draw_curves, prepare_axes, styles

METHODS = {
    "minimal_edit": ("minimal-norm edit", PALETTE[0], "-"),
    "minimal_edit_random": ("random direction, its norm", PALETTE[0], (0, (1, 1.5))),
    "pattern_edit": ("pattern edit", PALETTE[1], "-"),
    "pattern_edit_random": ("random direction, its norm", PALETTE[1], (0, (1, 1.5))),
    "interchange_attended": ("interchange where the probe looks", PALETTE[2], "-"),
    "interchange_context": ("interchange of the whole context", MUTED, (0, (5, 2))),
}


def readout_name(kind: str, hidden_units: int) -> str:
    """A read-out in words: ``linear``, ``mlp 64``."""
    return f"{kind} {hidden_units}" if hidden_units else kind


def plot_controls(scores: pd.DataFrame, controls: pd.DataFrame, attention: pd.DataFrame) -> Figure:
    """For the longest context: error against layer, controls dashed, beside the best probe's
    attention.

    As the paper's Figure 4. A row a target; the dashed line is, layer by layer, the best control's
    error with the same read-out. The attention is that of the probe with the lowest error of all
    layers, per read-out.
    """
    longest = scores["examples_seen"].max()
    scores, controls, attention = (
        table[table["examples_seen"] == longest] for table in (scores, controls, attention)
    )
    targets = list(dict.fromkeys(scores["target"]))
    figure = Figure(figsize=(13, 3.1 * len(targets)), layout="constrained")
    grid = figure.subplots(len(targets), 2, width_ratios=(2, 3), squeeze=False)
    for (left, right), target in zip(grid, targets, strict=True):
        _errors_and_controls(
            left, *(table[table["target"] == target] for table in (scores, controls))
        )
        left.set_title(target, loc="left", fontsize=11, color=INK, fontweight="bold")
        _best_attention(
            right,
            *(table[table["target"] == target] for table in (scores, attention)),
            int(longest),
        )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    dashed = Line2D([], [], color=INK, linestyle="--", linewidth=1.2)
    figure.legend(
        [*handles, dashed],
        [*labels, "best control"],
        loc="outside lower center",
        ncols=6,
        frameon=False,
    )
    return figure


def _errors_and_controls(axes: Axes, scores: pd.DataFrame, controls: pd.DataFrame) -> None:
    looks = iter(PALETTE * 3)
    for (kind, units), rows in scores.groupby(["kind", "hidden_units"], sort=False):
        color = next(looks)
        axes.plot(
            rows["layer"],
            rows["squared_error"],
            color=color,
            linewidth=1.8,
            label=readout_name(kind, units),
        )
        axes.fill_between(
            rows["layer"], rows["low"], rows["high"], color=color, alpha=0.18, linewidth=0
        )
        same = controls[(controls["kind"] == kind) & (controls["hidden_units"] == units)]
        level = same.groupby("layer")["squared_error"].min()
        axes.plot(level.index, level, color=color, linewidth=1.2, linestyle="--")
    prepare_axes(axes, "", "layer (0: embedding)", "squared error / variance")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _best_attention(
    axes: Axes, scores: pd.DataFrame, attention: pd.DataFrame, longest: int
) -> None:
    keys = ["kind", "hidden_units", "layer"]
    best = scores.loc[
        scores.groupby(["kind", "hidden_units"], sort=False)["squared_error"].idxmin(), keys
    ]
    rows = best.merge(attention, on=keys, how="left")
    grid = rows["attention"].to_numpy().reshape(len(best), -1)[:, : 2 * longest + 1]
    axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0)
    prepare_axes(axes, "attention of the best layer's probe", "", "")
    axes.grid(visible=False)
    labels = [
        f"{readout_name(kind, units)}, layer {layer}" for kind, units, layer in best.to_numpy()
    ]
    axes.set_yticks(range(len(best)), labels)
    axes.set_xticks(range(grid.shape[1]), token_names(grid.shape[1]), fontsize=7, rotation=90)


def plot_selectivity(selectivity: pd.DataFrame, appearances: pd.DataFrame) -> Figure:
    """Selectivity against layer: a panel a read-out and context length; triangles where targets
    appear.
    """
    panels = list(selectivity.groupby(["kind", "hidden_units", "examples_seen"], sort=False))
    figure = Figure(
        figsize=(4.6 * min(len(panels), 3) + 1, 4.0 * -(-len(panels) // 3)), layout="constrained"
    )
    grid = figure.subplots(
        -(-len(panels) // 3), min(len(panels), 3), sharey=True, squeeze=False
    ).flatten()
    looks = styles(selectivity["target"])
    for axes, ((kind, units, seen), rows) in zip(grid, panels, strict=False):
        keys = {"kind": kind, "hidden_units": units, "examples_seen": seen}
        found = appearances.loc[(appearances[list(keys)] == pd.Series(keys)).all(axis=1)]
        for target, curve in rows.groupby("target", sort=False):
            color = looks[target]["color"]
            axes.plot(
                curve["layer"], curve["selectivity"], label=target, linewidth=1.8, **looks[target]
            )
            axes.fill_between(
                curve["layer"], curve["low"], curve["high"], color=color, alpha=0.18, linewidth=0
            )
            layer = found.loc[found["target"] == target, "layer"].iloc[0]
            height = curve.loc[curve["layer"] == layer, "selectivity"]
            axes.plot([layer] * len(height), height, marker="^", color=color, markersize=9)
        axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        title = f"{readout_name(kind, units)}, k = {seen}"
        prepare_axes(axes, title, "layer (0: embedding)", "selectivity (share of variance)")
    for axes in grid[len(panels) :]:
        axes.remove()
    grid[0].legend(frameon=False, fontsize=9)
    return figure


def plot_movements(causality: pd.DataFrame) -> Figure:
    """Moved fraction and distance left against layer, a column a target; the longest context."""
    table = causality[causality["examples_seen"] == causality["examples_seen"].max()]
    targets = [target for target in dict.fromkeys(table["target"]) if target != "all"]
    measures = (
        ("fraction", "low", "high", "moved fraction", "0: unmoved · 1: the donor's answer"),
        (
            "distance",
            "distance_low",
            "distance_high",
            "distance left",
            "1: unmoved · 0: the donor's answer",
        ),
    )
    figure = Figure(figsize=(5.6 * len(targets) + 1, 7.4), layout="constrained")
    grid = figure.subplots(2, len(targets), squeeze=False, sharex=True)
    for row, (middle, low, high, name, hint) in zip(grid, measures, strict=True):
        for axes, target in zip(row, targets, strict=True):
            _movement_curves(axes, table, target, (middle, low, high))
            prepare_axes(axes, f"{target}: {name}", "layer (0: embedding)", hint)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def plot_calibration(scores: pd.DataFrame, causality: pd.DataFrame) -> Figure:
    """A network whose algorithm is known: probe error against layer, and what interventions move.

    Layers are named by the line of the algorithm that they carry out, where it is new; the longest
    context.
    Random directions are left out: they hit rows on which the construction rests, and break it.
    """
    longest = scores["examples_seen"].max()
    scores, causality = (table[table["examples_seen"] == longest] for table in (scores, causality))
    targets = [target for target in dict.fromkeys(causality["target"]) if target != "all"]
    figure = Figure(figsize=(5.0 * (1 + len(targets)) + 1, 5.2), layout="constrained")
    read, *moved = figure.subplots(1, 1 + len(targets))
    looks = styles(scores["target"])
    for target, curve in scores.groupby("target", sort=False):
        read.plot(
            curve["layer"], curve["squared_error"], label=target, linewidth=1.8, **looks[target]
        )
        read.fill_between(
            curve["layer"],
            curve["low"],
            curve["high"],
            color=looks[target]["color"],
            alpha=0.18,
            linewidth=0,
        )
    prepare_axes(read, "what a linear probe leaves", "", "squared error / variance")
    read.set_ylim(bottom=0)
    read.legend(frameon=False, fontsize=9)
    for axes, target in zip(moved, targets, strict=True):
        shown = causality[~causality["method"].str.endswith("_random")]
        _movement_curves(axes, shown, target, ("fraction", "low", "high"))
        prepare_axes(axes, f"{target}: moved fraction", "", "0: unmoved · 1: the donor's answer")
    handles, labels = moved[0].get_legend_handles_labels()
    lines = scores.drop_duplicates("layer").sort_values("layer")
    new = lines["line"] != lines["line"].shift()
    names = (lines["line"] + "   ").where(new, "") + lines["layer"].astype(str)
    for axes in (read, *moved):
        axes.set_xticks(lines["layer"], names, rotation=90, fontsize=8)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _movement_curves(
    axes: Axes, table: pd.DataFrame, target: str, measure: tuple[str, str, str]
) -> None:
    """One curve a method: the measure (middle, low, high) of its interventions on a target, against
    layer.
    """
    middle, low, high = measure
    for method, (label, color, dash) in METHODS.items():
        rows = table[
            table["target"].isin([target, "all"]) & (table["method"] == method)
        ].sort_values("layer")
        if rows.empty:
            continue
        axes.plot(
            rows["layer"], rows[middle], color=color, linestyle=dash, label=label, linewidth=1.8
        )
        axes.fill_between(
            rows["layer"], rows[low], rows[high], color=color, alpha=0.18, linewidth=0
        )
    axes.axhline(0, color=MUTED, linewidth=0.9, linestyle=":")
    axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=":")
    # A random direction may throw the prediction far off; the scale stays that of the question.
    axes.set_ylim(-0.25, 1.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_progress(progress: pd.DataFrame, nearest: pd.DataFrame) -> Figure:
    """Heat maps, layers × steps: SPD of each layer's predictions to m steps, the nearest marked."""
    longest = progress["examples_seen"].max()
    progress, nearest = (table[table["examples_seen"] == longest] for table in (progress, nearest))
    names = list(dict.fromkeys(nearest["algorithm"]))
    shown = progress[progress["algorithm"].isin(names)]
    norm = LogNorm(max(shown["mean"].min(), 1e-6), shown["mean"].max())
    figure = Figure(figsize=(5.2 * len(names) + 1.2, 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names)))
    for axes, name in zip(panels, names, strict=True):
        grid = shown[shown["algorithm"] == name].pivot(
            index="layer", columns="steps", values="mean"
        )
        image = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis_r", norm=norm)
        marks = nearest[nearest["algorithm"] == name]
        columns = [grid.columns.get_loc(steps) for steps in marks["nearest_steps"]]
        rows = [grid.index.get_loc(layer) for layer in marks["layer"]]
        axes.plot(
            columns, rows, "o-", color=PALETTE[1], markeredgecolor="white", label="nearest step"
        )
        title = f"{name.replace('_', ' ')}, k = {longest}"
        prepare_axes(axes, title, "steps m", "layer (0: embedding)")
        axes.grid(visible=False)
        axes.set_xticks(range(grid.shape[1]), grid.columns)
        axes.set_yticks(range(len(grid)), grid.index)
    panels[0].legend(fontsize=9, loc="upper left")
    figure.colorbar(image, ax=panels, label="SPD / variance of the labels")
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
        draw_curves(axes, rows.rename(columns={"squared_error": "mean"}), "layer", "target", looks)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=":")
        kind, units, seen = (*group, "", "")[:3]
        title = f"{kind} {units or ''} read-out".replace("  ", " ") + (
            f", k = {seen}" if seen else ""
        )
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
    keys = [
        "target",
        "kind",
        *(name for name in ("hidden_units", "examples_seen") if name in attention),
    ]
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
