"""Compare the learner with every textbook algorithm by predictions alone: the answer in short."""

import logging

import pandas as pd
from torch import Tensor

from incontext_linear.comparison.curves import describe_nearest
from incontext_linear.tables import MetricHistories, metric_histories

logger = logging.getLogger(__name__)


def report_comparison_metrics(
    spd: pd.DataFrame, ilwd: pd.DataFrame, linearity: pd.DataFrame, prompts: dict[str, Tensor]
) -> MetricHistories:
    """The curves as metric histories whose step is the number of examples seen, for MLflow's
    overlays; and, as a log line, which algorithms are nearest.
    """
    logger.info("%s", describe_nearest(spd, prompts))
    curves = {"spd": spd, "ilwd": ilwd, "r_squared": linearity}
    metrics = {}
    for measure, table in curves.items():
        metrics |= metric_histories(table, measure, ["predictor"], "examples_seen", "mean")
    return metrics
