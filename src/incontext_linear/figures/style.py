"""The look that all figures share: colours, axes, curves with intervals, grids of panels.

Figures are made without pyplot, so they hold no global state and need no display. Matplotlib is
imported by the functions that draw: pipelines import this package to be built, seconds before.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from incontext_linear.figures.words import algorithm_name, parse_algorithm
from incontext_linear.tables import LEARNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
else:  # Kedro resolves the annotations of nodes
    Axes = Colorbar = Figure = LogNorm = ScalarMappable = Any

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
# Okabe and Ito's palette: distinguishable with the common forms of colour blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7b61c9")
LEARNER_COLOR = "#111827"
LARGEST_DRAWN = 1e12
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))

_FAMILIES: dict[str, tuple[str, str, float, float, Any]] = {
    "ridge": ("#8a3300", "#f7b98a", 1e-2, 1e1, DASHES[0]),
    "gd": ("#8fdcc2", "#00543d", 1.0, 100.0, DASHES[1]),
    "newton": ("#b9aaf0", "#3b2a94", 1.0, 30.0, DASHES[2]),
    "knn": ("#e8b4d3", "#8f3d69", 1.0, 10.0, DASHES[0]),
    "first": ("#6b1f2b", "#d98a94", 1.0, 10.0, DASHES[2]),
}
"""Family → colours of a small and of a large number, which numbers are small and large, its dash.

Gradient methods are dashed and second-order ones dotted, so that colour is not the only sign.
"""
_LOOKS: dict[str, tuple[str, Any]] = {
    LEARNER: (LEARNER_COLOR, DASHES[0]),
    "least_squares": (PALETTE[0], DASHES[0]),
    "averaging": (PALETTE[4], DASHES[0]),
    "bayes": (PALETTE[5], DASHES[1]),
    "zero": ("#9ca3af", DASHES[2]),
    "sgd": (PALETTE[6], DASHES[1]),
    "decaying_sgd": ("#b8965a", DASHES[1]),
    "sgd_weight_decay": ("#5e4719", DASHES[1]),
    "ridge": (PALETTE[1], DASHES[0]),
    "gd": (PALETTE[2], DASHES[1]),
    "diagonal_descent": ("#66a61e", DASHES[1]),
    "covariance_descent": ("#3f6b00", DASHES[2]),
    "heavy_ball": ("#1b9e9e", DASHES[1]),
    "chebyshev": ("#0b5f66", DASHES[2]),
    "richardson": ("#7dbf9a", DASHES[1]),
    "gradient_step": ("#8fdcc2", DASHES[0]),
    "newton": (PALETTE[7], DASHES[2]),
    "conjugate_gradients": ("#a6328c", DASHES[2]),
    "knn": (PALETTE[3], DASHES[0]),
    "weighted_neighbors": ("#7a3b60", DASHES[0]),
    "first": ("#a3404d", DASHES[2]),
    "sherman_morrison": ("#a6328c", DASHES[0]),
    "gram": (PALETTE[3], DASHES[0]),
    "loss": (LEARNER_COLOR, DASHES[0]),
    "spd_to_ols": (PALETTE[0], DASHES[0]),
    "minimal_edit": (PALETTE[0], DASHES[0]),
    "pattern_edit": (PALETTE[1], DASHES[0]),
    "interchange_attended": (PALETTE[2], DASHES[0]),
    "interchange_context": (MUTED, DASHES[1]),
}
_SAME = {
    "ols": "least_squares",
    "moment": "averaging",  # the weights of averaging are Xᵀy over a number
    "gradient_descent": "gd",
    "gradient_flow": "gd",
    "one_pass_sgd": "sgd",
    "iterative_newton": "newton",
    "newton_start": "newton",
    "nearest_neighbors": "knn",
    "first_examples": "first",
    "momentum": "heavy_ball",
}
"""What one algorithm is called elsewhere: as a candidate, a filter, a target or a program."""
_VARIANTS = {"_random": DASHES[2], "_by_k": DASHES[3]}
"""Ends the name of a random direction of an edit's norm, or of a family with numbers of each k's
own → its dash; the colour is that of the edit or the family."""


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and dash for each name, which depend on the name and on nothing else.

    So an algorithm, target or intervention looks the same in every figure, whatever is beside it.
    Within a family (``ridge_0.1``) the number decides the shade.
    """
    return {name: _style(name) for name in dict.fromkeys(names)}


def _style(name: str) -> dict[str, Any]:
    from matplotlib.colors import to_hex, to_rgb

    for ending, dash in _VARIANTS.items():
        if name.endswith(ending):
            return _style(name.removesuffix(ending)) | {"linestyle": dash}
    family, number = parse_algorithm(name)
    known = _SAME.get(name, name)
    if known in _LOOKS:
        color, dash = _LOOKS[known]
    elif number is not None and family in _FAMILIES:
        small, large, lowest, highest, dash = _FAMILIES[family]
        color = _shade(small, large, lowest, highest, number)
    else:
        color, dash = _own_color(name), DASHES[0]
    if number is not None and name.endswith("_distance"):
        red, green, blue = (0.62 * part for part in to_rgb(color))
        color, dash = to_hex((red, green, blue)), DASHES[1]
    return {"color": color, "linestyle": dash}


def _shade(small: str, large: str, lowest: float, highest: float, number: float) -> str:
    from matplotlib.colors import to_hex, to_rgb

    place = np.log(max(number, lowest) / lowest) / np.log(highest / lowest)
    place = min(float(place), 1.0)
    parts = zip(to_rgb(small), to_rgb(large), strict=True)
    return to_hex([(1 - place) * a + place * b for a, b in parts])


