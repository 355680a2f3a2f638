"""The figures of the phase_diagram pipeline: SPD along an axis, the nearest predictors' map, the
heat map.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np
import pandas as pd

from incontext_linear.figures.style import (
    GRID,
    INK,
    LARGEST_DRAWN,
    MUTED,
    PALETTE,
    Axes,
    Figure,
    LogNorm,
    ScalarMappable,
    color_bar,
    draw_curves,
    layer_axis,
    legend_beside,
    log_scale,
    panel_grid,
    prepare_axes,
    styles,
)
from incontext_linear.figures.words import algorithm_name
from incontext_linear.phase_diagram.resampling import EACH
from incontext_linear.phase_diagram.transitions import is_logarithmic
from incontext_linear.phase_diagram.variants import NOISE_AXIS
from incontext_linear.tables import LEARNER

AXES = {
    "model.num_layers": "number of layers L",
    "model.num_heads": "number of heads M",
    "model.width": "width H",
    "model.mlp_width": "hidden units of each MLP",
    NOISE_AXIS: "noise σ²/τ²",
    "task.dim": "dimension d",
    "task.num_examples": "examples of a prompt n",
    "task.pool_size": "number of tasks in the pool",
    "training.num_steps": "training steps",
    "training.batch_size": "batch size",
    "training.learning_rate": "learning rate",
}
FAINTEST, FULL_MARGIN = 0.3, 10.0
LARGEST_RATIO = 30.0
MINIMUM_COLOR = PALETTE[1]


def axis_label(axis: str) -> str:
    """An axis in the field's words; the parameter's own name where there are none."""
    return AXES.get(axis, axis)


def ratio_name(value: float) -> str:
    """A number as a small fraction where it is one: ``1/9`` for 0.1111."""
    near = Fraction(value).limit_denominator(16)
    if near.denominator > 1 and abs(float(near) - value) < 0.005 * value:
        return f"{near.numerator}/{near.denominator}"
    return f"{value:.3g}"


def coordinate_names(axis: str, coordinates: Iterable[float]) -> list[str]:
    """Tick labels of an axis."""
    return [ratio_name(value) if axis == NOISE_AXIS else f"{value:.6g}" for value in coordinates]


def solid_colors(predictors: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    """A colour for each predictor, for areas: the curves' own."""
    from matplotlib.colors import to_rgb

    return {name: to_rgb(look["color"]) for name, look in styles(predictors).items()}


def _scope_titles(table: pd.DataFrame) -> dict[str, str]:
    """Scope → title: ``k = 2d = 16``, or without the number where that varies along the axis.

    A multiple of d that the prompts are too short for was taken at their last k, and says so.
    """
    seen = {
        str(scope): rows["examples_seen"].dropna().unique()
        for scope, rows in table.groupby("scope", sort=False)
    }
    fixed = {scope: int(numbers[0]) for scope, numbers in seen.items() if len(numbers) == 1}
    dim = _dimension(fixed)
    return {
        scope: scope
        if scope not in fixed
        else f"{scope} = {fixed[scope]}"
        if _is_multiple(scope, fixed[scope], dim)
        else f"k = {fixed[scope]}, the last"
        for scope in seen
    }


def _dimension(fixed: Mapping[str, int]) -> int | None:
    """The least whole d whose multiples are the k of most scopes; none of them: None."""
    fits = {
        dim: sum(_is_multiple(scope, k, dim) for scope, k in fixed.items())
        for dim in range(1, max(fixed.values(), default=0) + 1)
    }
    best = max(fits, key=fits.get, default=None)
    return best if best is not None and fits[best] else None


def _is_multiple(scope: str, seen: int, dim: int | None) -> bool:
    return dim is not None and abs(_multiple(scope) * dim - seen) <= 0.5


def _multiple(scope: str) -> float:
    """2.0 of ``k = 2d``."""
    return float(scope.removeprefix("k = ").removesuffix("d") or 1)


