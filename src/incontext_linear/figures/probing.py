"""The figures of the probing pipeline: probes, controls, selectivity, causality, layers' progress.

Tables in, Matplotlib figures out. Where there are several numbers of examples, figures with one
panel a target show the longest context.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    Axes,
    Figure,
    LogNorm,
    color_bar,
    draw_curve,
    draw_curves,
    layer_axis,
    legend_below,
    legend_beside,
    log_scale,
    panel_grid,
    prepare_axes,
    styles,
)
from incontext_linear.figures.words import (
    describe_constructed,
    describe_measured,
    describe_run,
    method_name,
    program_name,
    readout_name,
    target_name,
    token_names,
)
from incontext_linear.probing.config import RANDOM
from incontext_linear.probing.interventions import NO_TARGET

LAYER = "layer (0: embedding)"
ERROR = ("squared_error", "low", "high")
LEFT_OF_VARIANCE = "squared error / variance"
FRACTION = ("fraction", "low", "high")
DISTANCE = ("distance", "distance_low", "distance_high")
READOUT = ["kind", "hidden_units"]
MOVED_RANGE = (-0.25, 1.6)
"""A random direction may throw the prediction far off; the scale stays that of the question."""


def plot_probe_scores(
    scores: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Probe error against layer: a panel a read-out and number of examples, a curve a target."""
    panels = list(scores.groupby([*READOUT, "examples_seen"], sort=False))
    run = describe_measured(task, model, seed)
    figure, grid = panel_grid(len(panels), 3, (4.6, 4.0), run=run, sharey=True)
    for axes, ((kind, units, seen), rows) in zip(grid, panels, strict=True):
        table = rows.rename(columns={"squared_error": "mean"})
        draw_curves(axes, table, "layer", "target", target_name)
        log_scale(axes)
        layer_axis(axes)
        axes.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=":")
        prepare_axes(axes, f"{readout_name(kind, units)}, k = {seen}", LAYER, LEFT_OF_VARIANCE)
    legend_beside(figure, grid[0])
    return figure


