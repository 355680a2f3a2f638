"""The alignment figures show what the tables say."""

import numpy as np
import pandas as pd
import pytest

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.figures.alignment import plot_alignment, plot_ranks, plot_reading

TASK, MODEL = TaskConfig(dim=2, num_examples=6), ModelConfig(num_layers=2, num_heads=2, width=16)
RUN = (TASK, MODEL, 0)


@pytest.fixture
def verdicts() -> pd.DataFrame:
    rows = [
        (0, "context", "weights", "found", 0.95),
        (1, "context", "weights", "not found", 0.4),
        (2, "context", "weights", "not read", np.nan),
        (0, "query", "answer", "not found", -3.0),
    ]
    table = pd.DataFrame(rows, columns=["layer", "positions", "model", "verdict", "share"])
    spread = {"low": table["share"] - 0.1, "high": table["share"] + 0.1}
    return table.assign(**spread, ceiling=0.99, random=0.1, control=np.nan)


def test_a_panel_a_causal_model_and_found_places_are_filled(verdicts: pd.DataFrame):
    figure = plot_alignment(verdicts, *RUN)
    first, second = figure.axes
    assert [axes.get_title("left") for axes in (first, second)] == [
        "w exchanged",
        "the whole answer",
    ]
    filled = [
        line
        for line in first.lines
        if line.get_marker() == "o" and line.get_markerfacecolor() == line.get_color()
    ]
    assert [
        np.asarray(line.get_xdata()).tolist() for line in filled if np.size(line.get_xdata()) == 1
    ] == [[0]]
    assert first.get_ylim()[0] > -1  # an exchange that does harm does not squeeze the others


def test_ranks_are_shown_for_the_best_layer_of_each_place():
    shares = pd.DataFrame(
        {
            "source": "learner",
            "model": "weights",
            "positions": "context",
            "layer": [0, 0, 1, 1],
            "rank": [1, 3, 1, 3],
            "share": [0.2, 0.5, 0.4, 0.9],
            "random": 0.0,
        }
    )
    shares = shares.assign(low=shares["share"], high=shares["share"])
    (axes,) = plot_ranks(shares, *RUN).axes
    assert [text.get_text() for text in axes.texts] == ["layer 1"]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.4, 0.9]


def test_the_reading_figure_names_its_edges():
    readings = pd.DataFrame(
        [
            (layer, "gradient_descent", m, 0.1, 0.05, 0.2)
            for layer in range(3)
            for m in (1.0, 2.0, 4.0)
        ],
        columns=["layer", "family", "number", "error", "low", "high"],
    )
    edges = pd.DataFrame(
        {"order": [1, 2], "layer": [1, 2], "head": [0, 1], "tokens": ["x_tokens", "y_tokens"]}
    ).assign(chosen_share=[0.5, 0.96])
    scores = pd.DataFrame(
        {
            "edges": ["all", "chosen", "without_chosen", "random", "without_random"],
            "number": [8, 2, 6, 2, 6],
            "share": [1.0, 0.95, 0.0, 0.2, 0.8],
        }
    )
    heads = pd.DataFrame(
        {"layer": [1, 1, 2, 2], "head": [0, 1, 0, 1], "spd": [1.0, 0.1, 0.2, 0.01], "intact": 0.01}
    )
    held, paths, ablated, *_ = plot_reading(readings, edges, scores, heads, *RUN).axes
    assert [text.get_text() for text in paths.texts] == ["1.0 x", "2.1 y"]
    assert len(held.lines) == 2  # the embedding is left out
    np.testing.assert_allclose(
        np.asarray(ablated.images[0].get_array()), [[2, 1], [np.log10(20), 0]]
    )
