import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from support.made_up_sweep import crossing, measure, rough

from incontext_linear.figures import style
from incontext_linear.figures.phase_diagram import (
    _scope_titles,
    axis_label,
    coordinate_names,
    plot_axis_divergences,
    plot_heat_map,
    plot_nearest,
    ratio_name,
    solid_colors,
)
from incontext_linear.phase_diagram.nearest import divergence_table, heat_map_table, nearest_table
from incontext_linear.phase_diagram.resampling import EACH
from incontext_linear.phase_diagram.transitions import transition_table

VALUES, NOISES = (1, 2, 4, 8), (0.0, 0.25, 0.5)


def tables(resamples, penalties=None):
    return (
        divergence_table(resamples, 0.9),
        nearest_table(resamples, 0.9),
        heat_map_table(resamples, penalties or {}, 0.9),
        transition_table(resamples, 0.9),
    )


@pytest.fixture(scope="module")
def depth():
    return tables(measure(VALUES, rough(crossing(3.0)), points=(1.0, 2.0), num_resamples=50))


@pytest.fixture(scope="module")
def noise():
    penalties = {"a": 0.0, "b": 0.25, "c": 0.5}
    make = rough(
        lambda value: np.array([0.1 + abs(value - penalty) for penalty in penalties.values()])
    )
    return tables(measure(NOISES, make, axis="task.noise_std", num_resamples=50), penalties)


def draws(figure):
    figure.savefig(io.BytesIO())
    return figure


@pytest.mark.slow
def test_divergences_have_a_panel_for_the_mean_and_each_named_k_and_the_other_figures_colours(
    depth,
):
    divergences, nearest, _, transitions = depth
    figure = draws(plot_axis_divergences(divergences, nearest, transitions))
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "mean over k",
        "k = d = 2",
        "k = 3, the last",
    ]
    looks = style.styles("abc")
    for axes in panels:
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8"]
        assert [to_hex(line.get_color()) for line in axes.lines[:3]] == [
            looks[name]["color"] for name in "abc"
        ]
        assert axes.get_xlabel() == "number of layers L"


@pytest.mark.slow
def test_a_transition_is_a_line_at_its_place_and_a_change_of_the_bar(depth):
    divergences, nearest, _, transitions = depth
    figure = draws(plot_axis_divergences(divergences, nearest, transitions))
    panel, bar = figure.axes[0], figure.axes[0].child_axes[0]
    place = transitions.query("scope == 'mean over k'")["location"].iloc[0]
    assert panel.lines[-1].get_xdata()[0] == pytest.approx(place)
    assert [patch.get_facecolor()[:3] for patch in bar.patches] == [
        solid_colors("abc")[n] for n in "ab"
    ]
    assert bar.get_xlim() == panel.get_xlim()


def test_without_transitions_the_bar_has_one_colour():
    parts = tables(
        measure((1, 2), rough(lambda value: np.array([0.1, 0.5, 0.9])), num_resamples=20)
    )
    figure = draws(plot_axis_divergences(parts[0], parts[1], parts[3]))
    assert len(figure.axes[0].child_axes[0].patches) == 1


def test_the_map_has_a_cell_for_every_value_and_k_and_hatches_what_is_not_clear(depth):
    nearest = depth[1]
    figure = draws(plot_nearest(nearest))
    cells = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_fill()]
    hatched = [p for p in figure.axes[0].patches if p.get_hatch()]
    each = nearest[nearest["scope"] == EACH]
    assert len(cells) == len(each) == len(VALUES) * 3
    assert len(hatched) == (~each["clear"]).sum()
    assert [axes.get_title() for axes in figure.axes[1:4]] == [
        "mean\nover k",
        "k = d\n= 2",
        "k = 3,\nthe last",
    ]


def test_the_margin_is_the_strength_of_the_colour(depth):
    nearest = depth[1].assign(clear=True)
    for margin, lightness in ((1.0, 0.7), (10.0, 0.0), (1e6, 0.0)):
        cell = plot_nearest(nearest.assign(margin=margin, nearest="a")).axes[0].patches[0]
        color = np.array(solid_colors("abc")["a"])
        expected = (1 - lightness) * color + lightness
        assert np.allclose(cell.get_facecolor()[:3], expected)


