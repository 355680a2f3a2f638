"""Figures of the construction: its sizes, its errors, and the hidden matrix of one gradient step.

Tables in (see `measurements`), Matplotlib figures out. To draw the figures of
`docs/results/construction.md`:

    python -m incontext_linear.figures.construction docs/figures
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from incontext_linear.construction.config import ConstructionConfig
from incontext_linear.figures.style import (
    DASHES,
    GRID,
    INK,
    MUTED,
    Axes,
    Figure,
    legend_beside,
    panel_grid,
    prepare_axes,
    styles,
)
from incontext_linear.figures.words import program_name

AXIS_LABELS = {
    "saturation": "attention saturation (lead of the score)",
    "padding": "LayerNorm padding N",
    "gelu_scale": "GeLU scale s",
}
SIZE_LABELS = {"layers": "layers", "hidden_rows": "hidden rows", "mlp_width": "MLP width"}
MARKERS = "osD^v"
LARGE = 1e3
"""Entries above this are the padding: they are drawn as a symbol, not as a colour."""


def plot_sizes(sizes: pd.DataFrame, construction: ConstructionConfig) -> Figure:
    """Layers, hidden rows and MLP width against d, a curve a program."""
    figure, panels = panel_grid(3, 3, (3.7, 4.1), extra=(2.4, 0.3), run=_built(construction))
    for axes, (size, label) in zip(panels, SIZE_LABELS.items(), strict=True):
        _curves(axes, sizes, "dim", size)
        axes.set_xscale("log", base=2)
        if size == "layers":
            axes.set_ylim(0, sizes[size].max() + 1)
        else:
            axes.set_yscale("log", base=2)
        for ticks in (axes.xaxis, axes.yaxis):
            ticks.set_major_formatter("{x:.0f}")
        prepare_axes(axes, label[0].upper() + label[1:], "dimension d", label)
    legend_beside(figure, axes)
    return figure


def plot_errors(errors: pd.DataFrame, construction: ConstructionConfig) -> Figure:
    """Relative error against d: a panel a dtype, a curve a program, the targets dotted."""
    dtypes = list(dict.fromkeys(errors["dtype"]))
    figure, panels = panel_grid(
        len(dtypes),
        len(dtypes),
        (4.75, 4.1),
        extra=(2.4, 0.3),
        run=_built(construction),
        sharey=True,
    )
    for axes, dtype in zip(panels, dtypes, strict=True):
        _curves(axes, errors[errors["dtype"] == dtype], "dim", "relative_error")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_yscale("log")
        if dtype == "float64":
            for target, what in (
                (1e-6, "asked of a single step: 1e-6"),
                (1e-4, "asked of a whole prompt: 1e-4"),
            ):
                axes.axhline(target, color=MUTED, linewidth=0.9, linestyle=":")
                axes.annotate(
                    what, (1, target), xytext=(0, 3), textcoords="offset points", color=MUTED
                )
        prepare_axes(axes, dtype, "dimension d", "relative error")
    legend_beside(figure, axes)
    return figure


def plot_constants(constants: pd.DataFrame, construction: ConstructionConfig) -> Figure:
    """Relative error against each constant: a row a dtype, a curve a program, the chosen value
    marked.
    """
    run = (
        f"d = {construction.sweep_dim}, {construction.sweep_num_examples} examples · "
        f"{construction.sweep_num_prompts} prompts"
    )
    dtypes = list(dict.fromkeys(constants["dtype"]))
    shown = [(dtype, *labelled) for dtype in dtypes for labelled in AXIS_LABELS.items()]
    figure, panels = panel_grid(
        len(shown), len(AXIS_LABELS), (3.9, 3.7), extra=(1.8, 0.3), run=run, sharey=True
    )
    for axes, (dtype, constant, label) in zip(panels, shown, strict=True):
        table = constants[(constants["dtype"] == dtype) & (constants["constant"] == constant)]
        _curves(axes, table, "value", "relative_error")
        axes.set_yscale("log")
        axes.set_ylim(1e-11, 1e2)
        if constant != "saturation":
            axes.set_xscale("log")
        chosen = table.loc[table["chosen"], "value"].iloc[0]
        axes.axvline(chosen, color=INK, linewidth=1.2, linestyle="--")
        place = {"xytext": (4, 6), "textcoords": "offset points", "color": INK}
        axes.annotate(f"chosen: {chosen:g}", (chosen, 1e-11), **place)
        prepare_axes(axes, dtype, label, "relative error")
    legend_beside(figure, axes)
    return figure


def plot_hidden_matrix(trace: pd.DataFrame) -> Figure:
    """The hidden matrix (rows × tokens) after every layer of one gradient step; what changed is
    boxed.
    """
    layers = [rows for _, rows in trace.groupby("layer", sort=True)]
    labels, tokens = (list(dict.fromkeys(trace[name])) for name in ("row", "token"))
    size = 2.9, 0.23 * len(labels) + 0.5
    figure, grid = panel_grid(
        len(layers), -(-len(layers) // 2), size, extra=(0.6, 0.0), sharey=True
    )
    before = None
    for axes, rows in zip(grid, layers, strict=True):
        values = (
            rows.pivot(index="row", columns="token", values="value").loc[labels, tokens].to_numpy()
        )
        _draw_matrix(axes, values, before)
        first = rows.iloc[0]
        title = "the prompt" if before is None else f"layer {first['layer']}: {first['operation']}"
        axes.set_title(
            f"{title}\n{first['line'] if before is not None else 'read-in + positions'}",
            fontsize=9.5,
        )
        axes.set_xticks(range(len(tokens)), tokens)
        axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
        before = values
    return figure


def _built(construction: ConstructionConfig) -> str:
    """Which prompts and how many steps the programs are built for."""
    return (
        f"prompts of {construction.num_examples} examples · {construction.num_steps} steps of "
        "batch gradient descent"
    )


def _draw_matrix(axes: Axes, values: np.ndarray, before: np.ndarray | None) -> None:
    """One panel: colours and numbers; boxes around the entries that differ from the panel
    before.
    """
    from matplotlib.colors import SymLogNorm
    from matplotlib.patches import Rectangle

    large = np.abs(values) > LARGE
    shown = np.where(large, 0.0, values)
    axes.imshow(shown, cmap="RdBu_r", norm=SymLogNorm(0.3, vmin=-5, vmax=5), aspect="auto")
    for (row, token), value in np.ndenumerate(values):
        if large[row, token]:
            text = "+N" if value > 0 else "−N"
        else:
            text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
        empty = text == "0.00"
        dark = abs(shown[row, token]) > 0.8
        color = "white" if dark else "#c3c8d0" if empty else INK
        place = {"ha": "center", "va": "center", "in_layout": False}  # within the panel
        axes.text(token, row, "0" if empty else text, fontsize=6.5, color=color, **place)
        if before is not None and abs(value - before[row, token]) > 1e-6 * max(1.0, abs(value)):
            box = Rectangle(
                (token - 0.5, row - 0.5),
                1,
                1,
                fill=False,
                edgecolor=INK,
                linewidth=2,
                clip_on=False,
            )
            axes.add_patch(box)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def _curves(axes: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    programs = table.groupby("program", sort=False)
    # Later curves are thinner and dashed: those that coincide stay visible.
    for place, (marker, (name, rows)) in enumerate(zip(MARKERS, programs, strict=False)):
        axes.plot(
            rows[x],
            rows[y],
            label=program_name(str(name)),
            marker=marker,
            markersize=6.5 - place,
            linewidth=2.2 - 0.3 * place,
            color=styles([str(name)])[str(name)]["color"],
            linestyle=DASHES[place % len(DASHES)],
        )


def main() -> None:
    """Draw every figure of the construction into a folder, with the default parameters and seed
    0.
    """
    from incontext_linear.construction import measurements

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder, config = parser.parse_args().folder, ConstructionConfig()
    figures = {
        "hidden_matrix": plot_hidden_matrix(measurements.trace_gradient_step(seed=0)),
        "sizes": plot_sizes(measurements.size_table(config), config),
        "errors": plot_errors(measurements.error_table(config, seed=0), config),
        "constants": plot_constants(measurements.constants_table(config, seed=0), config),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"construction_{name}.png", dpi=150)


if __name__ == "__main__":
    main()
