"""The paper's proof (section 3) as running transformers: their sizes, and how exact they are."""

import pandas as pd
from matplotlib.figure import Figure

from incontext_linear.construction import measurements
from incontext_linear.construction.config import ConstructionConfig
from incontext_linear.figures.construction import (
    plot_constants,
    plot_errors,
    plot_hidden_matrix,
    plot_sizes,
)
from incontext_linear.tables import MetricHistories, metric_history


def measure_sizes(construction: ConstructionConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Build every program at every d; returns its sizes, and the growth of rows and units fitted in
    d.
    """
    sizes = measurements.size_table(construction)
    return sizes, measurements.growth_table(sizes)


def measure_errors(construction: ConstructionConfig, seed: int) -> pd.DataFrame:
    """Relative error of every program against its textbook predictor, by d and dtype."""
    return measurements.error_table(construction, seed)


def measure_constants(construction: ConstructionConfig, seed: int) -> pd.DataFrame:
    """Relative error against each of the construction's constants, the others kept."""
    return measurements.constants_table(construction, seed)


def trace_gradient_step(seed: int) -> pd.DataFrame:
    """The hidden matrix of one gradient step after every layer."""
    return measurements.trace_gradient_step(seed)


def report_construction_metrics(sizes: pd.DataFrame, errors: pd.DataFrame) -> MetricHistories:
    """Hidden rows, layers and relative errors as metric histories whose step is d."""
    metrics = {
        f"construction.{size}.{program}": metric_history(rows["dim"], rows[size])
        for size in ("hidden_rows", "layers")
        for program, rows in sizes.groupby("program", sort=False)
    }
    for (dtype, program), rows in errors.groupby(["dtype", "program"], sort=False):
        metrics[f"construction.relative_error_{dtype}.{program}"] = metric_history(
            rows["dim"], rows["relative_error"]
        )
    return metrics


def draw_sizes(sizes: pd.DataFrame) -> Figure:
    """Layers, hidden rows and MLP width against d."""
    return plot_sizes(sizes)


def draw_errors(errors: pd.DataFrame) -> Figure:
    """Relative error against d, a panel a dtype."""
    return plot_errors(errors)


def draw_constants(constants: pd.DataFrame) -> Figure:
    """Relative error against each constant, the chosen value marked."""
    return plot_constants(constants)


def draw_hidden_matrix(trace: pd.DataFrame) -> Figure:
    """The hidden matrix as it moves through the layers of one gradient step."""
    return plot_hidden_matrix(trace)
