"""The training history."""

import pandas as pd

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.figures.style import Figure, legend_below, panel_grid, prepare_axes, styles
from incontext_linear.figures.words import describe_run
from incontext_linear.training.loop import reporting_prefix


def plot_history(
    history: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Training loss, and SPD to least squares, against the step, log scale."""
    run = describe_run(task, model, seed)
    figure, (axes,) = panel_grid(1, 1, (7.5, 4.2), extra=(0.0, 0.3), run=run)
    curves = {
        "loss": "training loss (mean over k)",
        "spd_to_ols": f"SPD to least squares, k = {reporting_prefix(task)}",
    }
    looks = styles(curves)
    for column, label in curves.items():
        axes.plot(history["step"], history[column], label=label, **looks[column])
    axes.set_yscale("log")
    prepare_axes(axes, "Training", "step", "mean square")
    legend_below(figure, axes)
    return figure
