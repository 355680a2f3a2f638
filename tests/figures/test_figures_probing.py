import pandas as pd
import pytest

from incontext_linear.figures import probing as figures_probing

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
    figure = figures_probing.plot_controls(probes, probes.assign(squared_error=1.0), attention)
    errors, best = figure.axes[:2]
    assert [line.get_linestyle() for line in errors.lines] == ["-", "--", "-", "--"]
    assert best.images[0].get_array().shape == (2, 5)
    assert [label.get_text() for label in best.get_yticklabels()] == [
        "linear, layer 2",
        "mlp 8, layer 2",
    ]


def test_selectivity_marks_the_layer_at_which_a_target_appears_and_no_other(probes):
    appearances = probes[probes["layer"] == 1].astype({"layer": float}).copy()
    appearances.loc[appearances["target"] == "least_squares", "layer"] = float("nan")
    figure = figures_probing.plot_selectivity(probes, appearances)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert [list(mark.get_xdata()) for mark in marks] == [[1.0], []]


@pytest.fixture(scope="module")
def movements():
    return pd.DataFrame(
        [
            {"method": m, "target": t, "layer": layer, "examples_seen": 2}
            for m in figures_probing.METHODS
            for t in (("all",) if m == "interchange_context" else TARGETS)
            for layer in LAYERS
        ]
    ).assign(fraction=0.5, low=0.4, high=0.6, distance=0.3, distance_low=0.2, distance_high=0.4)


def test_movements_show_every_method_in_both_measures(movements):
    figure = figures_probing.plot_movements(movements)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert sum(len(line.get_xdata()) == 3 for line in axes.lines) == len(
            figures_probing.METHODS
        )


def test_calibration_names_layers_by_what_they_compute_and_leaves_random_directions_out(
    probes, movements
):
    lines = pd.Series(["embedding", "step", "step"])
    scores = probes[probes["kind"] == "linear"].assign(line=lambda t: t["layer"].map(lines))
    figure = figures_probing.plot_calibration(scores, movements)
    read, *moved = figure.axes
    assert [label.get_text() for label in read.get_xticklabels()] == [
        "embedding   0",
        "step   1",
        "2",
    ]
    assert len(moved) == len(TARGETS)
    for axes in moved:
        assert (
            sum(len(line.get_xdata()) == 3 for line in axes.lines)
            == len(figures_probing.METHODS) - 2
        )


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
    figure = figures_probing.plot_progress(progress, nearest)
    assert [axes.images[0].get_array().shape for axes in figure.axes[:2]] == [(3, 3), (3, 2)]
    assert list(figure.axes[0].lines[0].get_xdata()) == [2, 2, 2]
