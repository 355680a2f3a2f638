import pandas as pd
import pytest

from incontext_linear.figures.filters import plot_layer_filters

FAMILIES = ("scaled_ridge", "scaled_newton")


@pytest.fixture
def tables():
    keys = [("skip", 1), ("skip", 2), ("lens", 2)]
    label = [{"readout": readout, "layer": layer} for readout, layer in keys]
    bins = [
        row | {"axis": axis, "position": s, "mean": s / 10, "low": s / 12, "high": s / 8}
        for row in label
        for axis in ("eigenvalue", "relative")
        for s in (0.5, 2.0, 8.0)
    ]
    curves = [
        row | {"family": family, "position": s, "value": s / 9}
        for row in label
        for family in FAMILIES
        for s in (0.5, 2.0, 8.0)
    ]
    scores = [row | {"family": family, "misfit": 1.234} for row in label for family in FAMILIES]
    shares = [row | {"axis": "eigenvalue", "mean": 0.3 * row["layer"]} for row in label]
    return tuple(pd.DataFrame(rows) for rows in (bins, curves, scores, shares))


def test_a_panel_a_layer_holds_the_filter_and_the_families(tables):
    figure = plot_layer_filters(*tables, families=FAMILIES, title="a learner")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["layer 1", "layer 2"]
    for axes in figure.axes:
        points = axes.containers[0].lines[0]
        assert points.get_xdata().tolist() == [0.5, 2.0, 8.0]
        assert points.get_ydata().tolist() == pytest.approx([0.05, 0.2, 0.8])
        labels = axes.get_legend_handles_labels()[1]
        assert any("ridge" in label for label in labels)
        assert any("Newton" in label for label in labels)
    assert "a learner" in figure.get_suptitle()


def test_families_are_scored_only_where_a_filter_explains_something(tables):
    figure = plot_layer_filters(*tables, families=FAMILIES)
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert "1.23" not in texts[0]
    assert "30 %" in texts[0]
    assert "ridge ×1.23, Newton ×1.23" in texts[1]


def test_what_the_tables_lack_is_named(tables):
    with pytest.raises(ValueError, match="readout='final'"):
        plot_layer_filters(*tables, readout="final")
    with pytest.raises(ValueError, match=r"layers=\[1\] are not in the tables"):
        plot_layer_filters(*tables, readout="lens", layers=[1])
