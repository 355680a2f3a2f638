import io

import numpy as np
import pandas as pd
import pytest

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.figures import behavioral_comparison, model_training, style, words
from incontext_linear.tables import LEARNER

RUN = TaskConfig(dim=2, num_examples=5), ModelConfig(num_layers=3, num_heads=2, width=8), 4


def curves(*names):
    rows = [
        {
            "predictor": name,
            "examples_seen": k,
            "mean": 1.0 / (k + 1),
            "low": 0.5 / (k + 1),
            "high": 2.0 / (k + 1),
            "diverged": False,
        }
        for name in names
        for k in range(5)
    ]
    return pd.DataFrame(rows)


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_divergences_show_a_curve_with_an_interval_for_every_predictor_in_both_panels():
    names = curves("ols", "knn_3_distance")
    figure = behavioral_comparison.plot_divergences(names, names, *RUN)
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        labels = [line.get_label() for line in axes.lines[:2]]
        assert labels == ["least squares", "3 nearest neighbours, by distance"]
        assert len(axes.collections) == 2
        assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]


def test_figures_say_which_size_and_seed_they_show():
    figure = behavioral_comparison.plot_divergences(curves("ols"), curves("ols"), *RUN)
    expected = "d = 2, 5 examples · 3 layers of width 8, 2 heads · seed 4 · intervals over prompts"
    assert figure.get_suptitle() == expected


@pytest.mark.parametrize(("trained", "marked"), [(3, True), (5, False)])
def test_curves_against_k_say_where_training_ended(trained: int, marked: bool):
    task, model, seed = RUN
    run = task.model_copy(update={"num_examples": trained}), model, seed  # curves end at k = 4
    divergences = behavioral_comparison.plot_divergences(curves("ols"), curves("ols"), *run)
    risks = behavioral_comparison.plot_risks(curves(LEARNER), curves(LEARNER), *run)
    for axes in (*divergences.axes, *risks.axes):
        assert ("trained up to here" in texts(axes)) == marked


def test_figures_do_not_call_every_network_a_transformer():
    figure = behavioral_comparison.plot_divergences(curves("ols"), curves("ols"), *RUN)
    figure_of_risks = behavioral_comparison.plot_risks(curves(LEARNER), curves(LEARNER), *RUN)
    assert figure.axes[0].get_ylabel() == "SPD(learner, algorithm)"
    assert figure_of_risks.axes[1].get_title("left") == "How far from linear the learner is"
    assert figure_of_risks.axes[0].lines[0].get_label() == "learner"


def test_risks_draw_exact_predictors_at_a_floor_instead_of_dropping_them():
    exact = curves("ols").assign(mean=0.0, low=0.0, high=0.0)
    figure = behavioral_comparison.plot_risks(
        pd.concat([curves(LEARNER), exact]), curves(LEARNER), *RUN
    )
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert (lines["least squares"].get_ydata() > 0).all()
    assert "smaller values are drawn here" in texts(figure.axes[0])


def test_the_floor_takes_no_more_room_than_the_learners_own_curve():
    exact = curves("ols").assign(mean=0.0, low=0.0, high=0.0)
    figure = behavioral_comparison.plot_risks(
        pd.concat([curves(LEARNER), exact]), curves(LEARNER), *RUN
    )
    bottom, top = np.log10(figure.axes[0].get_ylim())
    least = np.log10(0.2)  # the learner's, at k = 4
    assert least - bottom < 1.5 < top - bottom


def test_risks_leave_no_room_for_a_floor_that_nothing_reaches():
    noisy = pd.concat([curves(LEARNER, "ols")])
    figure = behavioral_comparison.plot_risks(noisy, curves(LEARNER), *RUN)
    figure.savefig(io.BytesIO())
    assert "smaller values are drawn here" not in texts(figure.axes[0])
    assert figure.axes[0].get_position().height > 0.7