def _panels(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    summaries = table[table["scope"] != EACH]
    titles = _scope_titles(summaries)
    return [(titles[str(scope)], rows) for scope, rows in summaries.groupby("scope", sort=False)]


def plot_axis_divergences(
    divergences: pd.DataFrame, nearest: pd.DataFrame, transitions: pd.DataFrame, sweep: str = ""
) -> Figure:
    """SPD to each predictor against the axis, a panel for the mean over k and each named k.

    Bands are intervals. The bar above a panel has the nearest predictor's colour; where it changes
    there is a dotted line, with its interval in grey and the share of resamples that have the
    change.
    """
    panels = _panels(divergences)
    run = _run(divergences, sweep)
    figure, grid = panel_grid(
        len(panels), len(panels), (4.5, 4.5), extra=(2.4, 0.3), run=run, sharey=True
    )
    colors = solid_colors(divergences["predictor"])
    for axes, (title, rows) in zip(grid, panels, strict=True):
        axis = rows["axis"].iloc[0]
        draw_curves(axes, rows, "coordinate", "predictor", marker="o", markersize=3.5)
        log_scale(axes)
        _scale_axis(axes, axis, sorted(set(rows["coordinate"])))
        prepare_axes(axes, title, axis_label(axis), f"SPD({algorithm_name(LEARNER)}, algorithm)")
        axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=34)
        best, changes = (
            table[table["scope"] == rows["scope"].iloc[0]] for table in (nearest, transitions)
        )
        _phase_bar(axes, best, changes, colors)
    for axes in grid[1:]:
        axes.set_ylabel("")
    legend_beside(figure, grid[0])
    return figure


def _run(table: pd.DataFrame, sweep: str) -> str:
    """Which sweep a figure shows, of how many seeds and prompts."""
    if not sweep:
        return ""
    seeds, prompts = (sorted({int(n) for n in table[name]}) for name in ("seeds", "prompts"))
    counts = (
        f"{numbers[0]} {word}{'' if numbers == [1] else 's'}"
        if len(numbers) == 1
        else f"{numbers[0]} to {numbers[-1]} {word}s"
        for numbers, word in ((seeds, "seed"), (prompts, "prompt"))
    )
    return f"sweep {sweep} · {' · '.join(counts)} a value"


def _scale_axis(axes: Axes, axis: str, coordinates: Iterable[float]) -> None:
    """Ticks at the sweep's own values."""
    from matplotlib.ticker import NullLocator

    if is_logarithmic(axis, coordinates):
        axes.set_xscale("log")
    axes.set_xticks(coordinates, coordinate_names(axis, coordinates))
    axes.xaxis.set_minor_locator(NullLocator())


def _phase_bar(axes: Axes, nearest: pd.DataFrame, changes: pd.DataFrame, colors: dict) -> None:
    """The nearest predictor along the axis as a bar above a panel, and where it changes through the
    panel.
    """
    bar = axes.inset_axes((0, 1.015, 1, 0.045))
    start, end = axes.get_xlim()
    names = (
        [*changes["before"], changes["after"].iloc[-1]]
        if len(changes)
        else [nearest["nearest"].iloc[0]]
    )
    edges = [start, *changes["location"], end]
    for name, left, right in zip(names, edges[:-1], edges[1:], strict=True):
        bar.axvspan(left, right, color=colors[name], linewidth=0)
    for change in changes.itertuples():
        if pd.notna(change.low):
            axes.axvspan(change.low, change.high, color=MUTED, alpha=0.16, linewidth=0)
        axes.axvline(change.location, color=INK, linewidth=1.0, linestyle=":")
        place = {
            "xy": (change.location, 1),
            "xycoords": ("data", "axes fraction"),
            "xytext": (0, 2),
        }
        bar.annotate(
            f"{change.share:.0%}", **place, textcoords="offset points", ha="center"
        ).set_fontsize(7)
    bar.set_xscale(axes.get_xscale())
    bar.set_xlim(start, end)
    bar.set_axis_off()


