"""Between tensors, tidy tables (one row a predictor, prompt and prefix) and histories of
metrics.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

LEARNER = "transformer"
"""What tables, figures and metrics call the learner."""

MetricHistory = list[dict[str, int | float]]
"""A metric's points, ``[{"step": 0, "value": 0.5}, …]``."""
MetricHistories = dict[str, MetricHistory]
"""By the metric's name."""


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, `DataFrame.itertuples`; the types of their fields are not known."""
    return iter(table.itertuples(index=False))


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


def metric_histories(
    table: pd.DataFrame, prefix: str, keys: Sequence[str], step: str, value: str
) -> MetricHistories:
    """A history for each group of rows: ``probe.mlp_64.moment.k11`` against the layer.

    Args:
        table: tidy, a row a point.
        prefix: what all names begin with.
        keys: columns whose values name a group, joined by dots. ``examples_seen`` is written
            ``k11``, and ``hidden_units`` behind the kind that it is of.
        step: the column that the points' steps come from.
        value: the column of their values.
    """
    histories = {}
    for group, rows in table.groupby(list(keys), sort=False):
        parts = dict(zip(keys, group, strict=True))
        units = parts.pop("hidden_units", 0)
        if units:
            parts["kind"] = f"{parts['kind']}_{units}"
        if "examples_seen" in parts:
            parts["examples_seen"] = f"k{parts['examples_seen']}"
        name = ".".join([prefix, *map(str, parts.values())])
        histories[name] = metric_history(rows[step], rows[value])
    return histories
