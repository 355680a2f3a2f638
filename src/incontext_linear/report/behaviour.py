"""Chapters on training and on what the learner predicts."""

from typing import Any

import numpy as np
import pandas as pd

from incontext_linear.comparison.curves import describe_nearest
from incontext_linear.figures.behavioral_comparison import lowest_drawn
from incontext_linear.figures.interactive import Panel, curves
from incontext_linear.figures.words import algorithm_name, describe_run
from incontext_linear.report.content import (
    MEASURE,
    Answer,
    Chapter,
    Number,
    Results,
    Shown,
    records,
    with_interval,
)
from incontext_linear.tables import LEARNER
from incontext_linear.training.loop import reporting_prefix

SEEN = "examples seen, k"


def training(results: Results) -> Chapter | None:
    """What was trained and how it went; or which learner was measured."""
    if results.learner is None:
        return None
    record, task = results.learner.record, results.learner.task
    trained = results.has("training_history")
    how = (
        "This run trained the learner."
        if trained
        else "This run trained no learner: it measured one that was trained before."
    )
    model = results.learner.config
    seed = record.get("seed")
    size = describe_run(task, model, seed) if seed is not None else results.learner.shape
    steps = f" It was trained for {record['step']:,} steps." if "step" in record else ""
    lead = (f"{how} {size}.{steps}",)
    if not trained:
        return Chapter(lead=lead)
    history = results.table("training_history")
    names = {
        "loss": "training loss (mean over k)",
        "spd_to_ols": f"SPD to least squares, k = {reporting_prefix(task)}",
    }
    tidy = history.melt("step", list(names), var_name="series", value_name="mean")
    panel = Panel(
        tidy, "step", "series", "Training", "step", "mean square", ("mean",), names.__getitem__,
        log_y=True,
    )  # fmt: skip
    caption = (
        "Loss of the training batches, and squared difference of the learner's predictions to "
        "those of least squares on prompts of its own distribution. Lower is better; a curve that "
        "is still falling at the right end says that longer training would help."
    )
    return Chapter(lead, (Shown("Training", caption, "loss", curves([panel])),))


def behaviour(results: Results) -> Chapter | None:
    """Predictions and implicit weights against every textbook algorithm."""
    if not results.has("spd_curves", "evaluation_prompts"):
        return None
    spd, seen = results.table("spd_curves"), results.context_length
    prompts = results.tables["evaluation_prompts"]
    variance = float(prompts["ys"][:, seen].double().square().mean())
    words = describe_nearest(spd, prompts, algorithm_name)
    at = spd[spd["examples_seen"] == seen].sort_values("mean").reset_index(drop=True)
    numbers = _numbers(results, at, variance)
    shown = [_divergences(results), _distances(at, variance, seen), *_longer(results)]
    if results.has("risk_curves"):
        shown.append(_risks(results))
    if results.has("linearity_curve"):
        shown.append(_linearity(results))
    lead = (f"{words}. Every mean is over {len(prompts['ys'])} prompts.",)
    return Chapter(lead, tuple(shown), numbers, Answer(f"{words}.", rank=1))


def _numbers(results: Results, at: pd.DataFrame, variance: float) -> tuple[Number, ...]:
    seen = results.context_length
    ols = at[at["predictor"] == "ols"]
    found = [
        Number.of(
            f"SPD to {algorithm_name(row['predictor'])} at k = {seen}, share of Var(y)",
            row,
            unit=variance,
            percent=True,
        )
        for row in records(pd.concat([ols, at.iloc[:1]]).drop_duplicates("predictor"))
    ]
    if results.has("linearity_curve"):
        curve = results.table("linearity_curve")
        (row,) = records(curve[curve["examples_seen"] == seen])
        found.append(Number.of(f"Linearity in the query, R² at k = {seen}", row))
    return tuple(found)


def _divergences(results: Results) -> Shown:
    marks = _marks(results)
    panels = [
        Panel(
            _seen(results.table(f"{key}_curves")), "examples_seen", "predictor", title, SEEN,
            f"{key.upper()} to the learner", log_y=True, marks=marks,
        )
        for key, title in (
            ("spd", "Squared prediction difference"),
            ("ilwd", "Implicit weight difference"),
        )
        if results.has(f"{key}_curves")
    ]  # fmt: skip
    caption = (
        "How far the learner is from each algorithm, against the number of examples that it has "
        "seen; bands are intervals over prompts. The lowest curve is the nearest algorithm. Click "
        "a name to hide it, double-click to see it alone; the pointer shows k, value and interval. "
        "Without noise least squares is exact from k = d on, so a small distance to it there says "
        "that the learner is well trained, not which algorithm it runs."
    )
    return Shown("Distance to every algorithm", caption, "spd", curves(panels))