def wild():
    """A predictor that answers two examples and diverges from the third on."""
    table = curves("gd_10")
    table["diverged"] = table["examples_seen"] > 2
    grown = {name: np.where(table["diverged"], 1e20, table[name]) for name in ("mean", "high")}
    return table.assign(**grown)


@pytest.mark.slow
@pytest.mark.parametrize("beyond", [1e20, 1e300, float("inf"), float("nan")])
def test_what_diverges_is_drawn_off_and_named_so_and_the_rest_is_drawn(beyond):
    table = wild()
    table.loc[table["diverged"], ["mean", "high"]] = beyond
    both = pd.concat([curves("ols"), table], ignore_index=True)
    figure = behavioral_comparison.plot_divergences(both, both, *RUN)
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    drawn = lines["gradient descent, 10 steps (diverges)"].get_ydata()
    assert np.isfinite(drawn).tolist() == [True, True, False, False]
    assert axes.get_ylim()[1] < 1e3
    assert "least squares" in lines


def test_risks_are_drawn_where_a_predictor_diverges():
    risk = pd.concat([curves(LEARNER, "ols"), wild()], ignore_index=True)
    figure = behavioral_comparison.plot_risks(risk, curves(LEARNER), *RUN)
    figure.savefig(io.BytesIO())
    assert 1e-3 < figure.axes[0].get_ylim()[0] < figure.axes[0].get_ylim()[1] < 1e3


def test_everything_may_diverge():
    table = wild().assign(diverged=True)
    behavioral_comparison.plot_divergences(table, table, *RUN).savefig(io.BytesIO())


def test_an_algorithm_has_the_same_look_whatever_is_beside_it():
    alone = style.styles(["ridge_0.1"])["ridge_0.1"]
    beside = style.styles(["ols", "zero", "my_own", "ridge_1", "ridge_0.1"])["ridge_0.1"]
    assert alone == beside


def test_the_algorithms_of_the_parameters_look_different_from_each_other():
    ridges, steps = ["ridge_0.1", "ridge_1", "ridge_10"], ["gd_1", "gd_3", "gd_10", "newton_5"]
    others = ["knn_3", "knn_3_distance", "averaging", "zero", "bayes", "first_1", "sgd", "ols"]
    names = [*ridges, *steps, *others, LEARNER]
    looks = {(look["color"], look["linestyle"]) for look in style.styles(names).values()}
    assert len(looks) == len(names)


def test_names_of_ones_own_stay_distinguishable():
    looks = style.styles([f"p{index}" for index in range(20)])
    assert len({look["color"] for look in looks.values()}) == 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ridge_1/16", "ridge, λ = 1/16"),
        ("gd_1", "gradient descent, 1 step"),
        ("newton_5", "Newton, 5 iterations"),
        ("knn_1", "the nearest neighbour"),
        ("first_1", "least squares on the first example"),
        ("first_2", "least squares on the first 2 examples"),
        ("last_label", "last label"),
        ("nearest_neighbors", "nearest neighbours"),
    ],
)
def test_algorithms_are_named_in_words(name, expected):
    assert words.algorithm_name(name) == expected


def test_targets_and_interventions_are_named_in_words():
    assert [words.target_name(name) for name in ("gram", "moment", "my.own.target")] == [
        "XᵀX",
        "Xᵀy",
        "target",
    ]
    assert words.method_name("my.own.Edit_random") == "random direction, norm of the Edit"


def test_tokens_are_named_in_prompt_order():
    assert words.token_names(5) == ["x₁", "y₁", "x₂", "y₂", "x₃"]
    assert words.token_names(22)[-1] == "y₁₁"


def test_training_says_at_which_number_of_examples_the_spd_is_taken():
    history = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "spd_to_ols": [1.0, 0.5]})
    figure = model_training.plot_history(history, *RUN)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["training loss (mean over k)", "SPD to least squares, k = 4"]


def test_panels_beyond_those_asked_for_are_removed():
    figure, panels = style.panel_grid(4, 3, (2.0, 2.0))
    assert len(panels) == len(figure.axes) == 4
