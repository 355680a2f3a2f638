"""Prompts longer than in training, by architecture: ``python -m benchmarks.length``.

Reads a finished sweep over the axis ``architecture`` (by default ``length``) and writes

- ``--table``: a row a training (of so many ``steps`` on prompts of ``trained`` examples), a column
  for each number of examples seen k: SPD to least squares as a share of Var(y); and ``nearest``,
  the nearest algorithm after the longest prompt;
- ``--figure``: the curves against k;
- to the terminal, the Markdown table of `summary`.

``--draw`` makes figure and Markdown from the table again, without the sweep.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.architectures import NAMES as SAME_SIZES
from benchmarks.claims import markdown
from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.figures.style import (
    INK,
    MUTED,
    PALETTE,
    legend_under,
    panel_grid,
    prepare_axes,
)
from incontext_linear.phase_diagram.across_seeds.measures import Values
from incontext_linear.phase_diagram.across_seeds.summary import summarize_seeds
from incontext_linear.predictors.optimal_step import (
    OptimalStep,
    TaskMoments,
    prefix_scales,
    step_risk,
)

DOCS = Path(__file__).parents[1] / "docs"
NAMES = SAME_SIZES | {
    "rotary": "transformer, rotary positions",
    "no_positions": "transformer, no positions",
    "transformer": "transformer, learned positions",
}
PANELS = (
    ("softmax attention", ("transformer", "rotary", "no_positions", "bare_transformer", "looped")),
    ("recurrences, linear attention", ("delta", "gru", "lstm", "linear_attention")),
)
LENGTHS = (1, 2, 3, 4)
"""Prompts of so many times the training's length n are tabulated; the last query has seen one
example less."""
KEYS = ["architecture", "steps"]
TRAINING = [*KEYS, "seed", "trained", "dim", "nearest"]
HOLDS = 2.0
"""A learner holds as long as it is no further off than so many times its distance at k = n − 1."""


def exact_shares(task: TaskConfig, longest: int) -> pd.Series:
    """Risk over Var(y) at every k from d on, below ``longest``, of the one gradient step that is
    best on the mean of the task's prefixes: the optimum of one layer of linear attention.

    Without noise least squares is right there, so this is also SPD to it.
    """
    moments = TaskMoments.of(task)
    step = OptimalStep(task).step
    risks = step_risk(step, moments, prefix_scales(longest, "examples")) / moments.labels
    return pd.Series(risks.numpy(), index=range(longest)).loc[task.dim :]


def curves(sweep: Path) -> Iterator[pd.DataFrame]:
    """The rows of every variant that is done, one a number of examples seen, from one on.

    Raises:
        ValueError: if a variant's labels have noise, so that least squares is not right.
    """
    for file in sorted(sweep.rglob("variant.json")):
        record = json.loads(file.read_text())
        if record["status"] != "done":
            continue
        task = TaskConfig.model_validate(record["parameters"]["task"])
        if task.noise_std:
            raise ValueError(f"{file}: task.noise_std={task.noise_std}; allowed here: 0")
        spd = pd.read_parquet(file.parent / "08_reporting" / "spd_curves.parquet")
        shares = spd.pivot(index="examples_seen", columns="predictor", values="mean").loc[1:]
        shares /= float(TaskMoments.of(task).labels)
        yield pd.DataFrame(
            {
                "architecture": record["axes"]["architecture"],
                "steps": record["parameters"]["training"]["num_steps"],
                "seed": record["seed"],
                "trained": task.num_examples,
                "dim": task.dim,
                "nearest": shares.iloc[-1].idxmin(),
                "spd_to_ols": shares["ols"],
            }
        ).reset_index()


def write(table: pd.DataFrame, path: Path) -> None:
    """A row a training."""
    wide = table.pivot(index=TRAINING, columns="examples_seen", values="spd_to_ols")
    wide.to_csv(path, float_format="%.4g")


def read(path: Path) -> pd.DataFrame:
    """What `write` wrote, a row a training and number of examples seen."""
    table = pd.read_csv(path).melt(TRAINING, var_name="examples_seen", value_name="spd_to_ols")
    return table.dropna(subset="spd_to_ols").astype({"examples_seen": int})


def holds_until(rows: pd.DataFrame) -> int:
    """The last k up to which one training is never further from least squares than `HOLDS` times
    its distance at the end of the trained length.
    """
    last = int(rows["trained"].iloc[0]) - 1
    beyond = rows.set_index("examples_seen")["spd_to_ols"].sort_index().loc[last:]
    left = beyond.index[~(beyond <= HOLDS * beyond.loc[last])]
    return int(left[0]) - 1 if len(left) else int(beyond.index[-1])


def means(table: pd.DataFrame, bootstrap: BootstrapConfig | None = None) -> pd.DataFrame:
    """``spd_to_ols`` over seeds, by `KEYS`: columns of `summarize_seeds`, ``position`` is k.

    Each seed counts as its mean over its own prompts, so the interval is Student's over seeds.
    """
    parts = []
    for _, rows in table.groupby(KEYS, sort=False):
        seeds = rows["seed"].unique().tolist()
        learners = {seed: [_values(rows[rows["seed"] == seed])] for seed in seeds}
        found, _ = summarize_seeds(learners, bootstrap or BootstrapConfig(), seed=0)
        parts.append(found.assign(**{key: rows[key].iloc[0] for key in KEYS}))
    return pd.concat(parts, ignore_index=True)


def _values(rows: pd.DataFrame) -> Values:
    index = pd.DataFrame({"series": "ols", "position": rows["examples_seen"].to_numpy()})
    return Values("SPD", index, rows["spd_to_ols"].to_numpy(dtype=float)[None])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row an architecture and number of steps, nearest at the longest prompt first: what the
    documents show.
    """
    mean = means(table).set_index([*KEYS, "position"]).sort_index()
    order = mean["mean"].groupby(KEYS).last().sort_values().index
    stops = table.groupby(KEYS)["examples_seen"].max()
    complete = [key for key in order if stops[key] == stops.max()]
    shorter = [key for key in order if stops[key] < stops.max()]
    groups = dict(iter(table.groupby(KEYS)))
    return pd.DataFrame([_record(groups[key], mean.loc[key]) for key in [*complete, *shorter]])


