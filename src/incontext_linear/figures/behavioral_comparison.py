"""SPD, ILWD, squared error and linearity against the number of examples seen."""

import numpy as np
import pandas as pd

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.figures.style import (
    MUTED,
    Axes,
    Figure,
    draw_curves,
    layer_axis,
    legend_beside,
    log_scale,
    mark_dimension,
    panel_grid,
    prepare_axes,
    without_diverged,
)
from incontext_linear.figures.words import algorithm_name, describe_measured
from incontext_linear.tables import LEARNER


def plot_divergences(
    spd: pd.DataFrame,
    ilwd: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """SPD and ILWD to each predictor against examples seen, log scale, intervals shaded (Figure
    1).
    """
    run = describe_measured(task, model, seed)
    figure, panels = panel_grid(2, 2, (5.4, 4.6), extra=(2.4, 0.4), run=run)
    learner = algorithm_name(LEARNER)
    shown = (
        (spd, "Squared prediction difference", f"SPD({learner}, algorithm)"),
        (ilwd, "Implicit weight difference", f"ILWD({learner}, algorithm)"),
    )
    for axes, (table, title, label) in zip(panels, shown, strict=True):
        # Before any example is seen, all predict close to 0: a log scale would show only that.
        draw_curves(axes, table[table["examples_seen"] > 0], "examples_seen", "predictor")
        log_scale(axes)
        layer_axis(axes)
        prepare_axes(axes, title, "examples seen, k", label)
        mark_dimension(axes, task.dim)
        _mark_training_length(axes, table, task)
    legend_beside(figure, panels[0])
    return figure


def _mark_training_length(axes: Axes, table: pd.DataFrame, task: TaskConfig) -> None:
    """Say where prompts get longer than in training, if they do."""
    if table["examples_seen"].max() >= task.num_examples:
        axes.axvline(task.num_examples - 1, color=MUTED, linewidth=0.8, linestyle="--")
        place = (task.num_examples - 1, 0.01)
        style = {"color": MUTED, "fontsize": 7, "ha": "right", "va": "bottom", "rotation": 90}
        axes.text(*place, "trained up to here", transform=axes.get_xaxis_transform(), **style)


def plot_risks(
    risk: pd.DataFrame,
    linearity: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """Squared error of every predictor, and how linear the learner is, against examples seen."""
    run = describe_measured(task, model, seed)
    figure, (left, right) = panel_grid(
        2, 2, (5.4, 4.6), extra=(2.4, 0.4), run=run, width_ratios=(3, 2)
    )
    floor = lowest_drawn(risk)
    # The learner is drawn last: it would lie below what it is nearest to.
    ordered = risk.iloc[np.argsort(risk["predictor"] == LEARNER, kind="stable")]
    lifted = ordered.assign(**ordered[["mean", "low", "high"]].clip(lower=floor))
    draw_curves(left, lifted, "examples_seen", "predictor")
    log_scale(left)
    prepare_axes(left, "Squared error against the label", "examples seen, k", "mean squared error")
    if (risk["mean"] < floor).any():
        left.set_ylim(bottom=floor / 1.5)
        left.annotate("smaller values are drawn here", (1.0, floor), **_AT_THE_RIGHT).set(
            color=MUTED, fontsize=8
        )
    shown = linearity[linearity["examples_seen"] > 0]
    unexplained = shown.assign(mean=1 - shown["mean"], low=1 - shown["high"], high=1 - shown["low"])
    draw_curves(right, unexplained, "examples_seen", "predictor")
    log_scale(right)
    title = f"How far from linear the {algorithm_name(LEARNER)} is"
    prepare_axes(right, title, "examples seen, k", "1 − R² of its implicit weights")
    for axes in (left, right):
        mark_dimension(axes, task.dim)
        _mark_training_length(axes, linearity, task)
        layer_axis(axes)
    legend_beside(figure, left)
    return figure


_AT_THE_RIGHT = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}


def lowest_drawn(risk: pd.DataFrame) -> float:
    """Where exact predictors are drawn, which have no error without noise: below the learner's
    curve, and no further.
    """
    shown = without_diverged(risk)
    own = shown.loc[shown["predictor"] == LEARNER, "mean"]
    least = own[own > 0].min() if (own > 0).any() else shown["mean"].max() * 1e-7
    return max(1e-12, least / 10)
