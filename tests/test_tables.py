import pandas as pd
import torch

from incontext_linear.tables import (
    metric_histories,
    metric_history,
    predictions_by_name,
    tidy_predictions,
)


def test_tidy_predictions_return_to_the_tensors_they_came_from():
    first, second = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    table = pd.concat(
        [tidy_predictions("a", first), tidy_predictions("b", second)], ignore_index=True
    )
    assert list(table.columns) == ["predictor", "prompt", "examples_seen", "prediction"]
    assert len(table) == 24
    back = predictions_by_name(table)
    assert torch.equal(back["a"], first)
    assert torch.equal(back["b"], second)


def test_a_metric_history_has_a_point_for_each_finite_value():
    values = pd.Series([0.5, float("nan"), float("inf"), 2])
    history = metric_history(pd.Series([3, 4, 5, 6]), values)
    assert history == [{"step": 3, "value": 0.5}, {"step": 6, "value": 2.0}]
    assert {type(point["step"]) for point in history} == {int}  # MLflow takes no NumPy numbers


def test_histories_are_named_by_their_groups_values():
    rows = [("linear", 0, "moment", 5), ("mlp", 16, "moment", 5), ("mlp", 16, "gram", 3)]
    table = pd.DataFrame(
        [(*row, layer, layer / 4) for row in rows for layer in (0, 2)],
        columns=["kind", "hidden_units", "target", "examples_seen", "layer", "value"],
    )
    keys = ["kind", "hidden_units", "target", "examples_seen"]
    found = metric_histories(table, "probe", keys, "layer", "value")
    points = [{"step": 0, "value": 0.0}, {"step": 2, "value": 0.5}]
    names = ["probe.linear.moment.k5", "probe.mlp_16.moment.k5", "probe.mlp_16.gram.k3"]
    assert found == dict.fromkeys(names, points)
    assert list(metric_histories(table[:2], "spd", ["target"], "layer", "value")) == ["spd.moment"]
