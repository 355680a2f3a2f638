import pandas as pd
import torch

from incontext_linear.tables import predictions_by_name, tidy_predictions


def test_tidy_predictions_return_to_the_tensors_they_came_from():
    first, second = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    table = pd.concat([tidy_predictions("a", first), tidy_predictions("b", second)], ignore_index=True)
    assert list(table.columns) == ["predictor", "prompt", "examples_seen", "prediction"]
    assert len(table) == 24
    back = predictions_by_name(table)
    assert torch.equal(back["a"], first)
    assert torch.equal(back["b"], second)
