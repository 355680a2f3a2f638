"""Every textbook algorithm on every prefix of the evaluation prompts."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from incontext_linear.comparison.divergence import implicit_weights
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import build_predictors
from incontext_linear.tables import tidy_predictions


def estimate_predictions(
    prompts: dict[str, Tensor], baselines: dict[str, Any], task: TaskConfig
) -> pd.DataFrame:
    """Predictions of all baselines, in float64; columns predictor, prompt, examples_seen,
    prediction.
    """
    xs, ys = prompts["xs"].double(), prompts["ys"].double()
    return pd.concat(
        [
            tidy_predictions(name, p(xs, ys))
            for name, p in build_predictors(baselines, task).items()
        ],
        ignore_index=True,
    )


def estimate_weights(
    prompts: dict[str, Tensor],
    queries: dict[str, Tensor],
    baselines: dict[str, Any],
    task: TaskConfig,
) -> dict[str, Tensor]:
    """Implicit weights (B', n, d) of all baselines, by regression on queries as for the learner."""
    asked = queries["queries"].double()
    xs, ys = (prompts[name][: len(asked)].double() for name in ("xs", "ys"))
    with torch.no_grad():
        return {
            name: implicit_weights(predictor, xs, ys, asked).weights
            for name, predictor in build_predictors(baselines, task).items()
        }
