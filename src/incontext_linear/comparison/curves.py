"""Learner and textbook algorithms on the same prompts: curves over the number of examples seen.

Paper, section 4, Figures 1 and 2: SPD and ILWD to each algorithm, everyone's squared error, and how
linear the learner is in the query. Tables and tensors by name in, tidy tables out.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.comparison.divergence import (
    curve,
    implicit_weight_difference,
    implicit_weights,
    squared_prediction_difference,
)
from incontext_linear.config import TaskConfig, resolve_device
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.predictors import Baselines
from incontext_linear.tables import LEARNER, Predictions, rows_of

Tensors = Mapping[str, Tensor]

PROMPTS_AT_ONCE = 8192
"""Baselines predict so many at a time: float64 copies of all prompts would take much memory."""
SCORES_AT_ONCE = 2**22
"""Of the queries' attention, on a CPU: more than 32 MB at once are fetched anew from the system at
every layer, which costs half of the time.
"""

DIVERGED = 1e4
"""A difference of this many times what predicting 0 gives is no answer to the prompt any more."""
NEAR = 0.1
"""Share of the labels' variance within which a prediction is near another."""


def predict_with_learner(learner: Learner, prompts: Tensors, device: str) -> dict[str, Tensor]:
    """The learner's predictions (B, n), float32, in the same form as the baselines'."""
    where = resolve_device(device)
    model = on_device(learner.model, where)
    batches = zip(prompts["xs"].split(256), prompts["ys"].split(256), strict=True)
    with torch.no_grad():
        predictions = torch.cat([model(xs.to(where), ys.to(where)).cpu() for xs, ys in batches])
    return {LEARNER: predictions}