def plot_probe_attention(
    attention: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Attention of the probes: a panel a target, read-out and number of examples, a row a layer."""
    panels = list(attention.groupby(["target", *READOUT, "examples_seen"], sort=False))
    num_columns = 1 if len(panels) < 4 else 3
    width = max(6.0, 0.22 * attention["token"].nunique()) + 1
    size = width * (1 if num_columns == 1 else 0.8), 2.4
    run = describe_run(task, model, seed)
    figure, grid = panel_grid(len(panels), num_columns, size, extra=(0.0, 0.2), run=run)
    for axes, ((target, kind, units, seen), rows) in zip(grid, panels, strict=True):
        values = rows.pivot(index="layer", columns="token", values="attention")
        image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, origin="lower")
        title = f"{target_name(target)}, {readout_name(kind, units)}, k = {seen}"
        prepare_axes(axes, title, "", "layer")
        axes.grid(visible=False)
        axes.set_yticks(range(len(values)), values.index, fontsize=7)
        _token_ticks(axes.xaxis, values.shape[1], fontsize=6.0)
        color_bar(figure, image, axes, "attention")
    return figure


def plot_attention(
    attention: Mapping[str, Tensor],
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Mean attention maps (L, M, T, T) of the learner: a row a layer, a column a head."""
    maps = attention["attention"].numpy()
    num_layers, num_heads, num_tokens, _ = maps.shape
    run = describe_run(task, model, seed)
    if not maps.size:
        figure, (axes,) = panel_grid(1, 1, (5.0, 1.2), run=run)
        axes.set_axis_off()
        axes.text(0.5, 0.5, "this learner has no softmax attention to show", ha="center")
        return figure
    figure, grid = panel_grid(
        num_layers * num_heads,
        num_heads,
        (2.6, 2.5),
        extra=(0.8, 0.3),
        run=run,
        sharex=True,
        sharey=True,
    )
    for index, axes in enumerate(grid):
        layer, head = divmod(index, num_heads)
        image = axes.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {layer + 1}, head {head + 1}", y=1.0, fontsize=8, color=INK)
        axes.tick_params(colors=MUTED, labelsize=6)
        step = max(1, -(-num_tokens // 24))  # labels that do not touch
        for axis in (axes.xaxis, axes.yaxis):
            _token_ticks(axis, num_tokens, step, fontsize=5.0)
    figure.supxlabel("attended token", fontsize=9, color=MUTED)
    figure.supylabel("attending token", fontsize=9, color=MUTED)
    color_bar(figure, image, grid, "mean attention", shrink=min(1.0, 2 / num_layers))
    return figure


def _token_ticks(axis, num_tokens: int, step: int = 1, fontsize: float = 7.0) -> None:
    """Ticks x₁ y₁ …, upright on a horizontal axis; every ``step``-th, x-tokens first."""
    step = step if step == 1 else 2 * -(-step // 2)
    places = range(0, num_tokens, step)
    turn = {"rotation": 90} if axis.axis_name == "x" else {}
    axis.set_ticks(places, token_names(num_tokens)[::step], fontsize=fontsize, **turn)


def plot_controls(
    scores: pd.DataFrame,
    controls: pd.DataFrame,
    attention: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Error against layer, controls dashed, beside the best probe's attention (the paper's Figure
    4).

    A row a target; the dashed line is, layer by layer, the best control's error with the same
    read-out. The attention is that of the probe with the lowest error of all layers, per read-out.
    """
    from matplotlib.lines import Line2D

    longest = int(scores["examples_seen"].max())
    scores, controls, attention = (
        table[table["examples_seen"] == longest] for table in (scores, controls, attention)
    )
    targets = list(dict.fromkeys(scores["target"]))
    figure, grid = panel_grid(
        2 * len(targets),
        2,
        (6.5, 3.1),
        extra=(0.0, 0.5),
        run=describe_measured(task, model, seed),
        width_ratios=(2, 3),
    )
    for target, left, right in zip(targets, grid[::2], grid[1::2], strict=True):
        of_target = [table[table["target"] == target] for table in (scores, controls, attention)]
        _errors_and_controls(left, f"{target_name(target)}, k = {longest}", *of_target[:2])
        _best_attention(right, of_target[0], of_target[2], longest)
    handles, labels = grid[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.2))
    figure.legend(
        handles, [*labels, "best control"], loc="outside lower center", ncols=6, frameon=False
    )
    return figure


def _errors_and_controls(
    axes: Axes, title: str, scores: pd.DataFrame, controls: pd.DataFrame
) -> None:
    looks = iter(PALETTE * 3)
    for (kind, units), rows in scores.groupby(READOUT, sort=False):
        look = {"color": next(looks)}
        draw_curve(axes, rows, "layer", look, readout_name(kind, units), ERROR)
        same = controls[(controls["kind"] == kind) & (controls["hidden_units"] == units)]
        level = same.groupby("layer")["squared_error"].min()
        axes.plot(level.index, level, linewidth=1.2, linestyle="--", **look)
    prepare_axes(axes, title, LAYER, LEFT_OF_VARIANCE)
    axes.set_ylim(bottom=0)
    layer_axis(axes)


def _best_attention(
    axes: Axes, scores: pd.DataFrame, attention: pd.DataFrame, longest: int
) -> None:
    keys = [*READOUT, "layer"]
    best = scores.loc[scores.groupby(READOUT, sort=False)["squared_error"].idxmin(), keys]
    rows = best.merge(attention, on=keys, how="left")
    grid = rows["attention"].to_numpy().reshape(len(best), -1)[:, : 2 * longest + 1]
    axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0)
    prepare_axes(axes, "attention of the best layer's probe", "", "")
    axes.grid(visible=False)
    labels = [
        f"{readout_name(kind, units)}, layer {layer}" for kind, units, layer in best.to_numpy()
    ]
    axes.set_yticks(range(len(best)), labels)
    _token_ticks(axes.xaxis, grid.shape[1])


def plot_selectivity(
    selectivity: pd.DataFrame,
    appearances: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Selectivity against layer: a panel a read-out and context length; dotted: the thresholds at
    which targets appear, triangles where they do at the one in the middle.
    """
    names = [*READOUT, "examples_seen"]
    panels = list(selectivity.groupby(names, sort=False))
    run = describe_measured(task, model, seed)
    figure, grid = panel_grid(len(panels), 3, (4.6, 4.0), run=run, sharey=True)
    looks = styles(selectivity["target"])
    thresholds = sorted(appearances["threshold"].unique())
    middle = appearances[appearances["threshold"] == thresholds[len(thresholds) // 2]]
    for axes, (keys, rows) in zip(grid, panels, strict=True):
        found = middle.loc[(middle[names] == pd.Series(keys, names)).all(axis=1)].set_index(
            "target"
        )
        for target, curve in rows.groupby("target", sort=False):
            look, measure = looks[target], ("selectivity", "low", "high")
            draw_curve(axes, curve, "layer", look, target_name(target), measure)
            layer = found["layer"][target]
            height = curve.loc[curve["layer"] == layer, "selectivity"]
            axes.plot([layer] * len(height), height, marker="^", markersize=9, color=look["color"])
        axes.axhline(0, color=MUTED, linewidth=0.9)
        for threshold in thresholds:
            axes.axhline(threshold, color=MUTED, linewidth=0.7, linestyle=":")
        layer_axis(axes)
        title = f"{readout_name(*keys[:2])}, k = {keys[2]}"
        prepare_axes(axes, title, LAYER, "selectivity (share of variance)")
    legend_beside(figure, grid[0])
    return figure


def plot_movements(
    causality: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Moved fraction and distance left against layer, a column a target; the longest context.

    In the upper row, what an edit of the probe's reading can move at most.
    """
    longest = causality["examples_seen"].max()
    table = causality[causality["examples_seen"] == longest]
    targets = [target for target in dict.fromkeys(table["target"]) if target != NO_TARGET]
    targets = targets or [NO_TARGET]  # none of the interventions follows a probe
    run = describe_measured(task, model, seed)
    figure, grid = panel_grid(
        2 * len(targets), len(targets), (5.6, 3.7), extra=(1.0, 0.8), run=run, sharex=True
    )
    moved, left = grid[: len(targets)], grid[len(targets) :]
    for target, upper, lower in zip(targets, moved, left, strict=True):
        title = f"{target_name(target)}, k = {longest}"
        _movement_curves(upper, table, target, FRACTION)
        _ceiling(upper, table, target)
        prepare_axes(upper, f"{title}: moved fraction", LAYER, "0: unmoved · 1: the donor's answer")
        _movement_curves(lower, table, target, DISTANCE)
        prepare_axes(lower, f"{title}: distance left", LAYER, "1: unmoved · 0: the donor's answer")
    legend_below(figure, moved[0])
    return figure


def plot_calibration(
    scores: pd.DataFrame,
    causality: pd.DataFrame,
    task: TaskConfig,
    seed: int,
) -> Figure:
    """A network whose algorithm is known: probe error against layer, and what interventions move.

    Layers are named by the line of the algorithm that they carry out, where it is new; the longest
    context. Random directions are left out: they hit rows on which the construction rests, and
    break it. So are intervals of the minimal edit, which reach over the whole panel.
    """
    longest = scores["examples_seen"].max()
    scores, causality = (table[table["examples_seen"] == longest] for table in (scores, causality))
    targets = [target for target in dict.fromkeys(causality["target"]) if target != NO_TARGET]
    run = f"{describe_constructed(task, seed)}, k = {longest}"
    figure, (read, *moved) = panel_grid(
        1 + len(targets), 1 + len(targets), (5.0, 4.8), extra=(1.0, 0.6), run=run
    )
    for target, curve in scores.groupby("target", sort=False):
        look = styles([target])[target]
        draw_curve(read, curve, "layer", look, target_name(target), ERROR)
    prepare_axes(read, "what a linear probe leaves", "", LEFT_OF_VARIANCE)
    read.set_ylim(bottom=0)
    read.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
    shown = causality[~causality["method"].str.endswith(RANDOM)]
    shown = shown.assign(**shown[["low", "high"]].where(shown["method"] != "minimal_edit"))
    for axes, target in zip(moved, targets, strict=True):
        _movement_curves(axes, shown, target, FRACTION)
        title = f"{target_name(target)}: moved fraction"
        prepare_axes(axes, title, "", "0: unmoved · 1: the donor's answer")
    lines = scores.drop_duplicates("layer").sort_values("layer")
    new = lines["line"] != lines["line"].shift()
    names = (lines["line"] + "   ").where(new, "") + lines["layer"].astype(str)
    for axes in (read, *moved):
        axes.set_xticks(lines["layer"], names, rotation=90, fontsize=8)
    legend_below(figure, moved[0])
    return figure


def _movement_curves(axes: Axes, table: pd.DataFrame, target: str, measure: Sequence[str]) -> None:
    """One curve a method: the measure (middle, low, high) of its interventions on a target, against
    layer.
    """
    # Interchange of the context last: it is what the others may lie on.
    rows = pd.concat(
        [table[table["target"] == name] for name in dict.fromkeys((target, NO_TARGET))]
    )
    looks = styles(rows["method"])
    for method, curve in rows.groupby("method", sort=False):
        look = looks[str(method)]
        ordered = curve.sort_values("layer")
        draw_curve(axes, ordered, "layer", look, method_name(str(method)), measure)
    for level in (0, 1):
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=":")
    axes.set_ylim(*MOVED_RANGE)
    layer_axis(axes)


def _ceiling(axes: Axes, table: pd.DataFrame, target: str) -> None:
    """The least ceiling of the interventions on a target: of those that the probe limits."""
    ceilings = table[table["target"] == target].groupby("layer")["ceiling"].min()
    axes.plot(
        ceilings.index,
        ceilings,
        color=INK,
        linestyle="-.",
        linewidth=1.2,
        label="ceiling of an edit: R² × what the context still moves",
    )


def plot_progress(
    progress: pd.DataFrame,
    nearest: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Heat maps, layers × steps: SPD of each layer's predictions to m steps, the nearest marked."""
    from matplotlib.colors import LogNorm

    longest = progress["examples_seen"].max()
    progress, nearest = (table[table["examples_seen"] == longest] for table in (progress, nearest))
    names = list(dict.fromkeys(nearest["algorithm"]))
    shown = progress[progress["algorithm"].isin(names)]
    known = shown["mean"][np.isfinite(shown["mean"])]  # none, where all algorithms diverged
    lowest = max(known.min() if len(known) else 0.0, 1e-6)
    norm = LogNorm(lowest, max(known.max() if len(known) else 0.0, 10 * lowest))
    run = describe_measured(task, model, seed)
    figure, grid = panel_grid(len(names), len(names), (5.2, 4.3), extra=(1.2, 0.3), run=run)
    for axes, name in zip(grid, names, strict=True):
        tables = (table[table["algorithm"] == name] for table in (shown, nearest))
        image = _progress_panel(axes, *tables, norm)
        title = f"{program_name(name)}, k = {longest}"
        prepare_axes(axes, title, "steps m", LAYER)
        axes.grid(visible=False)
    legend_below(figure, grid[0])
    color_bar(figure, image, grid, "SPD / variance of the labels")
    return figure


def _progress_panel(axes: Axes, progress: pd.DataFrame, nearest: pd.DataFrame, norm: LogNorm):
    grid = progress.pivot(index="layer", columns="steps", values="mean")
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis_r", norm=norm)
    columns = [grid.columns.get_loc(steps) for steps in nearest["nearest_steps"]]
    rows = [grid.index.get_loc(layer) for layer in nearest["layer"]]
    axes.plot(columns, rows, "o-", color=PALETTE[1], markeredgecolor="white", label="nearest step")
    axes.set_xticks(np.arange(grid.shape[1]), grid.columns)
    axes.set_yticks(np.arange(len(grid)), grid.index)
    return image