def _record(rows: pd.DataFrame, mean: pd.DataFrame) -> dict[str, Any]:
    """One row of `summary`."""
    name, steps, trained = rows[["architecture", "steps", "trained"]].iloc[0]
    seen = [times * trained - 1 for times in LENGTHS]
    nearest = rows.groupby("seed")["nearest"].first().value_counts()
    until = [holds_until(one) for _, one in rows.groupby("seed")]
    return (
        {"architecture": NAMES.get(name, name), "steps": steps, "seeds": rows["seed"].nunique()}
        | {f"k = {k}": _cell(mean.loc[k]) if k in mean.index else "–" for k in seen}
        | {
            "nearest there": ", ".join(f"{name} ({count})" for name, count in nearest.items()),
            "holds until k": ", ".join(map(str, sorted(until))),
        }
    )


def _cell(row: pd.Series) -> str:
    """Mean with its interval, in percent."""
    middle, *ends = (_short(100 * row[name]) for name in ("mean", "low", "high"))
    return middle if np.isnan(row["low"]) else f"{middle} [{', '.join(ends)}]"


def _short(number: float) -> str:
    """Two digits, without an exponent."""
    return np.format_float_positional(number, precision=2, fractional=False, trim="-")


def draw(table: pd.DataFrame) -> Figure:
    """SPD to least squares against k: a row of panels a number of steps, a colour an architecture,
    a thin line a training.
    """
    trained = int(table["trained"].iloc[0])
    seeds = table.groupby(KEYS)["seed"].nunique()
    run = f"trained on {trained} examples · {seeds.min()} seeds · thin lines: single trainings"
    budgets = sorted(table["steps"].unique())
    figure, panels = panel_grid(2 * len(budgets), 2, (5.2, 3.4), run=run, sharey=True)
    mean = means(table)
    cells = [(steps, *panel) for steps in budgets for panel in PANELS]
    for axes, (steps, title, architectures) in zip(panels, cells, strict=True):
        for color, name in zip(PALETTE, architectures, strict=False):
            rows, own = (
                t[(t["architecture"] == name) & (t["steps"] == steps)] for t in (table, mean)
            )
            _draw_one(axes, rows, own, color, NAMES.get(name, name))
            if name == "linear_attention" and len(rows):
                _draw_optimum(axes, rows)
        axes.axvline(trained - 1, color=MUTED, linewidth=0.9, linestyle=":")
        axes.set_yscale("log")
        prepare_axes(axes, f"{title}, {steps:,} steps", "examples seen, k", "SPD to OLS / Var(y)")
    for axes in panels[-2:]:
        legend_under(axes)
    return figure


def _draw_one(axes: Axes, rows: pd.DataFrame, mean: pd.DataFrame, color: str, label: str) -> None:
    """One architecture's curves: the mean, and every training."""
    own = mean.sort_values("position")
    axes.plot(own["position"], own["mean"], color=color, linewidth=1.8, label=label)
    for _, one in rows.groupby("seed"):
        axes.plot(one["examples_seen"], one["spd_to_ols"], color=color, linewidth=0.5, alpha=0.6)


def _draw_optimum(axes: Axes, rows: pd.DataFrame) -> None:
    """What linear attention has if it is the best step on its training's prompts."""
    dim, trained = (int(rows[name].iloc[0]) for name in ("dim", "trained"))
    task = TaskConfig(dim=dim, num_examples=trained)
    exact = exact_shares(task, int(rows["examples_seen"].max()) + 1)
    look = {"color": INK, "linestyle": "--", "linewidth": 1.2}
    axes.plot(exact.index, exact, label="its optimum, exactly", **look)


def main() -> None:
    """Read the command line, and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("sweep", nargs="?", type=Path, default=Path("data/sweeps/length"))
    parser.add_argument("--table", type=Path, default=DOCS / "results" / "length.csv")
    parser.add_argument("--figure", type=Path, default=DOCS / "figures" / "length.png")
    parser.add_argument("--draw", action="store_true", help="from the table, without the sweep")
    arguments = parser.parse_args()
    if not arguments.draw:
        found = list(curves(arguments.sweep))
        if not found:
            parser.error(f"{arguments.sweep}: no variant is done; run `kedro sweep run length`")
        write(pd.concat(found), arguments.table)
    table = read(arguments.table)
    draw(table).savefig(arguments.figure, dpi=85)
    print(markdown(summary(table)))


if __name__ == "__main__":
    main()
