"""The paper's proof (section 3) as running transformers: their sizes and errors as metrics."""

import pandas as pd

from incontext_linear.tables import MetricHistories, metric_histories


def report_construction_metrics(sizes: pd.DataFrame, errors: pd.DataFrame) -> MetricHistories:
    """Hidden rows, layers and relative errors as metric histories whose step is d."""
    metrics = {}
    for size in ("hidden_rows", "layers"):
        metrics |= metric_histories(sizes, f"construction.{size}", ["program"], "dim", size)
    for dtype, rows in errors.groupby("dtype", sort=False):
        prefix = f"construction.relative_error_{dtype}"
        metrics |= metric_histories(rows, prefix, ["program"], "dim", "relative_error")
    return metrics