def test_solid_colours_differ_where_curves_differ_only_by_their_dashes():
    names = [*(f"p{index}" for index in range(20)), "knn_3", "knn_3_distance"]
    colors = solid_colors(names)
    assert len(set(colors.values())) == len(names)


def test_a_multiple_of_d_that_prompts_are_too_short_for_is_named_as_their_last_prefix():
    def titles(**seen):
        scopes = {"k = 1.5d": "half", "k = 2d": "two", "k = 10d": "ten"}
        rows = [(scope, seen[name]) for scope, name in scopes.items() if name in seen]
        table = pd.DataFrame(rows, columns=["scope", "examples_seen"])
        return list(_scope_titles(table).values())

    assert titles(two=6, ten=11) == ["k = 2d = 6", "k = 11, the last"]
    assert titles(ten=11) == ["k = 11, the last"]
    assert titles(half=4, two=6) == ["k = 1.5d = 4", "k = 2d = 6"]
    assert titles(ten=30) == ["k = 10d = 30"]


def test_the_sweep_its_seeds_and_prompts_are_named(depth):
    figure = plot_heat_map(depth[2], "depth")
    assert figure.get_suptitle().startswith("sweep depth · ")
    assert plot_heat_map(depth[2]).get_suptitle() == ""


@pytest.mark.slow
def test_forty_examples_and_fifteen_predictors_are_drawn():
    names = [f"predictor_{index}" for index in range(15)]
    make = rough(lambda value: 0.1 + np.abs(np.arange(15) - 2 * value), prompts=5, examples=40)
    parts = tables(measure(range(1, 7), make, names=names, points=(1.0,), num_resamples=20))
    draws(plot_nearest(parts[1]))
    figure = draws(plot_heat_map(parts[2]))
    assert figure.axes[0].images[0].get_array().shape == (6, 15)


def test_the_heat_map_of_a_noise_sweep_has_ridges_by_penalty_and_a_dashed_diagonal(noise):
    heat_map = noise[2].assign(diagonal=noise[2]["penalty"] == noise[2]["coordinate"])
    figure = draws(plot_heat_map(heat_map))
    axes = figure.axes[0]
    assert axes.get_xlabel() == "ridge penalty λ"
    assert figure.get_supylabel() == "noise σ²/τ² of the learner"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1/4", "1/2"]
    assert len(axes.patches) == 6
    assert len(figure.legends[0].get_texts()) == 2


def test_the_heat_map_of_another_axis_names_the_predictors(depth):
    figure = draws(plot_heat_map(depth[2]))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert len(figure.legends[0].get_texts()) == 1


@pytest.mark.slow
def test_what_diverged_is_left_out_and_the_rest_is_drawn(depth):
    divergences, nearest, heat_map, transitions = (table.copy() for table in depth)
    for table in (divergences, heat_map):
        table.loc[table["predictor"] == "c", ["mean", "low", "high"]] = 1e300
    assert (
        draws(plot_axis_divergences(divergences, nearest, transitions)).axes[0].get_ylim()[1] < 1e3
    )
    texts = [text.get_text() for text in draws(plot_heat_map(heat_map)).axes[0].texts]
    assert texts.count("diverged") == len(VALUES)


@pytest.mark.slow
def test_one_value_and_one_seed_are_drawn():
    make = rough(lambda value: np.array([0.1, 0.5]))
    parts = tables(measure((4,), make, seeds=(0,), names=("a", "b"), num_resamples=10))
    draws(plot_axis_divergences(parts[0], parts[1], parts[3]))
    draws(plot_nearest(parts[1]))
    draws(plot_heat_map(parts[2]))


def test_coordinates_are_named_in_the_fields_terms():
    assert [ratio_name(value) for value in (0.0, 0.0625, 0.1111, 4 / 9, 1.0, 0.3)] == [
        "0",
        "1/16",
        "1/9",
        "4/9",
        "1",
        "3/10",
    ]
    assert coordinate_names("model.width", [16.0, 1024.0]) == ["16", "1024"]
    assert axis_label("my.parameter") == "my.parameter"


@pytest.mark.slow
def test_tables_are_not_changed_by_drawing(depth):
    before = [table.copy() for table in depth]
    plot_nearest(depth[1])
    plot_heat_map(depth[2])
    for table, copy in zip(depth, before, strict=True):
        pd.testing.assert_frame_equal(table, copy)
