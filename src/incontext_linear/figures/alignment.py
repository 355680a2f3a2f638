"""The figures of the alignment pipeline: shares against layer and rank, and how the query reads."""

import numpy as np
import pandas as pd

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    Axes,
    Figure,
    color_bar,
    draw_curve,
    layer_axis,
    legend_below,
    legend_under,
    panel_grid,
    prepare_axes,
)
from incontext_linear.figures.words import describe_run
from incontext_linear.probing.alignment_rule import FOUND

LAYER = "layer (0: embedding)"
_SHARE = ("share", "low", "high")
_POSITIONS = {
    "query": ("the query's token", PALETTE[0]),
    "y_tokens": ("all y-tokens", PALETTE[1]),
    "x_tokens": ("the context's x-tokens", PALETTE[2]),
    "context": ("the whole context", PALETTE[3]),
}
_MODELS = {
    "query": "x′ exchanged",
    "answer": "the whole answer",
    "weights": "w exchanged",
    "moment": "Xᵀy exchanged, XᵀX kept",
    "gram": "XᵀX exchanged, Xᵀy kept",
    "labels": "every y exchanged, x kept",
    "iterate": "gradient descent's w_m exchanged",
    "residuals": "residuals y − Xw_m exchanged",
}
_RANGE = (-0.3, 1.1)
"""A share may be far below 0, where an exchange does harm; the question is about 0 to 1."""


def position_name(name: str) -> str:
    """A kind of tokens in words."""
    return _POSITIONS.get(name, (name, INK))[0]


def model_name(name: str) -> str:
    """A causal model in words; of a dotted path the last part."""
    return _MODELS.get(name, name.rpartition(".")[2])


def plot_alignment(
    verdicts: pd.DataFrame, task: TaskConfig, model: LearnerConfig, seed: int
) -> Figure:
    """Share of each causal model's counterfactual against layer, a panel a model, a curve a place.

    Filled circles are found by the rule. Dashed, in the curve's colour: the largest of its controls
    (random subspaces, shuffled counterfactuals, control learners). Dotted: the ceiling, what the
    learner answers to a prompt that has the exchanged value.
    """
    models = list(dict.fromkeys(verdicts["model"]))
    run = describe_run(task, model, seed)
    figure, grid = panel_grid(len(models), 4, (3.5, 3.0), extra=(0.4, 0.9), run=run, sharey=True)
    read = verdicts[verdicts["share"].notna()]
    for axes, name in zip(grid, models, strict=True):
        rows = read[read["model"] == name]
        for place, curve in rows.groupby("positions", sort=False):
            _draw_place(axes, curve.sort_values("layer"), str(place))
        ceiling = verdicts.loc[verdicts["model"] == name, "ceiling"].iloc[0]
        if np.isfinite(ceiling):
            axes.axhline(max(ceiling, _RANGE[0]), color=INK, linewidth=1, linestyle=":")
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(*_RANGE)
        axes.set_xlim(-0.3, verdicts["layer"].max() + 0.3)
        layer_axis(axes)
        prepare_axes(axes, model_name(name), LAYER, "")
    figure.supylabel("share of the counterfactual explained", fontsize=10, color=MUTED)
    for place in dict.fromkeys(verdicts["positions"]):
        label, color = _POSITIONS.get(place, (place, INK))
        grid[0].plot([], [], color=color, marker="o", label=label)
    grid[0].plot([], [], color=MUTED, linestyle="--", label="largest control")
    grid[0].plot([], [], color=INK, linestyle=":", label="ceiling")
    grid[0].plot([], [], color=MUTED, marker="o", linestyle="", label="filled: found by the rule")
    legend_below(figure, grid[0], num_columns=4)
    return figure


def _draw_place(axes: Axes, curve: pd.DataFrame, place: str) -> None:
    _, color = _POSITIONS.get(place, (place, INK))
    draw_curve(axes, curve, "layer", {"color": color}, "_" + place, _SHARE)
    control = curve[["random", "control"]].max(axis=1)
    axes.plot(curve["layer"], control, color=color, linestyle="--", linewidth=1)
    found = curve["verdict"] == FOUND
    for chosen, face in ((found, color), (~found, "white")):
        rows = curve[chosen]
        look = {"marker": "o", "linestyle": "", "markersize": 5, "color": color}
        axes.plot(rows["layer"], rows["share"], markerfacecolor=face, **look)