def estimate_learner_weights(
    learner: Learner, prompts: Tensors, queries: Tensors, device: str
) -> dict[str, Tensor]:
    """The learner's implicit weights (B', n, d) and their R² (B', n)."""
    where = resolve_device(device)
    asked = queries["queries"].to(where)
    xs, ys = (prompts[name][: len(asked)].to(where) for name in ("xs", "ys"))
    model = on_device(learner.model, where)
    num_heads = getattr(learner.config, "num_heads", 1)  # not every architecture has attention
    scores = xs.shape[1] * asked.shape[1] * learner.task.num_tokens * num_heads
    at_once = 16 if where.type == "cuda" else min(16, max(1, SCORES_AT_ONCE // scores))
    estimate = implicit_weights(model, xs, ys, asked, prompts_at_once=at_once)
    return {name: tensor.cpu() for name, tensor in estimate._asdict().items()}


def predict_with_baselines(
    prompts: Tensors, baselines: Baselines, task: TaskConfig
) -> dict[str, Tensor]:
    """Predictions (B, n) of all baselines, in float64, by their names."""
    xs, ys = prompts["xs"], prompts["ys"]
    predictors = baselines.build(task)
    found = {name: torch.empty_like(ys, dtype=torch.float64) for name in predictors}
    for start in range(0, len(xs), PROMPTS_AT_ONCE):
        rows = slice(start, start + PROMPTS_AT_ONCE)
        wide = xs[rows].double(), ys[rows].double()
        for name, predictor in predictors.items():
            found[name][rows] = predictor(*wide)
    return found


@torch.no_grad()
def estimate_baseline_weights(
    prompts: Tensors, queries: Tensors, baselines: Baselines, task: TaskConfig
) -> dict[str, Tensor]:
    """Implicit weights (B', n, d) of all baselines, by regression on queries as for the learner."""
    asked = queries["queries"].double()
    xs, ys = (prompts[name][: len(asked)].double() for name in ("xs", "ys"))
    return {
        name: implicit_weights(predictor, xs, ys, asked).weights
        for name, predictor in baselines.build(task).items()
    }


def spd_curves(
    learner_predictions: Predictions,
    baseline_predictions: Predictions,
    prompts: Tensors,
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """SPD(learner, baseline) against examples seen, with intervals over prompts.

    Returns:
        ``predictor``, ``examples_seen``, ``mean``, ``low``, ``high``, and ``diverged``: whether the
        baseline is no answer to the prompts at this number of examples.
    """
    learner = learner_predictions[LEARNER]
    differences = (
        (name, squared_prediction_difference(learner, other))
        for name, other in baseline_predictions.items()
    )
    return _curves(differences, _mean_square(prompts["ys"]), comparison, seed)


def ilwd_curves(
    learner_weights: Tensors,
    baseline_weights: Tensors,
    baselines: Baselines,
    prompts: Tensors,
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """ILWD(learner, baseline) against examples seen, as `spd_curves`.

    Raises:
        ValueError: if the weights are of other baselines.
    """
    missing = [name for name in baselines.active if name not in baseline_weights]
    if missing:
        raise ValueError(
            f"baselines {missing} have no saved weights; run baseline_estimation again"
        )
    differences = (
        (name, implicit_weight_difference(learner_weights["weights"], baseline_weights[name]))
        for name in baselines.active  # the file's own order is not kept by safetensors
    )
    scale = prompts["ws"].double().square().sum(-1).mean().item()
    return _curves(differences, scale, comparison, seed)


def risk_curves(
    learner_predictions: Predictions,
    baseline_predictions: Predictions,
    prompts: Tensors,
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """Squared error against the labels, learner and baselines alike, as `spd_curves`."""
    errors = (
        (name, squared_prediction_difference(values, prompts["ys"]))
        for predictions in (learner_predictions, baseline_predictions)
        for name, values in predictions.items()
    )
    return _curves(errors, _mean_square(prompts["ys"]), comparison, seed)


def linearity_curve(
    learner_weights: Tensors, comparison: ComparisonConfig, seed: int
) -> pd.DataFrame:
    """How linear the learner is in the query: R² of its implicit weights, against examples seen."""
    labels = {"predictor": LEARNER}
    return curve(learner_weights["r_squared"], labels, comparison.bootstrap, seed)


def summarize_nearest(spd: pd.DataFrame, prompts: Tensors) -> tuple[str, dict[str, float]]:
    """The nearest algorithm at k = min(2d, n − 1), and numbers by which runs can be sorted.

    Returns:
        Its name, and ``spd_to_nearest_at_2d``, ``nearest_margin`` (the runner-up's SPD over its
        own) and, where least squares is among the algorithms, ``spd_to_ols_at_2d``; the SPDs also
        as ``…_share`` of the labels' mean square.
    """
    seen, variance = _reported(prompts)
    at = spd[spd["examples_seen"] == seen].sort_values("mean")
    means = dict(zip(at["predictor"], at["mean"].astype(float), strict=True))
    nearest, *others = means
    found = {"spd_to_nearest_at_2d": means[nearest]}
    if "ols" in means:
        found["spd_to_ols_at_2d"] = means["ols"]
    found |= {f"{name}_share": value / variance for name, value in found.items()}
    if others and means[nearest] > 0:
        found["nearest_margin"] = means[others[0]] / means[nearest]
    return str(nearest), found


def _reported(prompts: Tensors) -> tuple[int, float]:
    """The number of examples at which numbers are quoted, and the labels' mean square there."""
    num_examples, dim = prompts["xs"].shape[1:]
    seen = min(2 * dim, num_examples - 1)
    return seen, _mean_square(prompts["ys"][:, seen])


def describe_nearest(
    spd: pd.DataFrame, prompts: Tensors, in_words: Callable[[str], str] = str
) -> str:
    """The answer in a sentence, at k = 2d examples: the nearest algorithms, and whether they are
    near. ``in_words`` is what a predictor's name is for a reader.
    """
    (seen, variance), dim = _reported(prompts), prompts["xs"].shape[-1]
    where = f"After {seen} examples" + (" (k = 2d)" if seen == 2 * dim else "")
    nearest = spd[spd["examples_seen"] == seen].nsmallest(3, "mean").reset_index(drop=True)
    shares = [
        f"{in_words(str(row.predictor))} ({_percent(row.mean / variance)} of the labels' mean "
        f"square [{_percent(row.low / variance)}, {_percent(row.high / variance)}])"
        for row in rows_of(nearest)
    ]
    if nearest["mean"][0] < NEAR * variance:
        return f"{where} the learner is nearest to {', then '.join(shares)}"
    return (
        f"{where} the learner is near none of the algorithms: nearest, but not near, is "
        + (shares[0])
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _mean_square(values: Tensor) -> float:
    return values.double().square().mean().item()


def _curves(
    values: Iterator[tuple[str, Tensor]], scale: float, comparison: ComparisonConfig, seed: int
) -> pd.DataFrame:
    """One curve a predictor, each of its values (B, n) made when its turn comes.

    ``scale`` is the size of what predicting 0 would give.
    """
    tables = [
        curve(value, {"predictor": name}, comparison.bootstrap, seed) for name, value in values
    ]
    table = pd.concat(tables, ignore_index=True)
    # What is not a number has diverged too.
    return table.assign(diverged=~np.less_equal(table["mean"], DIVERGED * scale))
