import io

import numpy as np
import pandas as pd

from incontext_linear.figures import behavioral_comparison, probing, style


def curves(*names):
    rows = [
        {
            "predictor": name,
            "examples_seen": k,
            "mean": 1.0 / (k + 1),
            "low": 0.5 / (k + 1),
            "high": 2.0 / (k + 1),
        }
        for name in names
        for k in range(5)
    ]
    return pd.DataFrame(rows)


def test_divergences_show_a_curve_with_an_interval_for_every_predictor_in_both_panels():
    figure = behavioral_comparison.plot_divergences(
        curves("ols", "knn"), curves("ols", "knn"), dim=2
    )
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        assert [line.get_label() for line in axes.lines[:2]] == ["ols", "knn"]
        assert len(axes.collections) == 2
        assert list(axes.lines[0].get_xdata()) == [1, 2, 3, 4]


def test_risks_draw_exact_predictors_at_a_floor_instead_of_dropping_them():
    exact = curves("ols").assign(mean=0.0, low=0.0, high=0.0)
    figure = behavioral_comparison.plot_risks(
        pd.concat([curves("transformer"), exact]), curves("transformer"), dim=2
    )
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert (lines["ols"].get_ydata() > 0).all()
    assert "smaller values are drawn here" in {text.get_text() for text in figure.axes[0].texts}


def test_risks_leave_no_room_for_a_floor_that_nothing_reaches():
    noisy = pd.concat([curves("transformer", "ols")])
    figure = behavioral_comparison.plot_risks(noisy, curves("transformer"), dim=2)
    figure.savefig(io.BytesIO())
    assert "smaller values are drawn here" not in {text.get_text() for text in figure.axes[0].texts}
    assert figure.axes[0].get_position().height > 0.75


def test_more_predictors_than_colours_stay_distinguishable():
    looks = style.styles([f"p{index}" for index in range(20)])
    assert len({(look["color"], look["linestyle"]) for look in looks.values()}) == 20


def test_probe_figures_have_a_panel_a_kind_and_a_row_a_layer():
    scores = pd.DataFrame(
        [
            {"layer": layer, "target": t, "kind": k, "squared_error": 0.1, "low": 0.05, "high": 0.2}
            for layer in range(3)
            for t in ("moment", "least_squares")
            for k in ("linear", "mlp")
        ]
    )
    assert len(probing.plot_probe_scores(scores).axes) == 2
    attention = scores.merge(pd.DataFrame({"token": range(5)}), how="cross").assign(attention=0.2)
    image = probing.plot_probe_attention(attention).axes[0].images[0]
    assert image.get_array().shape == (3, 5)


def test_attention_maps_have_a_panel_a_layer_and_head():
    figure = probing.plot_attention(np.full((2, 3, 5, 5), 0.2))
    assert sum(bool(axes.images) for axes in figure.axes) == 6


def test_tokens_are_named_in_prompt_order():
    assert probing.token_names(5) == ["x1", "y1", "x2", "y2", "x3"]


def test_what_diverged_is_left_out_and_the_rest_is_drawn():
    wild = curves("gd").assign(mean=1e300, low=1e299, high=float("inf"))
    figure = behavioral_comparison.plot_divergences(*2 * [pd.concat([curves("ols"), wild])], dim=2)
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_ylim()[1] < 1e3
