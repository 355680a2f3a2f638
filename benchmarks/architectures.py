"""Architectures side by side, from a finished sweep: ``python -m benchmarks.architectures``.

Reads the variants of one or several sweeps over the axis ``architecture`` (by default the sweep of
that name) and writes one row a training to ``--table``: SPD to least squares as a share of Var(y)
at three numbers of examples, the nearest algorithm, and the candidates that the identification does
not rule out. ``--draw`` makes the figure of that table.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from incontext_linear.config import TaskConfig
from incontext_linear.figures.style import PALETTE, panel_grid, prepare_axes

SEEN = (4, 9, 19)
NAMES = {
    "delta": "delta rule, 2 layers",
    "looped": "looped transformer, 6 loops",
    "gru": "GRU",
    "transformer": "transformer, 2 layers",
    "lstm": "LSTM",
    "bare_transformer": "bare transformer, 6 layers",
    "linear_attention": "linear attention, 1 layer",
}


def trainings(sweep: Path) -> Iterator[dict[str, object]]:
    """One row for each variant of a sweep that is done."""
    for file in sorted(sweep.rglob("variant.json")):
        record = json.loads(file.read_text())
        if record["status"] != "done":
            continue
        tables = file.parent / "08_reporting"
        task = TaskConfig.model_validate(record["parameters"]["task"])
        spd = pd.read_parquet(tables / "spd_curves.parquet")
        variance = task.dim * task.prior_std**2  # of inputs of variance 1, as the sweep has them
        spd = spd.assign(share=spd["mean"] / variance)
        evidence = pd.read_parquet(tables / "identification_evidence.parquet")
        own = evidence[(evidence["source"] == "learner") & evidence["survives"]]
        row: dict[str, object] = dict(record["axes"]) | {"seed": record["seed"]}
        for seen in SEEN:
            at = spd[spd["examples_seen"] == seen].sort_values("share")
            if at.empty:
                continue
            row[f"spd_to_ols_at_{seen}"] = at.set_index("predictor")["share"]["ols"]
            row[f"nearest_at_{seen}"] = at["predictor"].iloc[0]
            row[f"spd_to_nearest_at_{seen}"] = at["share"].iloc[0]
        yield row | {"survivors": ",".join(own["candidate"])}


def draw(table: pd.DataFrame) -> Figure:
    """SPD to least squares of every training: a row an architecture, a dot a seed."""
    figure, (axes,) = panel_grid(1, 1, (7.0, 3.8), run="d = 2, 10 examples, 1,500 steps of 32")
    order = table.groupby("architecture")["spd_to_ols_at_4"].median().sort_values().index[::-1]
    for place, name in enumerate(order):
        rows = table[table["architecture"] == name]
        for seen, color, shift in ((4, PALETTE[0], 0.12), (19, PALETTE[1], -0.12)):
            values = rows[f"spd_to_ols_at_{seen}"].dropna()
            label = f"k = {seen}" + (", beyond training" if seen > 9 else "")
            axes.scatter(
                values, [place + shift] * len(values), s=26, color=color, alpha=0.8,
                label=label if place == 0 else None, linewidths=0,
            )  # fmt: skip
    seeds = table.groupby("architecture").size()
    axes.set_yticks(range(len(order)), [f"{NAMES.get(n, n)} ({seeds[n]})" for n in order])
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    prepare_axes(axes, "a dot a training", "SPD to least squares, share of Var(y)", "")
    return figure


def main() -> None:
    """Read the command line, and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("sweeps", nargs="*", type=Path, default=[Path("data/sweeps/architecture")])
    parser.add_argument("--table", type=Path, default=Path("docs/results/architectures.csv"))
    parser.add_argument("--add", action="store_true", help="to the rows that the table has")
    parser.add_argument("--draw", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.draw:
        draw(pd.read_csv(arguments.table)).savefig(arguments.draw, dpi=110)
        return
    found = pd.DataFrame([row for sweep in arguments.sweeps for row in trainings(sweep)])
    if arguments.add:
        known = pd.read_csv(arguments.table)
        found = pd.concat([known, found]).drop_duplicates(["architecture", "seed"])
    found = found.sort_values(["architecture", "seed"])
    found.to_csv(arguments.table, index=False, float_format="%.5f")
    print(found.groupby("architecture")["spd_to_ols_at_4"].describe().to_string())


if __name__ == "__main__":
    main()
