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
