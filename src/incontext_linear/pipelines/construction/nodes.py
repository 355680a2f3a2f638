"""The paper's proof (section 3) as running transformers: their errors as metrics."""

import pandas as pd

from incontext_linear.tables import MetricHistories, metric_histories, metric_history


def report_construction_metrics(errors: pd.DataFrame) -> MetricHistories:
    """The largest relative error of each number format, and each program's over d in float64.

    All else is in the tables: it would crowd out what MLflow shows of the learner.
    """
    largest = {
        f"construction/largest_relative_error_{dtype}": metric_history([0], [rows.max()])
        for dtype, rows in errors.groupby("dtype", sort=False)["relative_error"]
    }
    precise = errors[errors["dtype"] == "float64"]
    prefix = "construction/relative_error"
    return largest | metric_histories(precise, prefix, ["program"], "dim", "relative_error")