def plot_nearest(nearest: pd.DataFrame, sweep: str = "") -> Figure:
    """The nearest predictor at every axis value and k: its colour, the stronger the larger the
    margin.

    Hatched where the margin's interval reaches 1; beside the map, the mean over k and the named k
    with their margins.

    Args:
        nearest: as `nearest_table` gives it.
        sweep: which sweep it is of.
    """
    each, panels = nearest[nearest["scope"] == EACH], _panels(nearest)
    num_values, longest = nearest["axis_value"].nunique(), int(each["examples_seen"].max())
    map_width = float(np.clip(0.2 * longest, 4.5, 10))
    columns = 1 + len(panels)
    size = (map_width + 1.25 * len(panels)) / columns, max(3.0, 0.55 * num_values + 1.2)
    figure, grid = panel_grid(
        columns,
        columns,
        size,
        extra=(3.4, 0.3),
        run=_run(nearest, sweep),
        sharey=True,
        width_ratios=[map_width, *[0.95] * len(panels)],
    )
    colors = solid_colors(nearest["nearest"])
    _paint(grid[0], each, each["examples_seen"].to_numpy(), colors)
    _label_runs(grid[0], each, map_width / longest, colors)
    axis = nearest["axis"].iloc[0]
    prepare_axes(grid[0], "Nearest algorithm", "examples seen, k", axis_label(axis))
    layer_axis(grid[0])
    coordinates = sorted(set(nearest["coordinate"]))
    grid[0].set_yticks(range(num_values), coordinate_names(axis, coordinates))
    for axes, (title, rows) in zip(grid[1:], panels, strict=True):
        _paint(axes, rows, np.ones(len(rows)), colors)
        prepare_axes(axes, "", "", "")
        axes.set_title(_in_two_lines(title), fontsize=9, color=INK)
        axes.set_xticks([])
        _write_margins(axes, rows, colors)
    for axes in grid:
        axes.grid(visible=False)
        axes.tick_params(length=0)
    _nearest_legend(figure, grid, nearest, colors)
    return figure


def _in_two_lines(title: str) -> str:
    """``k = 2d = 16`` with the number below, ``mean over k`` in two halves."""
    if title.count(" = ") > 1:
        return "\n= ".join(title.rsplit(" = ", 1))
    return title.replace(" over", "\nover").replace(", ", ",\n")


def _rows(table: pd.DataFrame) -> list[int]:
    """Each row's place on the vertical axis: axis values in order, evenly spaced."""
    return np.searchsorted(np.unique(table["axis_value"]), table["axis_value"]).tolist()


def _strength(margin: float) -> float:
    """Opacity of a cell: from `FAINTEST` for a tie to 1 where the runner-up is ten times as far."""
    if np.isnan(margin):
        return 1.0
    return FAINTEST + (1 - FAINTEST) * float(np.clip(np.log(margin) / np.log(FULL_MARGIN), 0, 1))


def _faded(color: tuple[float, float, float], margin: float) -> tuple[float, ...]:
    strength = _strength(margin)
    return tuple(strength * part + 1 - strength for part in color)


def _paint(axes: Axes, table: pd.DataFrame, columns: np.ndarray, colors: dict) -> None:
    from matplotlib.patches import Rectangle

    for cell, row, column in zip(table.itertuples(), _rows(table), columns, strict=True):
        corner = (column - 0.5, row - 0.5)
        face = _faded(colors[cell.nearest], cell.margin)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor=face, linewidth=0.4))
        if not cell.clear:
            hatched = Rectangle(
                corner, 1, 1, fill=False, hatch="/////", edgecolor=MUTED, linewidth=0
            )
            axes.add_patch(hatched)
    for row in range(1, table["axis_value"].nunique()):
        axes.axhline(row - 0.5, color="white", linewidth=2)
    axes.set_xlim(min(columns) - 0.5, max(columns) + 0.5)
    axes.set_ylim(-0.5, table["axis_value"].nunique() - 0.5)


