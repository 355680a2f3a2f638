"""The interactive form of the figures: the same tables, names and colours, drawn by Plotly.

One function a kind of chart. The report and kedro-viz show what they give; a pipeline's chapter
says which tables go into which panel. Colours are hexadecimal and backgrounds transparent, so that
a page can exchange them for those of a dark theme (`dark_color`). Only a map's are not: a scale of
colours is ordered by lightness, which an exchange would break.
"""

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from incontext_linear.figures.style import (
    DASHES,
    GRID,
    INK,
    MUTED,
    styles,
    without_diverged,
)
from incontext_linear.figures.words import algorithm_name
from incontext_linear.tables import scientific

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PANEL_HEIGHT = 330
"""Pixels of one panel of curves, with its title and axis."""
MOST_TICKS = 13
"""Up to so many different values on the horizontal axis have a tick each."""
MOST_POWERS = 5
"""Powers of ten beside a scale of colours."""
CHARACTERS_ACROSS = 30
"""Of the names of all columns: so many have room side by side on the narrowest page."""
LETTER_WIDTH = 7
"""Pixels, for the height of names that stand upright."""
_PLOTLY_DASHES = dict(zip(DASHES, ("solid", "dash", "dot", "dashdot"), strict=True)) | {
    "--": "dash"
}
_BAND = "2e"
"""Opacity of an interval, as the last two digits of its colour."""


