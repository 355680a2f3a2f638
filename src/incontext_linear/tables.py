"""Between tensors, tidy tables (one row a predictor, prompt and prefix) and histories of
metrics.
"""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

MetricHistory = list[dict[str, int | float]]
"""A metric's points, ``[{"step": 0, "value": 0.5}, …]``."""
MetricHistories = dict[str, MetricHistory]
"""By the metric's name."""


def tidy_predictions(predictor: str, predictions: Float[Tensor, "batch example"]) -> pd.DataFrame:
    """Lay predictions (B, n) out as rows: predictor, prompt, examples_seen, prediction."""
    num_prompts, num_examples = predictions.shape
    return pd.DataFrame(
        {
            "predictor": pd.Categorical.from_codes(
                np.zeros(predictions.numel(), dtype=int), [predictor]
            ),
            "prompt": np.repeat(np.arange(num_prompts), num_examples),
            "examples_seen": np.tile(np.arange(num_examples), num_prompts),
            "prediction": predictions.detach().double().cpu().numpy().ravel(),
        }
    ).astype({"predictor": "string"})


def predictions_by_name(table: pd.DataFrame) -> dict[str, Float[Tensor, "batch example"]]:
    """The inverse of `tidy_predictions`, for a table of several predictors."""
    return {
        str(name): torch.from_numpy(
            rows.pivot(index="prompt", columns="examples_seen", values="prediction").to_numpy(
                copy=True
            )
        )
        for name, rows in table.groupby("predictor", sort=False)
    }


def metric_history(steps: Iterable[int], values: Iterable[int | float]) -> MetricHistory:
    """Pair steps with values; values that are not finite are left out."""
    pairs = zip(steps, values, strict=True)
    return [
        {"step": int(step), "value": float(value)} for step, value in pairs if math.isfinite(value)
    ]
