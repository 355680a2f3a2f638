"""The chapter on causal variables: which the states hold, and how the query's token reads them."""

import pandas as pd

from incontext_linear.figures.alignment import model_name, position_name
from incontext_linear.figures.interactive import Panel, curves, heat_map
from incontext_linear.figures.words import algorithm_name
from incontext_linear.probing.alignment_rule import FOUND
from incontext_linear.report.content import (
    Answer,
    Chapter,
    Number,
    Results,
    Shown,
    records,
    with_interval,
)

SHARE = ("share", "low", "high")


def alignment(results: Results) -> Chapter | None:
    """Causal variables found by exchanging subspaces, the query's edges, and what it holds."""
    shown: list[Shown] = []
    numbers: tuple[Number, ...] = ()
    answer = None
    if results.has("alignment_verdicts"):
        verdicts = results.table("alignment_verdicts")
        shown += [_shares(verdicts), _verdicts(verdicts)]
        numbers, answer = _strongest(verdicts), _answer(verdicts)
    if results.has("path_shares"):
        shown.append(_paths(results.table("path_shares")))
    if results.has("query_progress"):
        shown += _progress(results.table("query_progress"))
    if results.has("calibration_counts"):
        shown.append(_counts(results.table("calibration_counts")))
    if not shown:
        return None
    return Chapter((_LEAD,), tuple(shown), numbers, answer)


def _shares(verdicts: pd.DataFrame) -> Shown:
    names = [
        f"{position_name(str(row['positions']))}, layer {row['layer']}" for row in records(verdicts)
    ]
    models = verdicts["model"].map(model_name)
    table = verdicts.assign(row=names, name=models)
    rows, columns = (list(dict.fromkeys(values)) for values in (names, models))
    grid = table.pivot(index="row", columns="name", values="share").loc[rows, columns]
    found = table.pivot(index="row", columns="name", values="verdict").loc[rows, columns] == FOUND
    text = grid.map(lambda share: "" if pd.isna(share) else f"{share:.2f}")
    figure = heat_map(
        grid, "causal model", "where", "share", limits=(0.0, 1.0), scale="Viridis",
        text=text.mask(found, "<b>" + text + "</b>"),
    )  # fmt: skip
    return Shown("What an exchange of states carries", _SHARES, "alignment", figure)


def _verdicts(verdicts: pd.DataFrame) -> Shown:
    found = verdicts[verdicts["verdict"] == FOUND]
    rows = [
        {
            "where": f"{position_name(str(row['positions']))}, layer {row['layer']}",
            "variable": _variable(str(row["model"])),
            "rank": f"{row['rank']:.0f}",
            "share": with_interval(row, SHARE),
            "specificity, lower limit": f"{row['specific_low']:.2f}",
            "largest control": f"{max(row['random'], row['control']):.2f}",
        }
        for row in records(found)
    ]
    if not rows:
        rows = [{"where": "–", "variable": "none of the variables asked for is found"}]
    return Shown("Variables found", _FOUND, "alignment", table=pd.DataFrame(rows))


def _strongest(verdicts: pd.DataFrame) -> tuple[Number, ...]:
    found = verdicts[verdicts["verdict"] == FOUND]
    if found.empty:
        return ()
    row = records(found.loc[[found["share"].idxmax()]])[0]
    where = f"{position_name(str(row['positions']))}, layer {row['layer']}, rank {row['rank']:.0f}"
    label = f"Share of the counterfactual, {_variable(str(row['model']))}: {where}"
    return (Number.of(label, row, SHARE),)


def _answer(verdicts: pd.DataFrame) -> Answer:
    found = verdicts[verdicts["verdict"] == FOUND]
    if found.empty:
        words = "None of the variables asked for is found in a linear subspace where it was sought."
        return Answer(words, rank=1)
    parts = []
    for (place, model), rows in found.groupby(["positions", "model"], sort=False):
        layers = ", ".join(str(layer) for layer in sorted(rows["layer"]))
        ranks = "–".join(
            dict.fromkeys(f"{r:.0f}" for r in (rows["rank"].min(), rows["rank"].max()))
        )
        where = f"{position_name(str(place))}, layer{'s' if len(rows) > 1 else ''} {layers}"
        parts.append(f"{_variable(str(model))} ({where}; rank {ranks})")
    return Answer(f"States hold, in a linear subspace that is used: {'; '.join(parts)}.", rank=1)


def _variable(model: str) -> str:
    return model_name(model).replace(" exchanged", "")


def _paths(scores: pd.DataFrame) -> Shown:
    rows = [
        {
            "edges exchanged": str(row["edges"]).replace("_", " "),
            "number": f"{row['number']} of {row['of']}",
            "share of the donor's answer": with_interval(row, SHARE),
        }
        for row in records(scores)
    ]
    return Shown("Through which edges the query reads", _EDGES, "paths", table=pd.DataFrame(rows))


def _progress(progress: pd.DataFrame) -> list[Shown]:
    errors = Panel(
        progress, "layer", "family", "What is left of the answer's variance",
        "layer (0: embedding)", "squared error / variance", ("error", "low", "high"),
        algorithm_name, log_y=True,
    )  # fmt: skip
    parts = progress.groupby("family", sort=False)
    panels = [
        Panel(
            rows, "layer", "family", f"The number that fits best: {algorithm_name(str(name))}",
            "layer (0: embedding)", "steps m, or λ", ("number",), algorithm_name, log_y=True,
        )
        for name, rows in parts
    ]  # fmt: skip
    return [Shown("What the query's token holds", _HOLDS, "progress", curves([errors, *panels]))]


def _counts(counts: pd.DataFrame) -> Shown:
    told = counts.astype(str).rename(columns=lambda name: str(name).replace("_", " "))
    return Shown("Calibration: networks whose variables are known", _KNOWN, "alignment", table=told)


_LEAD = (
    "Parts of the hidden states are exchanged between two prompts. A variable is found where "
    "exchanging one linear subspace changes the answer as exchanging the variable would."
)
_SHARES = (
    "Share of each counterfactual's variance that the best exchange explains, a row a layer and "
    "kind of token, a column a variable; bold: found. Below 0 an exchange does harm."
)
_FOUND = (
    "Where a variable passes every condition: share, specificity against the other variables, "
    "controls, and the part that later layers read."
)
_EDGES = (
    "Attention edges (layer, head, kind of token) from the context to the query are exchanged for "
    "the donor's: all, the few chosen on other pairs, the rest, and as many at random."
)
_HOLDS = (
    "A linear read-out of the query's token, layer by layer: the number of gradient steps and the "
    "penalty of ridge that it gives best, and what these leave."
)
_KNOWN = "The same search on constructed networks: variables that are held, and that are not."
