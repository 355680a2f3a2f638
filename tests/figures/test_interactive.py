"""The interactive charts: the same numbers, names and colours as the figures in Matplotlib."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from incontext_linear.figures.interactive import Panel, curves, dark_color, heat_map, short
from incontext_linear.figures.style import styles


@pytest.fixture
def table():
    """Least squares falls below the floor; gradient descent diverges at its last point."""
    rows = [
        {"predictor": name, "examples_seen": k, "mean": value, "low": value / 2, "high": 2 * value}
        for name, values in {"ols": (1.0, 1e-20, 0.1), "gd_10": (1.0, 2.0, 1e20)}.items()
        for k, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows).assign(diverged=lambda rows: rows["mean"] > 1e12)


def draw(table, **settings) -> tuple[Any, dict[tuple[str, str], Any]]:
    panel = Panel(table, "examples_seen", "predictor", "SPD", "k", "SPD", **settings)
    figure: Any = curves([panel, panel])
    named = [trace for trace in figure.data if trace.name]
    return figure, {(trace.name, trace.xaxis): trace for trace in named}


def test_a_curve_has_the_name_and_colour_of_the_other_figures_and_one_legend_entry(table):
    figure, lines = draw(table)
    looks = styles(["ols", "gd_10"])
    assert lines["least squares", "x"].line.color == looks["ols"]["color"]
    diverging = "gradient descent, 10 steps (diverges)"
    assert lines[diverging, "x2"].line.color == looks["gd_10"]["color"]
    in_legend = [trace.name for trace in figure.data if trace.showlegend]
    assert in_legend == ["least squares", diverging]
    groups = [trace.legendgroup for trace in figure.data]
    assert groups.count("ols") == groups.count("gd_10") == 4  # a band and a line in each panel


def test_the_hover_says_the_value_though_it_is_drawn_at_the_floor(table):
    _, lines = draw(table, log_y=True, floor=1e-3)
    curve = lines["least squares", "x"]
    assert list(curve.y) == [1.0, 1e-3, 0.1]
    assert curve.customdata[1] == "1.0·10⁻²⁰ [5.0·10⁻²¹, 2.0·10⁻²⁰]"


def test_what_diverges_is_not_drawn(table):
    _, lines = draw(table)
    drawn = lines["gradient descent, 10 steps (diverges)", "x"].y
    assert list(drawn[:2]) == [1.0, 2.0]
    assert math.isnan(drawn[2])


def test_an_interval_that_reaches_below_0_does_not_stretch_a_logarithmic_axis(table):
    figure, _ = draw(table[table["predictor"] == "ols"].assign(low=-1.0), log_y=True, floor=1e-3)
    assert figure.layout.yaxis.range[0] == pytest.approx(-3.3)


def test_a_map_says_its_values_and_marks_cells():
    grid = pd.DataFrame([[1.0, 0.01], [np.nan, 10.0]], index=[1, 2], columns=["a", "b"])
    figure: Any = heat_map(grid, "column", "row", "share", log=True, marked=[(1, "b")])
    image, circles = figure.data
    assert image.z[0].tolist() == [0.0, -2.0]
    assert image.customdata.tolist() == [
        ["share: 1", "share: 0.01"],
        ["share: –", "share: 10"],
    ]
    assert (circles.x, circles.y) == (("b",), ("1",))


@pytest.mark.parametrize("scale", ["Viridis_r", "Viridis", "Blues", "OrRd"])
def test_a_dark_page_keeps_the_lightness_of_a_scale_of_colours_in_order(scale):
    """Exchanged one by one, the darkest colours of Viridis became a bright magenta."""
    grid = pd.DataFrame({"a": [1.0, 2.0]})
    figure: Any = heat_map(grid, "column", "row", "share", marked=[(0, "a")], scale=scale)
    image, circles = figure.data
    text = image.to_json() + circles.to_json()
    assert re.findall(r"#[0-9a-f]{6}", text, re.IGNORECASE) == []  # what a page exchanges
    shades = [[int(part) for part in re.findall(r"\d+", color)] for _, color in image.colorscale]
    lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in shades]
    assert lightness in (sorted(lightness), sorted(lightness, reverse=True))
    assert max(lightness) - min(lightness) > 100


@pytest.mark.parametrize(
    ("values", "most"), [((1e-9, 1e9), 6), ((1.0, 1.0), 1), ((2.0, 3.0), 0), ((0.5, 2.0), 1)]
)
def test_a_scale_of_colours_has_few_powers_of_ten_or_none(values, most):
    figure: Any = heat_map(pd.DataFrame({"a": values}), "column", "row", "share", log=True)
    assert len(figure.data[0].colorbar.tickvals or ()) <= most


def test_long_names_of_columns_stand_upright_in_a_higher_figure():
    figures: list[Any] = [
        heat_map(pd.DataFrame(1.0, index=["x"], columns=columns), "column", "row", "share")
        for columns in (["a", "b"], ["gradient descent by k", "nearest neighbours"])
    ]
    short_names, long_names = figures
    assert long_names.layout.xaxis.tickangle == -90
    assert long_names.layout.height > short_names.layout.height + 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00412, "0.00412"),
        (3e-5, "3.0·10⁻⁵"),
        (0.0, "0"),
        (math.inf, "diverged"),
        (12.34, "12.3"),
        (-0.25, "−0.25"),
        (-3e-5, "−3.0·10⁻⁵"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return sum(
        share * (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4)
        for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


@pytest.mark.parametrize(
    "name", ["transformer", "ols", "ridge_0.001", "gd_100", "newton_30", "sgd", "zero", "first_1"]
)
def test_every_colour_can_be_seen_on_a_dark_page(name):
    page, line = luminance("#111827"), luminance(dark_color(styles([name])[name]["color"]))
    assert (line + 0.05) / (page + 0.05) > 3  # WCAG's contrast of graphical objects
