"""Every measure that a sweep's variants keep has a place in the figures and in the report."""

import pandas as pd

from incontext_linear.figures.across_seeds import CURVES, LAYERS, plot_layers
from incontext_linear.phase_diagram.across_seeds.measures import read_measures


def test_causal_variables_over_seeds_are_read_and_drawn():
    verdicts = pd.DataFrame(
        {
            "layer": [1, 2],
            "positions": ["query", "query"],
            "model": ["answer", "answer"],
            "verdict": ["not found", "found"],
            "share": [0.3, 0.95],
        }
    )
    measured = read_measures({"08_reporting/alignment_verdicts": lambda: verdicts}, {})
    names = {values.measure for values in measured}
    assert names == {"share of the counterfactual", "variable found"}
    assert names <= {*CURVES, *LAYERS}
    rows = [
        {"measure": name, "point": "", "series": "answer", "position": layer, "mean": 0.5}
        for name in names
        for layer in (1, 2)
    ]
    single = pd.DataFrame(rows).assign(seed=0)
    means = pd.DataFrame(rows).assign(low=0.4, high=0.6, seeds=1, over="prompts")
    assert len(plot_layers(means, single, "variables").axes) == 2


def test_of_many_causal_variables_those_that_reach_most_are_drawn():
    """Ten of which one is used: it was the one left out when the smallest means were drawn."""
    rows = [
        {
            "measure": "share of the counterfactual",
            "point": "",
            "series": f"model {number}",
            "position": layer,
            "mean": 0.9 if number == 9 and layer == 2 else -0.1 * number,
        }
        for number in range(10)
        for layer in (1, 2)
    ]
    single = pd.DataFrame(rows).assign(seed=0)
    means = pd.DataFrame(rows).assign(low=-1.0, high=1.0, seeds=5, over="seeds")
    (axes,) = plot_layers(means, single, "variables").axes
    named = axes.get_legend_handles_labels()[1]
    assert "model 9" in named
    assert len(named) == 8
    colors = {line.get_color() for line in axes.get_lines()}
    assert len(colors) == 8