def _distances(at: pd.DataFrame, variance: float, seen: int) -> Shown:
    share = "SPD to the learner, % of Var(y)"
    scaled = at.assign(**{name: 100 / variance * at[name] for name in MEASURE})
    rows = [
        {
            "algorithm": algorithm_name(row["predictor"]),
            share: "diverges" if row["diverged"] else with_interval(row),
        }
        for row in records(scaled)
    ]
    caption = f"The same distances at k = {seen}, nearest first, with intervals over prompts."
    return Shown(f"Distances at k = {seen}", caption, "nearest", table=pd.DataFrame(rows))


def _risks(results: Results) -> Shown:
    risk = results.table("risk_curves")
    panel = Panel(
        risk.iloc[np.argsort(risk["predictor"] == LEARNER, kind="stable")],
        "examples_seen", "predictor", "Squared error against the label", SEEN,
        "mean squared error", log_y=True, floor=lowest_drawn(risk),
        marks=_marks(results),
    )  # fmt: skip
    caption = (
        "Squared error of the learner and of every algorithm on the same prompts. Algorithms that "
        "are exact without noise are drawn at the lower edge; the pointer shows their value."
    )
    return Shown("Squared error", caption, "risk", curves([panel]))


def _linearity(results: Results) -> Shown:
    shown = _seen(results.table("linearity_curve"))
    left = shown.assign(mean=1 - shown["mean"], low=1 - shown["high"], high=1 - shown["low"])
    panel = Panel(
        left, "examples_seen", "predictor", "How far from linear the learner is", SEEN,
        "1 − R² of its implicit weights", log_y=True, marks=_marks(results),
    )  # fmt: skip
    caption = (
        "The share of the learner's answers to many queries behind one prompt that no linear map "
        "of the query explains. Only where this is small do implicit weights mean much."
    )
    return Shown("Linearity", caption, "linearity", curves([panel]))


def _longer(results: Results) -> tuple[Shown, ...]:
    """Where prompts are longer than in training: the nearest algorithm at the end of the trained
    length, and at each multiple of it.
    """
    trained = _trained_length(results)
    if trained is None:
        return ()
    spd, labels = results.table("spd_curves"), results.tables["evaluation_prompts"]["ys"]
    longest = labels.shape[1]
    rows = []
    for length in sorted({*range(trained, longest, trained), longest}):
        seen = length - 1
        at = spd[spd["examples_seen"] == seen].sort_values("mean")
        ols, (nearest, *_) = at[at["predictor"] == "ols"], records(at)
        percent = 100 / float(labels[:, seen].double().square().mean())
        rows.append(
            {
                SEEN: seen,
                "prompt's length / n": f"{length / trained:.3g}",
                "nearest": algorithm_name(nearest["predictor"]),
                "SPD to it, % of Var(y)": _share(nearest, percent),
                "SPD to least squares": _share(records(ols)[0], percent) if len(ols) else "–",
            }
        )
    caption = (
        f"The learner was trained on prompts of n = {trained} examples and is asked here about "
        "longer ones. An algorithm has no length: a learner that runs one stays as near to it "
        "beyond n as within. Intervals are over prompts."
    )
    return (Shown("Longer prompts than in training", caption, "spd", table=pd.DataFrame(rows)),)


def _share(row: dict[str, Any], percent: float) -> str:
    return with_interval({name: percent * row[name] for name in MEASURE})


def _marks(results: Results) -> dict[str, float]:
    """Text → k: the dimension and, where prompts go on, the last k of the training."""
    trained = _trained_length(results)
    beyond = {"trained up to here": trained - 1.0} if trained is not None else {}
    return {"k = d": float(results.task.dim)} | beyond


def _trained_length(results: Results) -> int | None:
    """n of the training, if this run's prompts are longer."""
    if results.learner is None or results.learner.task.num_examples >= results.task.num_examples:
        return None
    return results.learner.task.num_examples


def _seen(table: pd.DataFrame) -> pd.DataFrame:
    """From one example on: before any, all predict close to 0."""
    return table[table["examples_seen"] > 0]
