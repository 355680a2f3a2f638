import io

import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.figures import probing as figures_probing
from incontext_linear.probing.config import InterventionsConfig

METHODS = InterventionsConfig().methods
RUN = TaskConfig(dim=2, num_examples=4), ModelConfig(num_layers=2, num_heads=2, width=8), 0
TARGETS, READOUTS, LAYERS = ("moment", "least_squares"), (("linear", 0), ("mlp", 8)), range(3)


@pytest.fixture(scope="module")
def probes():
    return pd.DataFrame(
        [
            {
                "source": "learner",
                "target": target,
                "kind": kind,
                "hidden_units": units,
                "examples_seen": 2,
                "layer": layer,
                "squared_error": 0.9 - 0.2 * layer,
                "low": 0.1,
                "high": 1.0,
                "selectivity": 0.2 * layer,
            }
            for target in TARGETS
            for kind, units in READOUTS
            for layer in LAYERS
        ]
    )


def test_controls_stand_dashed_beside_errors_and_the_best_layers_attention(probes):
    attention = probes.merge(pd.DataFrame({"token": range(7)}), how="cross").assign(attention=0.2)
    figure = figures_probing.plot_controls(
        probes, probes.assign(squared_error=1.0), attention, *RUN
    )
    errors, best = figure.axes[:2]
    assert [line.get_linestyle() for line in errors.lines] == ["-", "--", "-", "--"]
    assert best.images[0].get_array().shape == (2, 5)
    assert [label.get_text() for label in best.get_yticklabels()] == [
        "linear, layer 2",
        "MLP of 8 units, layer 2",
    ]


def test_selectivity_marks_the_layer_at_which_a_target_appears_and_no_other(probes):
    appearances = probes[probes["layer"] == 1].astype({"layer": float}).assign(threshold=0.2)
    appearances.loc[appearances["target"] == "least_squares", "layer"] = float("nan")
    figure = figures_probing.plot_selectivity(probes, appearances, *RUN)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert [list(mark.get_xdata()) for mark in marks] == [[1.0], []]


@pytest.fixture(scope="module")
def movements():
    return pd.DataFrame(
        [
            {"method": m, "target": t, "layer": layer, "examples_seen": 2}
            for m in METHODS
            for t in (("all",) if m == "interchange_context" else TARGETS)
            for layer in LAYERS
        ]
    ).assign(
        fraction=0.5,
        low=0.4,
        high=0.6,
        distance=0.3,
        distance_low=0.2,
        distance_high=0.4,
        ceiling=lambda table: np.where(table["method"] == "pattern_edit", 0.25, np.nan),
    )


def curves_over_layers(axes):
    return {
        line.get_label(): list(line.get_ydata())
        for line in axes.lines
        if len(line.get_xdata()) == 3
    }


def test_movements_show_every_method_in_both_measures_and_the_ceiling_of_an_edit(movements):
    figure = figures_probing.plot_movements(movements, *RUN)
    assert len(figure.axes) == 4
    for row, axes in enumerate(figure.axes):
        curves = curves_over_layers(axes)
        ceilings = [name for name in curves if name.startswith("ceiling")]
        assert len(curves) - len(ceilings) == len(METHODS)
        assert [curves[name] for name in ceilings] == [[0.25] * 3] * (row < 2)


def test_movements_of_no_target_are_drawn(movements):
    whole = movements[movements["target"] == "all"]
    figure = figures_probing.plot_movements(whole, *RUN)
    figure.savefig(io.BytesIO())
    assert "interchange of the whole context" in curves_over_layers(figure.axes[0])


def test_calibration_names_layers_by_what_they_compute_and_leaves_random_directions_out(
    probes, movements
):
    lines = pd.Series(["embedding", "step", "step"])
    scores = probes[probes["kind"] == "linear"].assign(line=lambda t: t["layer"].map(lines))
    figure = figures_probing.plot_calibration(scores, movements, RUN[0], RUN[2])
    read, *moved = figure.axes
    assert [label.get_text() for label in read.get_xticklabels()] == [
        "embedding   0",
        "step   1",
        "2",
    ]
    assert len(moved) == len(TARGETS)
    for axes in moved:
        assert len(curves_over_layers(axes)) == len(METHODS) - 2
        # The minimal edit's interval would fill the panel.
        assert sum(bool(band.get_paths()) for band in axes.collections) == len(METHODS) - 3


def test_probe_figures_have_a_panel_a_read_out_and_a_row_a_layer(probes):
    assert len(figures_probing.plot_probe_scores(probes, *RUN).axes) == len(READOUTS)
    attention = probes.merge(pd.DataFrame({"token": range(5)}), how="cross").assign(attention=0.2)
    axes = figures_probing.plot_probe_attention(attention, *RUN).axes[0]
    assert axes.images[0].get_array().shape == (3, 5)
    assert axes.get_title(loc="left") == "Xᵀy, linear, k = 2"


@pytest.mark.slow
def test_attention_maps_have_a_panel_a_layer_and_head_and_ticks_of_tokens():
    maps = {"attention": torch.full((2, 3, 5, 5), 0.2)}
    figure = figures_probing.plot_attention(maps, *RUN)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6
    # Rows share their axes, and the outer panels alone say what they are.
    for labels in (panels[-1].get_xticklabels(), panels[0].get_yticklabels()):
        assert [label.get_text() for label in labels] == ["x₁", "y₁", "x₂", "y₂", "x₃"]


def test_long_prompts_have_ticks_at_x_tokens_only():
    figure = figures_probing.plot_attention({"attention": torch.zeros(1, 1, 79, 79)}, *RUN)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[:3] == ["x₁", "x₃", "x₅"]
    assert len(labels) <= 24


def test_progress_has_a_heat_map_for_each_algorithm_with_steps():
    steps = {"gradient_descent": [1, 2, 4], "iterative_newton": [0, 1], "learner": [0]}
    progress = pd.DataFrame(
        [
            {"algorithm": a, "steps": m, "layer": layer, "examples_seen": 2, "mean": 0.1 + m}
            for a, numbers in steps.items()
            for m in numbers
            for layer in LAYERS
        ]
    )
    nearest = pd.DataFrame(
        [
            {"algorithm": a, "layer": layer, "examples_seen": 2, "nearest_steps": steps[a][-1]}
            for a in ("gradient_descent", "iterative_newton")
            for layer in LAYERS
        ]
    )
    figure = figures_probing.plot_progress(progress, nearest, *RUN)
    assert [axes.images[0].get_array().shape for axes in figure.axes[:2]] == [(3, 3), (3, 2)]
    assert list(figure.axes[0].lines[0].get_xdata()) == [2, 2, 2]