def _own_color(name: str) -> str:
    """Of a name that is not known here: a hue drawn by the name itself."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    drawn = zlib.crc32(name.encode()) / 2**32
    return to_hex(hsv_to_rgb((drawn, 0.75, 0.55 + 0.3 * (drawn * 997 % 1))))


def panel_grid(
    num_panels: int,
    num_columns: int,
    panel_size: tuple[float, float],
    *,
    extra: tuple[float, float] = (1.0, 0.4),
    run: str = "",
    **subplots: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with equal panels, row by row.

    Args:
        num_panels: how many are needed; the last row may be shorter.
        num_columns: panels side by side, at most.
        panel_size: width and height of one, inches.
        extra: width and height beside the panels, for legends and bars.
        run: which run, seed or size is shown: written above all panels.
        subplots: as for `Figure.subplots`, such as ``sharey``.
    """
    from matplotlib.figure import Figure

    columns = min(num_columns, num_panels)
    rows = -(-num_panels // columns)
    size = panel_size[0] * columns + extra[0], panel_size[1] * rows + extra[1]
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **subplots).flatten().tolist()
    for unused in panels[num_panels:]:
        unused.remove()
    if run:
        figure.suptitle(run, x=0.995, ha="right", fontsize=8, color=MUTED)
    return figure, panels[:num_panels]


def prepare_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """The look that all panels share."""
    axes.set_title(title, loc="left", y=1.0, fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=MUTED)
    axes.set_ylabel(ylabel, color=MUTED)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def color_bar(
    figure: Figure, image: ScalarMappable, axes: Axes | Iterable[Axes], label: str, **settings: Any
) -> Colorbar:
    """A colour bar whose label and ticks look as the panels' do.

    Args:
        figure: of the panels.
        image: whose colours it explains.
        axes: the panels that it stands beside.
        label: what the colours mean, with the unit.
        settings: as for `Figure.colorbar`, such as ``shrink``.
    """
    bar = figure.colorbar(image, ax=axes, **settings)
    bar.set_label(label, color=MUTED)
    bar.ax.tick_params(which="both", colors=MUTED, labelsize=9)
    return bar


def layer_axis(axes: Axes) -> None:
    """Whole layers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_beside(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, right of its panels, made of what one panel shows."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def legend_below(figure: Figure, axes: Axes, num_columns: int = 3) -> None:
    """One legend for the whole figure, below its panels, made of what one panel shows."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=num_columns, frameon=False, fontsize=9
    )


def legend_under(axes: Axes, num_columns: int = 2) -> None:
    """A legend of one panel's own, below its horizontal axis, where it covers no data."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
    axes.legend(**place, ncols=num_columns, frameon=False, fontsize=8)


def draw_curve(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    look: dict[str, Any],
    label: str,
    measure: Sequence[str] = ("mean", "low", "high"),
    **line: Any,
) -> None:
    """One curve with its interval: columns of the middle, the low and the high end."""
    middle, low, high = (rows[column] for column in measure)
    axes.plot(rows[x], middle, label=label, **{"linewidth": 1.8} | look | line)
    axes.fill_between(rows[x], low, high, color=look["color"], alpha=0.18, linewidth=0)


def draw_curves(
    axes: Axes,
    table: pd.DataFrame,
    x: str,
    by: str,
    name: Callable[[str], str] = algorithm_name,
    **line: Any,
) -> None:
    """A curve with its interval for each value of ``by``; what diverged ends where it does.

    Drawn on, it would squeeze the rest of the picture to a line; the legend says that it diverges.
    """
    shown = without_diverged(table)
    for key, rows in shown.groupby(by, sort=False):
        whole = table.loc[rows.index]
        left_out = rows["mean"].isna() & whole["mean"].notna()
        diverges = left_out.any() or ("diverged" in table and whole["diverged"].any())
        label = name(str(key)) + (" (diverges)" if diverges else "")
        draw_curve(axes, rows, x, _style(str(key)), label, **line)


def without_diverged(table: pd.DataFrame) -> pd.DataFrame:
    """The curves' numbers, missing where the table says that they diverged, or beyond all size."""
    values = table[["mean", "low", "high"]]
    within = values.abs() < LARGEST_DRAWN
    if "diverged" in table:
        within = within.mul(~table["diverged"], axis=0)
        # An interval may reach further than its mean.
        values = values.clip(upper=10 * values["mean"].where(~table["diverged"]).max())
    return table.assign(**values.where(within))


def log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis, if anything that is drawn is above 0."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    if any((values[np.isfinite(values)] > 0).any() for values in drawn):
        axes.set_yscale("log")


def mark_dimension(axes: Axes, dim: int) -> None:
    """A dotted line at k = d, where X is square."""
    axes.axvline(dim, color=MUTED, linewidth=0.9, linestyle=":")
    axes.annotate(
        "k = d",
        (dim, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -10),
        textcoords="offset points",
    ).set(color=MUTED, fontsize=8)


def draw(figure: Figure, save_args: Mapping[str, Any]) -> bytes:
    """The file of a figure, which keeps its resolution and its layout engine.

    Args:
        figure: of one page.
        save_args: of `matplotlib.figure.Figure.savefig`.
    """
    file = BytesIO()
    with _laid_out(figure, save_args.get("dpi", figure.dpi)):
        figure.savefig(file, **save_args)
    return file.getvalue()


@contextmanager
def _laid_out(figure: Figure, dpi: int | float) -> Iterator[None]:
    """Place what a figure shows, once: `Figure.savefig` draws it twice if it has a layout engine,
    the first time for that alone.
    """
    engine, before = figure.get_layout_engine(), figure.dpi
    if engine is None:
        yield
        return
    figure.dpi = dpi
    engine.execute(figure)
    figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.dpi = before
        figure.set_layout_engine(engine)