@dataclass(frozen=True)
class Panel:
    """Curves with intervals in one pair of axes.

    Attributes:
        table: tidy, a row a point.
        x: the column of the horizontal axis.
        by: the column whose values are the curves.
        title, xlabel, ylabel: of the panel.
        measure: columns of the middle, the low and the high end; or of the middle alone.
        name: turns a value of ``by`` into words.
        log_x, log_y: whether an axis is logarithmic.
        floor: smaller values are drawn here; the hover says what they are.
        marks: text → place on the horizontal axis, a dotted line each.
        levels: text → place on the vertical axis, a dotted line each.
        looks: value of ``by`` → its colour and dash; those left out look as their names do.
    """

    table: pd.DataFrame
    x: str
    by: str
    title: str
    xlabel: str
    ylabel: str
    measure: Sequence[str] = ("mean", "low", "high")
    name: Callable[[str], str] = algorithm_name
    log_x: bool = False
    log_y: bool = False
    floor: float | None = None
    marks: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    looks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def curves(panels: Sequence[Panel]) -> "Figure":
    """Panels one above the other with one legend: a name's curves are shown or hidden in all.

    What diverged ends where it does, as in `figures.style.draw_curves`.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(panels),
        cols=1,
        subplot_titles=[f"<b>{panel.title}</b>" for panel in panels],
        vertical_spacing=0.25 / len(panels) if len(panels) > 1 else 0.0,
    )
    labelled: set[str] = set()
    for row, panel in enumerate(panels, start=1):
        _draw_panel(figure, row, panel, labelled)
    height = PANEL_HEIGHT * len(panels)
    _finish(figure, height + 22 * -(-len(labelled) // 3))
    return figure


def heat_map(
    grid: pd.DataFrame,
    xlabel: str,
    ylabel: str,
    colour: str,
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    text: pd.DataFrame | None = None,
    hover: pd.DataFrame | None = None,
    marked: Sequence[tuple[Any, Any]] = (),
    marked_label: str = "nearest",
    scale: str = "Viridis_r",
) -> "Figure":
    """A matrix in colours: its index goes down, its columns go across.

    Args:
        grid: the values; missing ones are left blank.
        xlabel, ylabel: of the columns and of the index.
        colour: what the colours stand for, with its unit.
        log: whether the colours are logarithmic.
        limits: values of the ends of the scale; None: the least and the greatest.
        text: written into the cells, of the same shape.
        hover: said before the value where the pointer is, of the same shape.
        marked: (index, column) of cells with a circle.
        marked_label: what the circles say.
        scale: Plotly's name of the colours.
    """
    from plotly import graph_objects as go

    values = grid.to_numpy(dtype=float)
    positive = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = limits or ((positive.min(), positive.max()) if positive.size else (0.1, 1.0))
    shown = np.log10(np.clip(values, low, high)) if log else values
    ends = tuple(np.log10((low, high))) if log else (low, high)
    columns, index = [str(name) for name in grid.columns], [str(name) for name in grid.index]
    bar: dict[str, Any] = {"title": {"text": colour, "side": "right"}, "thickness": 12}
    if log:
        first, last = int(np.ceil(ends[0])), int(np.floor(ends[1]))
        powers = range(first, last + 1, 1 + max(0, last - first) // MOST_POWERS)
        bar |= {"tickvals": list(powers), "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    said = grid.map(lambda value: f"{colour}: {short(value)}")
    if hover is not None:
        said = hover + "<br>" + said
    image = go.Heatmap(
        z=shown,
        x=columns,
        y=index,
        zmin=ends[0],
        zmax=ends[1],
        colorscale=_kept(scale),
        colorbar=bar,
        customdata=said.to_numpy(),
        hovertemplate=f"{ylabel} %{{y}}<br>{xlabel} %{{x}}<br>%{{customdata}}<extra></extra>",
        text=None if text is None else text.to_numpy(),
        texttemplate=None if text is None else "%{text}",
        xgap=1,
        ygap=1,
    )
    figure = go.Figure(image)
    if marked:
        look = {"size": 9, "color": "white", "line": {"color": "black", "width": 1.2}}
        figure.add_scatter(
            x=[str(column) for _, column in marked],
            y=[str(row) for row, _ in marked],
            mode="markers",
            marker=look,
            name=marked_label,
            hoverinfo="skip",
        )
    axis: dict[str, Any] = {"type": "category", "showgrid": False, "automargin": True}
    figure.update_xaxes(title_text=xlabel, **axis)
    figure.update_yaxes(title_text=ylabel, autorange="reversed", **axis)
    height = 150 + 24 * len(grid)
    longest = max(map(len, columns))
    if longest * len(columns) > CHARACTERS_ACROSS:  # upright, so that none covers another
        figure.update_xaxes(tickangle=-90)
        height += LETTER_WIDTH * longest
    _finish(figure, height)
    return figure


def short(value: float) -> str:
    """A number for a reader: two or three digits, a true minus, and 10⁻⁵, not ``1e-05``."""
    if not np.isfinite(value):
        return "diverged" if np.isinf(value) else "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−")
    return scientific(value, 1)


def interval(middle: float, low: float, high: float) -> str:
    """``0.3 [0.2, 0.4]``."""
    return f"{short(middle)} [{short(low)}, {short(high)}]"


def dark_color(color: str) -> str:
    """A colour ``#rrggbb`` as a dark page shows it: the same hue, never darker than mid-grey."""
    exact = {INK: "#e5e7eb", MUTED: "#9ca3af", GRID: "#374151"}
    if color in exact:
        return exact[color]
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lifted = colorsys.hls_to_rgb(hue, 0.85 if lightness < 0.15 else max(lightness, 0.6), saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in lifted)


def _kept(scale: str) -> list[tuple[float, str]]:
    """A scale of colours in a form that no theme exchanges: ``rgb(68, 1, 84)``."""
    from plotly import colors

    places, names = zip(*colors.get_colorscale(scale), strict=True)
    shades = map(str, colors.convert_colors_to_same_type(names)[0])
    return list(zip(map(float, places), shades, strict=True))


