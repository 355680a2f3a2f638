"""Compare the learner with every textbook algorithm by predictions alone: the answer in short."""

import pandas as pd
from torch import Tensor

from incontext_linear.comparison.curves import summarize_nearest
from incontext_linear.tables import MetricHistories, metric_histories, metric_history


def report_comparison_metrics(
    spd: pd.DataFrame, ilwd: pd.DataFrame, linearity: pd.DataFrame, prompts: dict[str, Tensor]
) -> tuple[MetricHistories, dict[str, str]]:
    """The curves as metric histories whose step is the number of examples seen, for MLflow's
    overlays; the numbers by which runs are sorted; and which algorithm is nearest.
    """
    curves = {"spd": spd, "ilwd": ilwd, "r_squared": linearity}
    metrics = {}
    for measure, table in curves.items():
        prefix = f"behaviour/{measure}"
        metrics |= metric_histories(table, prefix, ["predictor"], "examples_seen", "mean")
    nearest, scalars = summarize_nearest(spd, prompts)
    metrics |= {f"behaviour/{name}": metric_history([0], [n]) for name, n in scalars.items()}
    return metrics, {"nearest": nearest}
