"""Every measure that a sweep's variants keep has a place in the figures and in the report."""

from typing import Any

import pandas as pd

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.figures.across_seeds import CURVES, LAYERS, plot_layers
from incontext_linear.phase_diagram.across_seeds.measures import read_measures
from incontext_linear.report import Results
from incontext_linear.report.trainings import seeds


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


def variables(used: dict[int, float]) -> pd.DataFrame:
    """Means of ten causal variables' shares and finds in two layers; only those given are used."""
    rows = [
        {
            "measure": measure,
            "point": "",
            "series": f"model_{number}, query",
            "position": layer,
            "mean": used.get(number, nothing * number) if layer == 2 else nothing * number,
        }
        for measure, nothing in (("share of the counterfactual", -0.1), ("variable found", 0.0))
        for number in range(10)
        for layer in (1, 2)
    ]
    return pd.DataFrame(rows).assign(low=-1.0, high=1.0, seeds=5, over="seeds")


def test_of_many_causal_variables_those_that_reach_most_are_drawn():
    """Ten of which one is used: it was the one left out when the smallest means were drawn."""
    means = variables({9: 1.0})
    shares, finds = plot_layers(means, means.assign(seed=0), "variables").axes
    named = shares.get_legend_handles_labels()[1]
    assert "model_9, the query's token" in named
    assert len(named) == 8
    colors = {line.get_color() for line in shares.get_lines()}
    assert len(colors) == 8
    assert finds.get_legend_handles_labels()[1] == ["model_9, the query's token"]


def test_the_report_shows_the_same_variables_as_the_figure_in_the_same_colours():
    means = variables({9: 1.0, 4: 1.0})
    figure = plot_layers(means, means.assign(seed=0), "variables")
    drawn = [
        {str(line.get_label()): line.get_color() for line in axes.get_lines()}
        for axes in figure.axes
    ]
    results = Results({"across_seeds_means": means}, TaskConfig(), ModelConfig(), 0)
    chapter = seeds(results)
    assert chapter is not None
    chart: Any = chapter.shown[0].figure
    lines = [trace for trace in chart.data if trace.name]
    for place, axis in enumerate(("x", "x2")):
        own = {line.name: line.line.color for line in lines if line.xaxis == axis}
        assert own == {name: drawn[place][name] for name in own}
        assert set(own) == set(figure.axes[place].get_legend_handles_labels()[1])
    assert chapter.shown[0].definition == "alignment"
    assert chapter.answer is not None
    assert chapter.answer.words == (
        "Causal variables found in all 5 trainings: model_4, the query's token (layer 2); "
        "model_9, the query's token (layer 2)."
    )


def test_no_variable_that_all_trainings_hold_is_said():
    chapter = seeds(
        Results({"across_seeds_means": variables({3: 0.8})}, TaskConfig(), ModelConfig(), 0)
    )
    assert chapter is not None
    assert chapter.answer is not None
    assert chapter.answer.words == "None of the variables asked for is found in all 5 trainings."