def _draw_panel(figure: "Figure", row: int, panel: Panel, labelled: set[str]) -> None:
    middle, *ends = panel.measure
    renamed = panel.table.rename(columns={middle: "mean"})
    low, high = ends or ("mean", "mean")
    renamed = renamed.assign(low=renamed[low], high=renamed[high])
    shown = without_diverged(renamed)
    for key, rows in shown.groupby(panel.by, sort=False):
        whole = renamed.loc[rows.index]
        diverged = rows["mean"].isna() & whole["mean"].notna()
        ordered = rows.assign(diverges=diverged).sort_values(panel.x)
        _draw_curve(figure, row, panel, str(key), ordered, bool(ends), labelled)
    line = {"color": MUTED, "dash": "dot", "width": 1}
    for text, place in panel.marks.items():
        at = {"xanchor": "left", "yanchor": "top", "font": {"color": MUTED, "size": 11}}
        figure.add_vline(place, row=cast("str", row), line=line)  # Plotly's hint forgets numbers
        where = np.log10(place) if panel.log_x else place
        figure.add_annotation(
            x=where, y=1, yref="y domain", text=text, showarrow=False, row=row, col=1, **at
        )
    for place in panel.levels.values():
        figure.add_hline(place, row=cast("str", row), line=line)
    x_type, y_type = ("log" if log else "linear" for log in (panel.log_x, panel.log_y))
    figure.update_xaxes(title_text=panel.xlabel, type=x_type, row=row, col=1)
    if shown[panel.x].nunique() <= MOST_TICKS:
        figure.update_xaxes(tickvals=sorted(shown[panel.x].unique()), row=row, col=1)
    figure.update_yaxes(title_text=panel.ylabel, type=y_type, row=row, col=1)
    if panel.log_y:
        figure.update_yaxes(range=_log_range(shown, panel.floor), dtick=1, row=row, col=1)
        figure.update_yaxes(exponentformat="power", row=row, col=1)


def _draw_curve(
    figure: "Figure",
    row: int,
    panel: Panel,
    key: str,
    rows: pd.DataFrame,
    has_interval: bool,
    labelled: set[str],
) -> None:
    look = panel.looks.get(key) or styles([key])[key]
    label = panel.name(key) + (" (diverges)" if rows["diverges"].any() else "")
    least = panel.floor if panel.floor is not None else 0.0 if panel.log_y else -np.inf
    group = {"legendgroup": key, "row": row, "col": 1}
    if has_interval:
        whole = rows.dropna(subset=["mean"])
        low, high = (whole[end].clip(lower=least or 1e-300) for end in ("low", "high"))
        figure.add_scatter(
            x=[*whole[panel.x], *whole[panel.x][::-1]],
            y=[*low, *high[::-1]],
            fill="toself",
            fillcolor=look["color"] + _BAND,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            **group,
        )
        said = [interval(*ends) for ends in rows[["mean", "low", "high"]].to_numpy()]
    else:
        said = [short(float(value)) for value in rows["mean"]]
    figure.add_scatter(
        x=rows[panel.x],
        y=rows["mean"].clip(lower=least),
        mode="lines+markers",
        line={"color": look["color"], "dash": _PLOTLY_DASHES.get(look["linestyle"], "solid")},
        marker={"size": 4},
        name=label,
        showlegend=label not in labelled,
        customdata=said,
        hovertemplate=f"{label}<br>{panel.xlabel}: %{{x}}<br>%{{customdata}}<extra></extra>",
        **group,
    )
    labelled.add(label)


def _log_range(shown: pd.DataFrame, floor: float | None) -> list[float]:
    """Of the middle values, so that an interval which reaches down to 0 does not squeeze them."""
    values = shown["mean"].to_numpy(dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return [-1.0, 0.0]
    least = positive.min() if floor is None else max(floor, positive.min())
    return [float(np.log10(least)) - 0.3, float(np.log10(positive.max())) + 0.3]


def _finish(figure: "Figure", height: int) -> None:
    """The look that all charts share; the legend stands above, where no curve is."""
    figure.update_layout(
        height=height,
        template="none",
        paper_bgcolor="#ffffff00",
        plot_bgcolor="#ffffff00",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 64, "r": 12, "t": 36, "b": 48},
        legend={"orientation": "h", "y": 1 + 30 / height, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    figure.update_annotations(font_size=13, selector={"font": {"size": 16}})
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "tickfont_size": 11}
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(title_font_color=MUTED, title_font_size=12, title_standoff=8, **axis)
