"""Chapters on several trainings: a sweep's seeds, the course of training, and task diversity."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from incontext_linear.figures.across_seeds import (
    CURVES,
    FOUND,
    LAYERS,
    LEAST_SHARE,
    LOGARITHMIC,
    MOST,
    SHARES,
    chosen_series,
    series_looks,
    series_name,
)
from incontext_linear.figures.dynamics import distance_name
from incontext_linear.figures.interactive import Panel, curves, heat_map
from incontext_linear.figures.words import algorithm_name, prompts_name
from incontext_linear.report.content import (
    SEEDS,
    Answer,
    Chapter,
    Number,
    Results,
    Shown,
    records,
    with_interval,
)

STEP = "training step (step 0 is drawn at ½)"


def seeds(results: Results) -> Chapter | None:
    """Every curve of a finished sweep as a mean over its trainings."""
    if not results.has("across_seeds_means"):
        return None
    means = results.table("across_seeds_means")
    number, over = int(means["seeds"].max()), ", ".join(dict.fromkeys(means["over"]))
    defined = "alignment" if set(means["measure"]) <= {*SHARES, FOUND} else "probe"
    shown = [
        Shown(title, caption, definition, curves(_measures(means, measures, x)))
        for title, caption, definition, measures, x in (
            ("Against the number of examples", _SEEN, "spd", CURVES, "examples seen, k"),
            ("Against the layer", _LAYERS, defined, LAYERS, "layer (0: embedding)"),
        )
        if means["measure"].isin(measures).any()
    ]
    lead = (f"{number} trainings of each point of a sweep; intervals over {over}.",)
    at = means[(means["measure"] == "SPD") & (means["series"] == "ols")]
    at = at[at["position"] == at["position"].max()]
    numbers = tuple(
        Number.of(f"SPD to least squares at k = {row['position']} {row['point']}", row, over=SEEDS)
        for row in records(at)
    )
    answer = _nearest_over_seeds(means) or _found_over_seeds(means)
    return Chapter(lead, tuple(shown), numbers, answer)


def _measures(means: pd.DataFrame, measures: Sequence[str], x: str) -> list[Panel]:
    panels = []
    for measure in measures:
        looks = series_looks(means, measure)
        for point, rows in means[means["measure"] == measure].groupby("point", sort=False):
            panels.append(
                Panel(
                    rows[rows["series"].isin(chosen_series(rows, measure))], "position", "series",
                    f"{measure} {point}".strip(), x, measure, log_y=measure in LOGARITHMIC,
                    name=partial(series_name, measure=measure), looks=looks,
                    floor=LEAST_SHARE if measure in SHARES else None,
                )
            )  # fmt: skip
    return panels


def _nearest_over_seeds(means: pd.DataFrame) -> Answer | None:
    spd = means[(means["measure"] == "SPD") & (means["position"] >= 1)]
    if spd.empty:
        return None
    mean = spd.groupby(["point", "series"], sort=False)["mean"].mean().reset_index()
    nearest = mean.loc[mean.groupby("point", sort=False)["mean"].idxmin()]
    parts = [
        f"{row['point']} {algorithm_name(str(row['series']))}".strip() for row in records(nearest)
    ]
    number = int(spd["seeds"].max())
    return Answer(
        f"Nearest in the mean over k and {number} trainings, among the algorithms listed: "
        f"{'; '.join(parts)}.",
        rank=1,
    )


def _found_over_seeds(means: pd.DataFrame) -> Answer | None:
    asked = means[means["measure"] == FOUND]
    if asked.empty:
        return None
    number = int(asked["seeds"].max())
    parts = []
    for (point, series), rows in asked[asked["mean"] == 1].groupby(["point", "series"], sort=False):
        layers = ", ".join(str(layer) for layer in sorted(rows["position"]))
        where = f"layer{'s' if len(rows) > 1 else ''} {layers}"
        parts.append(f"{point} {series_name(str(series), FOUND)} ({where})".strip())
    if not parts:
        return Answer(f"None of the variables asked for is found in all {number} trainings.", 1)
    return Answer(f"Causal variables found in all {number} trainings: {'; '.join(parts)}.", rank=1)


def dynamics(results: Results) -> Chapter | None:
    """What the learners are nearest to along training."""
    if not results.has("dynamics_spd", "dynamics_nearest"):
        return None
    spd, nearest = results.table("dynamics_spd"), results.table("dynamics_nearest")
    number = int(spd["seeds"].max())
    shown = [_distances(spd), *_nearest(nearest)]
    if results.has("dynamics_passages"):
        shown.append(_passages(results.table("dynamics_passages")))
    lead = (
        f"{number} trainings, measured at steps spaced by logarithm. Intervals over seeds and "
        "prompts.",
    )
    last = nearest[nearest["step"] == nearest["step"].max()]
    parts = [
        f"{prompts_name(str(name))}: "
        + ", ".join(
            f"{algorithm_name(str(own))} at {count} of {len(rows)} k"
            for own, count in rows["nearest"].value_counts().items()
        )
        for name, rows in last.groupby("prompts_of", sort=False)
    ]
    answer = Answer(f"Nearest at the last step, mean of {number} trainings: {'; '.join(parts)}.", 1)
    return Chapter(lead, tuple(shown), (), answer)


def _distances(spd: pd.DataFrame) -> Shown:
    keys = ["prompts_of", "predictor", "step"]
    seen = spd[spd["examples_seen"] >= 1]
    means = seen.groupby(keys, as_index=False, sort=False)[["mean", "low", "high"]].mean()
    means = means.assign(step=means["step"].astype(float).clip(lower=0.5))
    panels = [
        Panel(
            rows, "step", "predictor", prompts_name(str(name)), STEP,
            "SPD, share of Var(y)", name=distance_name, log_x=True, log_y=True,
        )
        for name, rows in means.groupby("prompts_of", sort=False)
    ]  # fmt: skip
    return Shown("Distances along training", _ALONG, "spd", curves(panels))


def _nearest(nearest: pd.DataFrame) -> list[Shown]:
    shown = []
    for name, rows in nearest.groupby("prompts_of", sort=False):
        wide = {
            column: rows.pivot(index="examples_seen", columns="step", values=column)
            for column in ("margin", "nearest")
        }
        names = wide["nearest"].map(lambda own: algorithm_name(str(own)))
        figure = heat_map(
            wide["margin"], "training step", "examples seen, k", "margin", log=True,
            scale="Blues", hover=names, limits=(1.0, 10.0),
        )  # fmt: skip
        title = f"The nearest algorithm, {prompts_name(str(name))}"
        shown.append(Shown(title, _NEAREST, "nearest", figure))
    return shown


def _passages(passages: pd.DataFrame) -> Shown:
    rows = [
        {
            "quantity": algorithm_name(str(row["quantity"])),
            "half-way at step": with_interval(row, ("half", "low", "high")),
            "takes, octaves of steps": f"{row['octaves']:.1f}",
            "share in one octave": f"{row['largest_octave']:.2f}",
            "seeds apart, octaves": f"{row['spread']:.2f}",
        }
        for row in records(passages)
    ]
    return Shown("How sudden, and how alike in all seeds", _SUDDEN, "spd", table=pd.DataFrame(rows))


def diversity(results: Results) -> Chapter | None:
    """From how many tasks on learners leave the pool's posterior mean for the prior's."""
    if not results.has("diversity_curves", "diversity_thresholds"):
        return None
    table, found = results.table("diversity_curves"), results.table("diversity_thresholds")
    number = int(table["seeds"].max())
    distances = table[(table["quantity"] != "preference") & table["pool_size"].notna()]
    panels = [
        Panel(
            rows.assign(pool_size=rows["pool_size"].astype(float)), "pool_size", "quantity",
            prompts_name(str(name)), "number of tasks in the pool, M",
            "squared distance, share of Var(y)", log_x=True, log_y=True,
        )
        for name, rows in distances.groupby("prompts", sort=False)
    ]  # fmt: skip
    thresholds = [
        Number.of(
            f"Threshold M, {prompts_name(str(row['prompts']))}",
            row,
            ("threshold", "low", "high"),
            over=f"{SEEDS} and prompts",
        )
        for row in records(found[found["threshold"].notna()])
    ]
    words = "; ".join(f"{one.words} ({one.label.partition(', ')[2]})" for one in thresholds)
    answer = (
        f"Learners leave the pool's posterior mean for ridge at M = {words}."
        if words
        else "No threshold: all learners prefer the same of the pool's posterior mean and ridge."
    )
    lead = (f"{number} trainings of each pool size, measured on their pool and on the prior.",)
    shown = (Shown("Distances along the pool's size", _POOL, "spd", curves(panels)),)
    return Chapter(lead, shown, tuple(thresholds), Answer(answer, rank=2))


_SEEN = (
    "Means over the trainings with their intervals; an algorithm is near where its curve is low. "
    f"At most {MOST} curves a panel, those that are lowest, or highest where that is better (R²)."
)
_LAYERS = (
    "What probes, edits, filters and exchanges of causal variables find in each layer, as means "
    f"over the trainings. At most {MOST} curves a panel, those that reach most or leave least; of "
    "variables those found in any layer. Shares below −1 are drawn at −1."
)
_ALONG = (
    "Squared prediction difference to each algorithm, mean over k ≥ 1, while the learners train. "
    "Where two curves cross the nearest algorithm changes."
)
_NEAREST = (
    "The nearest algorithm at each step and number of examples (the pointer names it); the darker, "
    "the larger the factor by which it is nearer than the next."
)
_SUDDEN = (
    "When each distance has fallen half-way on a logarithmic scale, within how many doublings of "
    "the step most of it happens, and how far the seeds lie apart."
)
_POOL = (
    "Distances of the learners to the posterior mean of their pool and of the prior, against the "
    "pool's size. Where the curves cross is the threshold."
)
