"""The figures of the training_dynamics pipeline: the nearest algorithm over step and k, the seeds'
paths through the plane of two distances, the families' numbers, the heads, the layers.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from incontext_linear.dynamics.behaviour import LABELS
from incontext_linear.figures.phase_diagram import solid_colors
from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    Axes,
    Figure,
    color_bar,
    draw_curve,
    legend_beside,
    log_scale,
    panel_grid,
    prepare_axes,
    styles,
)
from incontext_linear.figures.words import algorithm_name, prompts_name, target_name

UNTRAINED = 0.5
"""Where step 0 is drawn on the logarithmic axis of the steps."""
STEP = "training step"
FULL_MARGIN, FAINTEST = 3.0, 0.25
KIND_NAMES = {
    "label_to_input": "y token at its own x",
    "query_to_labels": "query at earlier y tokens",
    "query_to_inputs": "query at earlier x tokens",
    "matching": "query's attention follows (x·x')²",
}


def _places(steps: ArrayLike) -> np.ndarray:
    return np.maximum(np.asarray(steps, dtype=float), UNTRAINED)


def _step_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [10.0**power for power in range(8) if low <= 10.0**power <= high]
    axes.set_xticks([UNTRAINED, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axes.minorticks_off()


def _of(table: pd.DataFrame, prompts: str) -> pd.DataFrame:
    return table[table["prompts_of"] == prompts]


def _titles(table: pd.DataFrame) -> dict[str, str]:
    return {str(name): prompts_name(str(name)) for name in table["prompts_of"].unique()}


def distance_name(predictor: str) -> str:
    """What learners are near to: an algorithm, or the labels."""
    return "labels (the risk)" if predictor == LABELS else algorithm_name(predictor)


def plot_distances(spd: pd.DataFrame, run: str = "") -> Figure:
    """SPD to every algorithm, mean over k ≥ 1, against the step; bands over seeds and prompts."""
    seen = spd[spd["examples_seen"] >= 1]
    keys = ["prompts_of", "predictor", "step"]
    means = seen.groupby(keys, as_index=False, sort=False)[["mean", "low", "high"]].mean()
    titles = _titles(spd)
    figure, grid = panel_grid(len(titles), 2, (5.2, 4.4), extra=(2.6, 0.3), run=run, sharey=True)
    looks = styles(means["predictor"]) | {LABELS: {"color": INK, "linestyle": "--"}}
    for axes, (name, title) in zip(grid, titles.items(), strict=True):
        for predictor, rows in _of(means, name).groupby("predictor", sort=False):
            label, look = distance_name(str(predictor)), looks[str(predictor)]
            draw_curve(axes, rows.assign(step=_places(rows["step"])), "step", look, label)
        log_scale(axes)
        _step_axis(axes)
        prepare_axes(axes, title, STEP, "SPD, share of Var(y)")
    legend_beside(figure, grid[0])
    return figure


def plot_nearest_over_training(nearest: pd.DataFrame, run: str = "") -> Figure:
    """The nearest algorithm at every step and k; the stronger the colour, the larger its margin."""
    from matplotlib.patches import Patch

    titles = _titles(nearest)
    figure, grid = panel_grid(len(titles), 2, (5.2, 3.8), extra=(2.8, 0.3), run=run, sharey=True)
    colors = solid_colors(nearest["nearest"])
    for axes, (name, title) in zip(grid, titles.items(), strict=True):
        rows = _of(nearest, name)
        steps, seen = sorted(set(rows["step"])), sorted(set(rows["examples_seen"]))
        image = np.ones((len(seen), len(steps), 3))
        columns = (rows[column] for column in ("step", "examples_seen", "nearest", "margin"))
        for step, k, best, margin in zip(*columns, strict=True):
            image[seen.index(k), steps.index(step)] = _strength(colors[best], margin)
        axes.imshow(image, origin="lower", aspect="auto", interpolation="nearest")
        prepare_axes(axes, title, STEP, "examples seen, k")
        axes.grid(visible=False)
        shown = range(0, len(steps), max(1, len(steps) // 7))
        axes.set_xticks(list(shown), [str(steps[i]) for i in shown])
        axes.set_yticks(range(0, len(seen), max(1, len(seen) // 8)))
    patches = [Patch(color=color, label=algorithm_name(name)) for name, color in colors.items()]
    figure.legend(
        handles=patches, loc="outside right center", frameon=False, fontsize=9, title="nearest"
    )
    return figure


def _strength(color: tuple[float, float, float], margin: float) -> np.ndarray:
    from matplotlib.colors import to_rgb

    share = np.log(max(margin, 1.0)) / np.log(FULL_MARGIN) if np.isfinite(margin) else 1.0
    strength = FAINTEST + (1 - FAINTEST) * min(1.0, share)
    return 1 - strength * (1 - np.asarray(to_rgb(color)))


def plot_plane(single: pd.DataFrame, plane: tuple[str, str], run: str = "") -> Figure:
    """Each seed's path through the plane of its distances to two algorithms, mean over k ≥ 1.

    Below the diagonal the second algorithm is nearer. Dots are snapshots, coloured by step.
    """
    from matplotlib.colors import LogNorm

    seen = single[(single["examples_seen"] >= 1) & single["predictor"].isin(plane)]
    means = seen.groupby(["prompts_of", "seed", "step", "predictor"])["spd"].mean().unstack()
    means = means.clip(lower=1e-12)
    titles = _titles(single)
    figure, grid = panel_grid(len(titles), 2, (4.8, 4.4), extra=(1.2, 0.3), run=run)
    largest = single["step"].max()
    dots = None
    for axes, (name, title) in zip(grid, titles.items(), strict=True):
        rows = means.loc[name]
        for _, way in rows.groupby("seed"):
            steps = way.index.get_level_values("step").to_numpy()
            axes.plot(way[plane[0]], way[plane[1]], color=MUTED, linewidth=0.8, alpha=0.7)
            dots = axes.scatter(
                way[plane[0]],
                way[plane[1]],
                c=_places(steps),
                norm=LogNorm(UNTRAINED, largest),
                cmap="viridis",
                s=14,
                zorder=3,
            )
        low, high = float(rows.min().min()), float(rows.max().max())
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        first, second = (f"SPD to {algorithm_name(one)} / Var(y)" for one in plane)
        prepare_axes(axes, title, first, second)
    if dots is not None:
        color_bar(figure, dots, grid, STEP, fraction=0.04)
    return figure


def plot_families(
    families: pd.DataFrame, comparison: pd.DataFrame, power: pd.DataFrame, run: str = ""
) -> Figure:
    """Numbers of the fitted families along training, each seed a line, and families against ridge.

    The grey band says what would be seen of a learner that is ridge regression with the learner's
    own errors, the green one of gradient descent in small steps.
    """
    figure, grid = panel_grid(3, 3, (4.6, 4.2), extra=(2.8, 0.3), run=run)
    shown = (("ridge", "penalty", "λ of ridge"), ("gradient_flow", "num_steps", "steps m"))
    for axes, (family, number, label) in zip(grid, shown, strict=False):
        rows = families[(families["family"] == family) & (families["number"] == number)]
        for _, one in rows.groupby("seed"):
            inside = one["value"].where(~one["at_edge"])
            axes.plot(_places(one["step"]), inside, color=PALETTE[1], linewidth=0.9, alpha=0.8)
        axes.set_yscale("log")
        _step_axis(axes)
        title = f"{label}, each seed; edges left out"
        prepare_axes(axes, title, STEP, label)
    axes = grid[2]
    _draw_power(axes, power)
    looks = styles(comparison["family"])
    if "gradient_flow" in looks:  # beside gradient descent, whose look it has
        looks["gradient_flow"]["linestyle"] = "-"
    for family, rows in comparison.groupby("family", sort=False):
        look, label = looks[str(family)], algorithm_name(str(family))
        measure = ("log_ratio", "low", "high")
        draw_curve(axes, rows.assign(step=_places(rows["step"])), "step", look, label, measure)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.1)
    _step_axis(axes)
    prepare_axes(axes, "above 0: ridge is nearer", STEP, "log SPD(family) − log SPD(ridge)")
    legend_beside(figure, axes)
    return figure


def _draw_power(axes: Axes, power: pd.DataFrame) -> None:
    rows = power[power["family"] == "gradient_flow"]
    colors = {"ridge": MUTED, "gradient_flow": PALETTE[2]}
    for name, one in rows.groupby("planted", sort=False):
        label = algorithm_name(str(name))
        axes.fill_between(
            _places(one["step"]),
            one["low"],
            one["high"],
            color=colors.get(str(name), MUTED),
            alpha=0.25,
            linewidth=0,
            label=f"small steps, if it were {label}",
        )


def plot_heads(strongest: pd.DataFrame, appeared: pd.DataFrame, run: str = "") -> Figure:
    """The strongest head of each kind along training, each seed a line; dotted: where it appears
    (median over seeds).
    """
    kinds = list(dict.fromkeys(strongest["kind"]))
    figure, grid = panel_grid(len(kinds), 4, (3.5, 3.4), extra=(0.2, 0.3), run=run, sharey=True)
    for axes, kind in zip(grid, kinds, strict=True):
        rows = strongest[strongest["kind"] == kind]
        for _, one in rows.groupby("seed"):
            axes.plot(
                _places(one["step"]), one["score"], color=PALETTE[0], linewidth=0.9, alpha=0.7
            )
        middle = rows.groupby("step")["score"].mean()
        axes.plot(_places(middle.index), middle, color=INK, linewidth=2)
        steps = appeared.loc[appeared["kind"] == kind, "step"].dropna()
        if len(steps):
            axes.axvline(max(UNTRAINED, steps.median()), color=MUTED, linestyle=":")
        _step_axis(axes)
        prepare_axes(axes, KIND_NAMES.get(str(kind), str(kind)), STEP, "beyond even attention")
    for axes in grid[1:]:
        axes.set_ylabel("")
    return figure


def plot_states(probes: pd.DataFrame, readouts: pd.DataFrame, run: str = "") -> Figure:
    """Probe errors of every target, and the risk of what is read from each layer, along training:
    means over seeds.
    """
    from matplotlib.colors import to_rgb

    targets = list(dict.fromkeys(probes["target"]))
    figure, grid = panel_grid(len(targets) + 1, 3, (4.2, 3.8), extra=(1.4, 0.3), run=run)
    parts = [
        (f"probe of {target_name(t)}", probes[probes["target"] == t], "error") for t in targets
    ]
    parts.append(("read from the layer: risk", readouts, "risk"))
    layers = sorted(set(probes["layer"]))
    for axes, (title, rows, value) in zip(grid, parts, strict=True):
        means = rows.groupby(["layer", "step"])[value].mean()
        for layer in layers:
            share = layer / max(1, layers[-1])
            color = tuple(
                np.array(to_rgb(PALETTE[5])) * (1 - share) + np.array(to_rgb(INK)) * share
            )
            one = means.loc[layer]
            axes.plot(_places(one.index), one, color=color, label=f"layer {layer}", linewidth=1.6)
        log_scale(axes)
        _step_axis(axes)
        prepare_axes(axes, title, STEP, "share of the variance")
    legend_beside(figure, grid[0])
    return figure
