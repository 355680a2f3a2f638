"""Hold the learner against every textbook algorithm, by its predictions alone (paper, section
4).
"""

import logging
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.comparison.divergence import (
    curve,
    implicit_weight_difference,
    implicit_weights,
    squared_prediction_difference,
)
from incontext_linear.config import resolve_device
from incontext_linear.figures.behavioral_comparison import plot_divergences, plot_risks
from incontext_linear.learner.saved import Learner
from incontext_linear.parameters import LEARNER
from incontext_linear.tables import (
    MetricHistories,
    metric_history,
    predictions_by_name,
    tidy_predictions,
)

logger = logging.getLogger(__name__)


def predict_with_learner(learner: Learner, prompts: dict[str, Tensor], device: str) -> pd.DataFrame:
    """The learner's predictions, float32, in the same tidy form as the baselines'."""
    where = resolve_device(device)
    model = learner.model.to(where)
    batches = zip(prompts["xs"].split(256), prompts["ys"].split(256), strict=True)
    with torch.no_grad():
        predictions = torch.cat([model(xs.to(where), ys.to(where)).cpu() for xs, ys in batches])
    return tidy_predictions(LEARNER, predictions)


def estimate_learner_weights(
    learner: Learner, prompts: dict[str, Tensor], queries: dict[str, Tensor], device: str
) -> dict[str, Tensor]:
    """The learner's implicit weights (B', n, d) and their R² (B', n)."""
    where = resolve_device(device)
    asked = queries["queries"].to(where)
    xs, ys = (prompts[name][: len(asked)].to(where) for name in ("xs", "ys"))
    estimate = implicit_weights(learner.model.to(where), xs, ys, asked, prompts_at_once=16)
    return {name: tensor.cpu() for name, tensor in estimate._asdict().items()}


def measure_spd(
    learner_predictions: pd.DataFrame,
    baseline_predictions: pd.DataFrame,
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """SPD(learner, baseline) against examples seen, with intervals over prompts."""
    learner = predictions_by_name(learner_predictions)[LEARNER]
    settings = (comparison.confidence, comparison.num_resamples, seed)
    return pd.concat(
        [
            curve(squared_prediction_difference(learner, other), {"predictor": name}, *settings)
            for name, other in predictions_by_name(baseline_predictions).items()
        ],
        ignore_index=True,
    )


def measure_ilwd(
    learner_weights: dict[str, Tensor],
    baseline_weights: dict[str, Tensor],
    baselines: dict[str, Any],
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """ILWD(learner, baseline) against examples seen, with intervals over prompts."""
    names = [name for name, spec in baselines.items() if spec is not None]
    missing = [name for name in names if name not in baseline_weights]
    if missing:
        raise ValueError(
            f"baselines {missing} have no saved weights; run baseline_estimation again"
        )
    settings = (comparison.confidence, comparison.num_resamples, seed)
    return pd.concat(
        [
            curve(
                implicit_weight_difference(learner_weights["weights"], baseline_weights[name]),
                {"predictor": name},
                *settings,
            )
            for name in names  # the file's own order is not kept by safetensors
        ],
        ignore_index=True,
    )


def measure_linearity(
    learner_weights: dict[str, Tensor], comparison: ComparisonConfig, seed: int
) -> pd.DataFrame:
    """How linear the learner is in the query: R² of its implicit weights, against examples seen."""
    settings = (comparison.confidence, comparison.num_resamples, seed)
    return curve(learner_weights["r_squared"], {"predictor": LEARNER}, *settings)


def measure_risk(
    learner_predictions: pd.DataFrame,
    baseline_predictions: pd.DataFrame,
    prompts: dict[str, Tensor],
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """Squared error against the true labels, learner and baselines alike, with intervals over
    prompts.
    """
    predictions = predictions_by_name(learner_predictions) | predictions_by_name(
        baseline_predictions
    )
    settings = (comparison.confidence, comparison.num_resamples, seed)
    return pd.concat(
        [
            curve(
                squared_prediction_difference(values, prompts["ys"]), {"predictor": name}, *settings
            )
            for name, values in predictions.items()
        ],
        ignore_index=True,
    )


def report_comparison_metrics(
    spd: pd.DataFrame, ilwd: pd.DataFrame, linearity: pd.DataFrame
) -> MetricHistories:
    """The curves as metric histories whose step is the number of examples seen, for MLflow's
    overlays.

    And the answer in short, as a log line: the algorithms nearest to the learner at the end of the
        prompt.
    """
    longest = spd["examples_seen"].max()
    nearest = spd[spd["examples_seen"] == longest].nsmallest(3, "mean")
    logger.info(
        "Nearest to the learner after %d examples: %s",
        longest,
        ", ".join(
            f"{name} (SPD {mean:.2g} [{low:.2g}, {high:.2g}])"
            for name, mean, low, high in nearest[["predictor", "mean", "low", "high"]].itertuples(
                index=False
            )
        ),
    )
    return {
        f"{measure}.{name}": metric_history(rows["examples_seen"], rows["mean"])
        for measure, table in (("spd", spd), ("ilwd", ilwd), ("r_squared", linearity))
        for name, rows in table.groupby("predictor", sort=False)
    }


def draw_divergences(spd: pd.DataFrame, ilwd: pd.DataFrame, prompts: dict[str, Tensor]) -> Figure:
    """SPD and ILWD against examples seen (the paper's Figure 1)."""
    return plot_divergences(spd, ilwd, prompts["xs"].shape[-1])


def draw_risks(risk: pd.DataFrame, linearity: pd.DataFrame, prompts: dict[str, Tensor]) -> Figure:
    """Squared error of every predictor, and the learner's linearity, against examples seen."""
    return plot_risks(risk, linearity, prompts["xs"].shape[-1])
