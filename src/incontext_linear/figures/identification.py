"""Which algorithm a learner follows, and how far from home: the maps of `comparison.verdict`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    Axes,
    Figure,
    color_bar,
    draw_curves,
    legend_below,
    panel_grid,
    prepare_axes,
)
from incontext_linear.figures.words import algorithm_name, shift_name

HOME = "home"
FLOOR = 1e-6
"""The smallest share of Var(y) that the colours tell apart."""
CELL = ["shift", "strength"]


def pooled(distances: pd.DataFrame) -> pd.DataFrame:
    """Over all k that were looked at: each candidate's distance, and the share that it leaves."""
    rows = distances.assign(strength=distances["strength"].fillna(-1.0))
    means = rows.groupby([*CELL, "candidate"], sort=False)[["distance", "learner_power"]].mean()
    left = means["distance"] / means["learner_power"].clip(lower=1e-30)
    return means.assign(left=left).reset_index()


def plot_identification(
    distances: pd.DataFrame,
    domain: pd.DataFrame,
    candidate: str,
    limit: float = 0.01,
    run: str = "",
) -> Figure:
    """Left: where the candidate explains the learner. Right: every candidate, shift by shift.

    Args:
        distances: of one learner, as `measure_conditions` gives them.
        domain: as `domain_of_validity` gives it; its shifts are the rows.
        candidate: whose domain is drawn.
        limit: share left unexplained up to which the candidate counts as valid.
        run: which run, seed or size is shown.
    """
    from matplotlib.figure import Figure

    table = pooled(distances)
    shifts = [name for name in domain["shift"] if name in set(table["shift"])]
    figure = Figure(figsize=(15, 0.36 * len(shifts) + 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 6))
    if run:
        figure.suptitle(run, x=0.995, ha="right", fontsize=8, color=MUTED)
    _domain(left, table[table["candidate"] == candidate], shifts, candidate, limit)
    image = _map(right, table, shifts)
    color_bar(figure, image, right, "distance to the learner, share of Var(y)", shrink=0.8)
    return figure


def _domain(
    axes: Axes, table: pd.DataFrame, shifts: Sequence[str], candidate: str, limit: float
) -> None:
    """A row a shift, a cell a strength: the share of the learner that the candidate leaves."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    norm = LogNorm(limit, 1, clip=True)
    longest = 1
    for row, shift in enumerate(shifts):
        cells = table[table["shift"] == shift].sort_values("strength")
        longest = max(longest, len(cells))
        for column, cell in enumerate(cells.itertuples()):
            color = _ramp(norm(max(cell.left, limit)))
            axes.add_patch(Rectangle((column - 0.47, row - 0.4), 0.94, 0.8, color=color))
            valid = cell.left <= limit
            text = "" if cell.strength == -1.0 else f"{cell.strength:g}"
            axes.text(
                *(column, row),
                text or ("within" if valid else "beyond"),
                ha="center",
                va="center",
                fontsize=7.5,
                color=INK,
                fontweight="bold" if valid else "normal",
            )
            if valid:
                axes.plot(
                    [column - 0.47, column + 0.47],
                    [row + 0.42] * 2,
                    color=PALETTE[2],
                    linewidth=2.5,
                )
    axes.set_xlim(-0.6, longest - 0.4)
    axes.set_ylim(len(shifts) - 0.4, -0.6)
    title = f"Where {algorithm_name(candidate)} explains at least {100 * (1 - limit):g} %"
    prepare_axes(axes, title, "strength of the shift (green line: explained; darker: less)", "")
    axes.grid(visible=False)
    axes.set_yticks(range(len(shifts)), [shift_name(name) for name in shifts])
    axes.set_xticks([])


def _ramp(share: float) -> tuple[float, float, float]:
    """White at 0 to a light red at 1."""
    start, end = np.array([1.0, 1.0, 1.0]), np.array([0.93, 0.55, 0.45])
    return tuple(start + float(share) * (end - start))


def _map(axes: Axes, table: pd.DataFrame, shifts: Sequence[str]):
    """Candidates by shift, each shift at the strength that is hardest for the best candidate."""
    from matplotlib.colors import LogNorm

    cells = hardest(table, shifts)
    grid = cells.to_numpy()
    image = axes.imshow(
        np.clip(grid, FLOOR, 10), norm=LogNorm(FLOOR, 10), cmap="viridis_r", aspect="auto"
    )
    for index, values in enumerate(grid):
        best = int(np.nanargmin(values))
        axes.plot(best, index, marker="o", color="white", markeredgecolor=INK, markersize=6)
    prepare_axes(axes, "Distance to every candidate (circle: nearest)", "", "")
    axes.grid(visible=False)
    axes.set_yticks(range(len(cells)), cells.index, fontsize=8)
    names = [algorithm_name(str(name)) for name in cells.columns]
    axes.set_xticks(range(len(names)), names, rotation=50, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    return image


def hardest(table: pd.DataFrame, shifts: Sequence[str]) -> pd.DataFrame:
    """Distances: a row for home and for each shift, at the strength that is hardest for the best
    candidate; a column a candidate, nearest at home first.

    Args:
        table: as `pooled` gives it.
        shifts: which, in this order.
    """
    at_home = table[table["shift"] == HOME].set_index("candidate")["distance"]
    candidates = list(at_home.sort_values().index)
    rows = {}
    for shift in (HOME, *shifts):
        cells = table[table["shift"] == shift].pivot(
            index="strength", columns="candidate", values="distance"
        )
        strength = float(str(cells.min(axis=1).idxmax()))
        label = shift_name(shift) + ("" if strength == -1.0 else f" {strength:g}")
        rows[label] = cells.loc[strength][candidates]
    return pd.DataFrame(rows).T


def plot_shift_curves(distances: pd.DataFrame, num_candidates: int = 5, run: str = "") -> Figure:
    """Distance to the candidates nearest at home against the strength of each shift."""
    table = distances[distances["strength"].notna()]
    home = pooled(distances[distances["shift"] == HOME])
    nearest = home.nsmallest(num_candidates, "distance")["candidate"].tolist()
    seen = sorted(table["examples_seen"].unique())
    middle = seen[len(seen) // 2]
    shown = table[(table["examples_seen"] == middle) & table["candidate"].isin(nearest)]
    counts = shown.groupby("shift", sort=False)["strength"].nunique()
    shifts = list(counts[counts > 1].index)  # one strength makes no curve
    what = f"distance to the nearest candidates, k = {middle}"
    title = f"{what} · {run}" if run else what
    figure, grid = panel_grid(max(1, len(shifts)), 4, (3.5, 2.7), extra=(0.0, 0.6), run=title)
    for axes, shift in zip(grid, shifts, strict=False):
        rows = shown[shown["shift"] == shift].rename(columns={"distance": "mean"})
        draw_curves(axes, rows.sort_values("strength"), "strength", "candidate")
        axes.set_yscale("log")
        prepare_axes(axes, shift_name(shift), "strength of the shift", "SPD / Var(y)")
    legend_below(figure, grid[0], num_candidates)
    return figure
