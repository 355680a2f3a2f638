"""The training history."""

import pandas as pd
from matplotlib.figure import Figure

from incontext_linear.figures.style import PALETTE, prepare_axes


def plot_history(history: pd.DataFrame) -> Figure:
    """Training loss and SPD to OLS against the step, log scale."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["loss"], color=PALETTE[0], label="training loss")
    axes.plot(history["step"], history["spd_to_ols"], color=PALETTE[1], label="SPD to OLS")
    axes.set_yscale("log")
    prepare_axes(axes, "Training", "step", "mean square")
    axes.legend(frameon=False, fontsize=9)
    return figure
