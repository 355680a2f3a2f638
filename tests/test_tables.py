import pandas as pd
import pytest
import torch

from incontext_linear import tables
from incontext_linear.tables import (
    metric_histories,
    metric_history,
    predictions_by_name,
    read_predictions,
    tidy_predictions,
    write_predictions,
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


@pytest.fixture
def predictions():
    values = torch.randn(3, 50, 4, dtype=torch.float64)
    values[0, 7, 2], values[1, 3, 1] = float("inf"), float("nan")
    return dict(zip(("zebra", "ant", "a/b"), values, strict=True))


@pytest.mark.parametrize("rows", [2**20, 60, 1])
def test_a_table_written_in_pieces_is_the_table_written_whole(
    tmp_path, predictions, rows, monkeypatch
):
    whole = pd.concat(
        [tidy_predictions(name, values) for name, values in predictions.items()], ignore_index=True
    )
    whole.to_parquet(tmp_path / "whole.parquet")
    monkeypatch.setattr(tables, "_ROWS", rows)
    write_predictions(tmp_path / "pieces.parquet", predictions)
    pieces = pd.read_parquet(tmp_path / "pieces.parquet")
    pd.testing.assert_frame_equal(pieces, pd.read_parquet(tmp_path / "whole.parquet"))
    for name in ("whole", "pieces"):
        found = read_predictions(tmp_path / f"{name}.parquet")
        assert list(found) == list(predictions)
        for predictor, values in predictions.items():
            torch.testing.assert_close(found[predictor], values, rtol=0, atol=0, equal_nan=True)


def test_rows_in_any_order_find_their_place_and_those_that_lack_are_not_numbers(
    tmp_path, predictions
):
    rows = tidy_predictions("zebra", predictions["zebra"]).iloc[1:].sample(frac=1, random_state=0)
    rows.to_parquet(tmp_path / "mixed.parquet")
    found = read_predictions(tmp_path / "mixed.parquet")["zebra"]
    assert found[0, 0].isnan()
    assert found.flatten()[1:].equal(predictions["zebra"].flatten()[1:])


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