def plot_ranks(shares: pd.DataFrame, task: TaskConfig, model: LearnerConfig, seed: int) -> Figure:
    """Share against the subspace's rank, a panel a causal model: the best layer of each place.

    Dashed: random subspaces of the same rank at that layer.
    """
    own = shares[(shares["source"] == "learner") & shares["share"].notna()]
    models = list(dict.fromkeys(shares["model"]))
    run = describe_run(task, model, seed)
    figure, grid = panel_grid(len(models), 4, (3.5, 3.0), extra=(0.4, 0.7), run=run, sharey=True)
    for axes, name in zip(grid, models, strict=True):
        for place, rows in own[own["model"] == name].groupby("positions", sort=False):
            label, color = _POSITIONS.get(str(place), (str(place), INK))
            best = rows.loc[rows["share"].idxmax(), "layer"]
            curve = rows[rows["layer"] == best].sort_values("rank")
            draw_curve(axes, curve, "rank", {"color": color}, "_" + label, _SHARE)
            axes.plot(curve["rank"], curve["random"], color=color, linestyle="--", linewidth=1)
            last = curve.iloc[-1]
            axes.annotate(
                f"layer {best}",
                (last["rank"], np.clip(last["share"], *_RANGE)),
                fontsize=7,
                color=color,
                ha="right",
                va="bottom",
            )
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylim(*_RANGE)
        prepare_axes(axes, model_name(name), "rank of the subspace", "")
    figure.supylabel("share of the counterfactual explained", fontsize=10, color=MUTED)
    for place in dict.fromkeys(own["positions"]):
        label, color = _POSITIONS.get(place, (place, INK))
        grid[0].plot([], [], color=color, label=f"{label}, its best layer")
    grid[0].plot([], [], color=MUTED, linestyle="--", label="random subspaces")
    legend_below(figure, grid[0], num_columns=3)
    return figure


def plot_reading(
    readings: pd.DataFrame,
    edges: pd.DataFrame,
    scores: pd.DataFrame,
    heads: pd.DataFrame,
    task: TaskConfig,
    model: LearnerConfig,
    seed: int,
) -> Figure:
    """What the query's token holds, the edges that it reads through, and what each head is for."""
    run = describe_run(task, model, seed)
    figure, (held, paths, ablated) = panel_grid(3, 3, (4.6, 3.9), extra=(0.6, 0.3), run=run)
    _draw_readings(held, readings)
    _draw_edges(paths, edges, scores)
    _draw_heads(figure, ablated, heads)
    return figure


def _draw_readings(axes: Axes, readings: pd.DataFrame) -> None:
    layers = sorted(readings["layer"].unique())
    descent = readings[readings["family"] == "gradient_descent"]
    # What all layers hold equally little of is left out: the embedding knows its x' alone.
    for place, layer in enumerate(layers[1:]):
        curve = descent[descent["layer"] == layer].sort_values("number")
        look = {"color": PALETTE[place % len(PALETTE)]}
        draw_curve(axes, curve, "number", look, f"layer {layer}", ("error", "low", "high"))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if len(layers) <= 9:
        legend_under(axes, 4)
    title = "read linearly from the query's token"
    prepare_axes(axes, title, "x′ᵀw_m: gradient steps m", "squared error / variance")


def _draw_edges(axes: Axes, edges: pd.DataFrame, scores: pd.DataFrame) -> None:
    axes.plot(edges["order"], edges["chosen_share"], color=PALETTE[0], marker="o", label="chosen")
    for row in edges.to_dict("records"):
        label = f"{row['layer']}.{row['head']} {row['tokens'][0]}"
        place = (row["order"], max(row["chosen_share"], _RANGE[0]))
        axes.annotate(label, place, fontsize=7, color=MUTED, ha="center", va="bottom")
    shown = scores.set_index("edges")
    share_of = shown["share"].astype(float).to_dict()
    for name, label, color in (
        ("chosen", "chosen, new pairs", PALETTE[0]),
        ("without_chosen", "all others", PALETTE[1]),
        ("random", "as many at random", MUTED),
    ):
        share = max(share_of[name], _RANGE[0])
        axes.axhline(share, color=color, linestyle="--", linewidth=1.2, label=label)
    axes.set_ylim(*_RANGE)
    legend_under(axes)
    total = int(shown["number"].to_dict()["all"])
    title = f"edges exchanged, of {total} (layer.head tokens)"
    prepare_axes(axes, title, "number of edges", "share of the donor's answer")


def _draw_heads(figure: Figure, axes: Axes, heads: pd.DataFrame) -> None:
    grid = heads.pivot(index="layer", columns="head", values="spd")
    ratio = np.log10(grid.to_numpy() / heads["intact"].iloc[0])
    image = axes.imshow(ratio, cmap="viridis", aspect="auto")
    axes.set_xticks(range(grid.shape[1]), [str(head) for head in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [str(layer) for layer in grid.index])
    prepare_axes(axes, "head's output at its mean", "head", "layer")
    axes.grid(visible=False)
    color_bar(figure, image, axes, "log₁₀ SPD to OLS, × intact")
