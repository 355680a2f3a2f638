"""The spectral filters of a learner, layer by layer, and the families fitted to them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from incontext_linear.figures.style import INK, MUTED, Axes, Figure, prepare_axes, styles

FAMILY_LABELS = {
    "ridge": "ridge, s/(s + λ)",
    "gradient_flow": "gradient flow, 1 − exp(−ts)",
    "gradient_descent": "gradient descent, 1 − (1 − 2αs)^m",
    "newton": "Newton, 1 − (1 − s²/‖S‖²)^(2^m)",
    "newton_start": "Newton, start fitted",
    "least_squares": "least squares, 1",
    "momentum": "momentum",
    "conjugate_gradients": "conjugate gradients",
}
SHORT_LABELS = {
    "ridge": "ridge",
    "gradient_flow": "flow",
    "gradient_descent": "GD",
    "newton": "Newton",
    "newton_start": "Newton",
    "least_squares": "OLS",
    "momentum": "momentum",
    "conjugate_gradients": "CG",
}
# Where a filter explains less than this, how families differ from it means nothing.
LEAST_SHARE = 0.5


def _short(factor: float) -> str:
    return f"{factor:.2f}" if factor < 10 else f"{factor:.3g}"


def _plain(family: str) -> str:
    return family.removeprefix("scaled_")


def plot_layer_filters(
    bins: pd.DataFrame,
    curves: pd.DataFrame,
    scores: pd.DataFrame,
    shares: pd.DataFrame,
    readout: str = "skip",
    families: Sequence[str] = (
        "scaled_ridge",
        "scaled_gradient_flow",
        "scaled_newton",
        "scaled_least_squares",
    ),
    layers: Sequence[int] | None = None,
    title: str = "",
) -> Figure:
    """A panel a layer: its filter f(s) in bins with 95 % intervals, the fitted families as lines.

    Args:
        bins, curves, scores, shares: the tables of `comparison.filters.layers.LayerFilters`.
        readout: whose filters are drawn.
        families: which fitted families are drawn.
        layers: which layers are drawn; None: all.
        title: learner, task and number of examples, above the panels.

    Raises:
        ValueError: if the tables hold no such read-out or layer.
    """
    from matplotlib.figure import Figure

    tables = [table[table["readout"] == readout] for table in (bins, curves, scores, shares)]
    held = sorted(tables[0]["layer"].unique().tolist())
    chosen = held if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(held):
        known = bins[["readout", "layer"]].drop_duplicates().to_numpy().tolist()
        raise ValueError(
            f"readout={readout!r}, layers={layers!r} are not in the tables; they hold {known}"
        )
    columns = len(chosen) if len(chosen) <= 5 else 4
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.7 * rows + 1.1), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, layer in zip(panels, chosen, strict=False):
        of_layer = (table[table["layer"] == layer] for table in tables)
        _draw_layer(axes, *of_layer, families=families, layer=layer)
    drawn = tables[0][tables[0]["layer"].isin(chosen)]
    panels[0].set_ylim(-0.25, max(1.25, 1.1 * drawn["mean"].max()))
    for axes in panels[len(chosen) :]:
        axes.remove()
    for axes in panels[max(len(chosen) - columns, 0) : len(chosen)]:
        axes.tick_params(labelbottom=True)
    _finish(figure, list(panels[: len(chosen)]), title)
    return figure


def _draw_layer(
    axes: Axes,
    bins: pd.DataFrame,
    curves: pd.DataFrame,
    scores: pd.DataFrame,
    shares: pd.DataFrame,
    families: Sequence[str],
    layer: int,
) -> None:
    from matplotlib.ticker import NullFormatter

    shown = bins[bins["axis"] == "eigenvalue"]
    looks = styles(FAMILY_LABELS)
    for family in families:
        line, name = curves[curves["family"] == family], _plain(family)
        look = looks[name] | {"linewidth": 1.6, "label": FAMILY_LABELS[name]}
        axes.plot(line["position"], line["value"], **look)
    mean = shown["mean"].to_numpy()
    errors = np.abs(shown[["low", "high"]].to_numpy().T - mean)
    look = {"fmt": "o", "markersize": 3.2, "linewidth": 1.0, "color": INK, "zorder": 3}
    axes.errorbar(shown["position"], mean, errors, label="read from the layer, 95 %", **look)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    prepare_axes(axes, "", "eigenvalue s of XᵀX", "")
    axes.set_title(
        f"layer {layer}", loc="left", y=1.0, pad=24, fontsize=11, color=INK, fontweight="bold"
    )
    share = shares[shares["axis"] == "eigenvalue"]["mean"].item()
    text = f"a filter explains {100 * max(share, 0):.0f} %\n"
    if share >= LEAST_SHARE:
        misfit = scores.set_index("family")["misfit"]
        factors = (f"{SHORT_LABELS[_plain(name)]} ×{_short(misfit[name])}" for name in families)
        text += ", ".join(factors)
    place = {"transform": axes.transAxes, "va": "bottom", "ha": "left"}
    axes.text(0, 1.02, text, fontsize=7, color=MUTED, **place)


def _finish(figure: Figure, shown: Sequence[Axes], title: str) -> None:
    columns = max(1, int(figure.get_figwidth() // 3))  # labels as wide as a panel
    figure.supylabel("f(s)", fontsize=10, color=MUTED)
    handles, labels = shown[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=columns
    )
    note = (
        "families have a fitted factor; ×: their squared error on held-out prompts over that of "
        "the best filter of any shape"
    )
    lines = "\n".join(filter(None, (title, note)))
    figure.suptitle(lines, x=0.995, ha="right", fontsize=8, color=MUTED)
