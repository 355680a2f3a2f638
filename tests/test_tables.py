import pandas as pd
import torch

from incontext_linear.tables import metric_history, predictions_by_name, tidy_predictions


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