def _text_color(face: tuple[float, ...]) -> str:
    return "white" if np.dot(face, (0.299, 0.587, 0.114)) < 0.48 else INK


def _label_runs(axes: Axes, table: pd.DataFrame, inches_a_cell: float, colors: dict) -> None:
    """Write the name on every stretch of equal cells that is wide enough for it."""
    for row, cells in enumerate(rows for _, rows in table.groupby("axis_value")):
        starts = (cells["nearest"] != cells["nearest"].shift()).cumsum()
        for _, run in cells.groupby(starts):
            name, middle = str(run["nearest"].iloc[0]), run.iloc[len(run) // 2]
            words = algorithm_name(name)
            if len(run) * inches_a_cell < 0.075 * len(words) + 0.1:
                continue
            face = _faded(colors[name], float(middle["margin"]))
            center = (int(run["examples_seen"].min()) + int(run["examples_seen"].max())) / 2
            label = axes.text(
                center, row, words, ha="center", va="center", fontsize=8, color=_text_color(face)
            )
            if not run["clear"].all():  # hatching would run through the letters
                label.set_bbox({"facecolor": face, "linewidth": 0, "pad": 1.5})


def _write_margins(axes: Axes, table: pd.DataFrame, colors: dict) -> None:
    for cell, row in zip(table.itertuples(), _rows(table), strict=True):
        if pd.notna(cell.margin):
            face = _faded(colors[cell.nearest], cell.margin)
            text = f"×{cell.margin:.3g}" if cell.margin < 1000 else "×1000+"
            label = axes.text(
                1, row, text, ha="center", va="center", fontsize=8, color=_text_color(face)
            )
            label.set_bbox({"facecolor": face, "linewidth": 0, "pad": 1})


def _nearest_legend(
    figure: Figure, grid: Iterable[Axes], nearest: pd.DataFrame, colors: dict
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullLocator

    shown = [name for name in colors if name in set(nearest["nearest"])]
    handles = [Patch(facecolor=colors[name], label=algorithm_name(name)) for name in shown]
    unclear = Patch(
        facecolor="white", edgecolor=MUTED, hatch="/////", label="not clear", linewidth=0
    )
    figure.legend(
        handles=[*handles, unclear], loc="outside right center", frameon=False, fontsize=9
    )
    shades = [_faded((0.25, 0.25, 0.25), FULL_MARGIN**part) for part in np.linspace(0, 1, 32)]
    scale = ScalarMappable(
        LogNorm(1, FULL_MARGIN), LinearSegmentedColormap.from_list("margin", shades)
    )
    label = "runner-up's SPD / nearest's"
    bar = color_bar(figure, scale, grid, label, pad=0.02, aspect=14, shrink=0.9)
    bar.set_ticks([1, 2, 5, 10], labels=["×1", "×2", "×5", "≥ ×10"], fontsize=8)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_edgecolor(GRID)


def plot_heat_map(heat_map: pd.DataFrame, sweep: str = "") -> Figure:
    """Learner × predictor: SPD, a panel for the mean over k and each named k.

    Colours are each SPD over its row's minimum, so that rows of very different SPDs can be
    compared; numbers are the SPDs. The minimum is boxed and says the share of resamples in which it
    is the minimum; the diagonal λ = σ²/τ², where there is one, is dashed.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import NullLocator

    panels = _panels(heat_map)
    names = list(dict.fromkeys(heat_map["predictor"]))
    num_values = heat_map["axis_value"].nunique()
    wide = len(names) > 8
    size = max(3.2, 0.66 * len(names) + 0.8), 0.52 * num_values + (1.6 if wide else 2.0)
    columns, run = 1 if wide else len(panels), _run(heat_map, sweep)
    figure, grid = panel_grid(len(panels), columns, size, extra=(1.2, 0.8), run=run)
    norm = LogNorm(1, LARGEST_RATIO, clip=True)
    for axes, (title, rows) in zip(grid, panels, strict=True):
        image = _heat_panel(axes, rows, names, norm)
        _label_heat_panel(axes, rows, names, title)
    for axes in grid[:-1] if wide else ():
        axes.tick_params(labelbottom=False)
    figure.supylabel(
        f"{axis_label(heat_map['axis'].iloc[0])} of the learner", color=MUTED, fontsize="medium"
    )
    bar = color_bar(figure, image, grid, "SPD over the row's minimum", aspect=30)
    bar.set_ticks([1, 2, 5, 10, 30], labels=["×1", "×2", "×5", "×10", "≥ ×30"], fontsize=8)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    _heat_legend(figure, bool(heat_map["diagonal"].any()))
    return figure


def _heat_panel(axes: Axes, rows: pd.DataFrame, names: list[str], norm: LogNorm) -> ScalarMappable:
    from matplotlib.colors import to_rgb

    grid = rows.pivot(index="axis_value", columns="predictor", values="mean")[names]
    least = grid.min(axis=1).clip(lower=np.finfo(float).tiny)
    shown = grid.where(grid < LARGEST_DRAWN).div(least, axis=0)
    image = axes.imshow(shown, aspect="auto", origin="lower", cmap="viridis_r", norm=norm)
    axes.set_facecolor(GRID)
    places = {name: column for column, name in enumerate(names)}
    for cell, row in zip(rows.itertuples(), _rows(rows), strict=True):
        column = places[cell.predictor]
        text = f"{cell.mean:.2g}" if cell.mean < LARGEST_DRAWN else "diverged"
        if cell.minimum:
            text += f"\n{cell.share:.0%}"
            _box(axes, row, column, 0.46, MINIMUM_COLOR, "-", 2.2)
        if cell.diagonal:
            _box(axes, row, column, 0.38 if cell.minimum else 0.44, INK, (0, (3, 2)), 1.2)
        ratio = shown.iat[row, column]
        face = to_rgb(GRID) if np.isnan(ratio) else image.cmap(norm(ratio))[:3]
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=_text_color(face))
    return image


def _box(
    axes: Axes, row: int, column: int, half: float, color: str, dash: object, width: float
) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - half, row - half)
    axes.add_patch(
        Rectangle(
            corner, 2 * half, 2 * half, fill=False, edgecolor=color, linestyle=dash, linewidth=width
        )
    )


def _label_heat_panel(axes: Axes, rows: pd.DataFrame, names: list[str], title: str) -> None:
    axis = rows["axis"].iloc[0]
    penalties = dict(zip(rows["predictor"], rows["penalty"], strict=True))
    ridges = axis == NOISE_AXIS and all(np.isfinite(penalties[name]) for name in names)
    prepare_axes(axes, title, "ridge penalty λ" if ridges else "", "")
    labels = [ratio_name(penalties[name]) if ridges else algorithm_name(name) for name in names]
    turn = {"rotation": 0} if ridges else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), labels, **turn)
    coordinates = rows.drop_duplicates("axis_value").sort_values("axis_value")["coordinate"]
    axes.set_yticks(range(len(coordinates)), coordinate_names(axis, coordinates.tolist()))
    axes.grid(visible=False)
    axes.tick_params(length=0)


def _heat_legend(figure: Figure, has_diagonal: bool) -> None:
    from matplotlib.patches import Patch

    minimum = Patch(fill=False, edgecolor=MINIMUM_COLOR, linewidth=2.2)
    handles, labels = [minimum], ["row's minimum, and the share of resamples in which it is"]
    if has_diagonal:
        handles.append(Patch(fill=False, edgecolor=INK, linestyle=(0, (3, 2)), linewidth=1.2))
        labels.append("diagonal, λ = σ²/τ²")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
