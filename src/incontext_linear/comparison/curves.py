"""Learner and textbook algorithms on the same prompts: curves over the number of examples seen.

Paper, section 4, Figures 1 and 2: SPD and ILWD to each algorithm, everyone's squared error, and how
linear the learner is in the query. Tables and tensors by name in, tidy tables out.
"""

from collections.abc import Mapping

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
from incontext_linear.tables import LEARNER, predictions_by_name, tidy_predictions

Tensors = Mapping[str, Tensor]

DIVERGED = 1e4
"""A difference of this many times what predicting 0 gives is no answer to the prompt any more."""
NEAR = 0.1
"""Share of the labels' variance within which a prediction is near another."""


def predict_with_learner(learner: Learner, prompts: Tensors, device: str) -> pd.DataFrame:
    """The learner's predictions, float32, in the same tidy form as the baselines'."""
    where = resolve_device(device)
    model = on_device(learner.model, where)
    batches = zip(prompts["xs"].split(256), prompts["ys"].split(256), strict=True)
    with torch.no_grad():
        predictions = torch.cat([model(xs.to(where), ys.to(where)).cpu() for xs, ys in batches])
    return tidy_predictions(LEARNER, predictions)


def estimate_learner_weights(
    learner: Learner, prompts: Tensors, queries: Tensors, device: str
) -> dict[str, Tensor]:
    """The learner's implicit weights (B', n, d) and their R² (B', n)."""
    where = resolve_device(device)
    asked = queries["queries"].to(where)
    xs, ys = (prompts[name][: len(asked)].to(where) for name in ("xs", "ys"))
    model = on_device(learner.model, where)
    estimate = implicit_weights(model, xs, ys, asked, prompts_at_once=16)
    return {name: tensor.cpu() for name, tensor in estimate._asdict().items()}


def predict_with_baselines(
    prompts: Tensors, baselines: Baselines, task: TaskConfig
) -> pd.DataFrame:
    """Predictions of all baselines, in float64; columns predictor, prompt, examples_seen,
    prediction.
    """
    xs, ys = prompts["xs"].double(), prompts["ys"].double()
    predictors = baselines.build(task).items()
    tables = [tidy_predictions(name, predictor(xs, ys)) for name, predictor in predictors]
    return pd.concat(tables, ignore_index=True)


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
    learner_predictions: pd.DataFrame,
    baseline_predictions: pd.DataFrame,
    prompts: Tensors,
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """SPD(learner, baseline) against examples seen, with intervals over prompts.

    Returns:
        ``predictor``, ``examples_seen``, ``mean``, ``low``, ``high``, and ``diverged``: whether the
        baseline is no answer to the prompts at this number of examples.
    """
    learner = predictions_by_name(learner_predictions)[LEARNER]
    differences = {
        name: squared_prediction_difference(learner, other)
        for name, other in predictions_by_name(baseline_predictions).items()
    }
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
    differences = {
        name: implicit_weight_difference(learner_weights["weights"], baseline_weights[name])
        for name in baselines.active  # the file's own order is not kept by safetensors
    }
    scale = prompts["ws"].double().square().sum(-1).mean().item()
    return _curves(differences, scale, comparison, seed)


def risk_curves(
    learner_predictions: pd.DataFrame,
    baseline_predictions: pd.DataFrame,
    prompts: Tensors,
    comparison: ComparisonConfig,
    seed: int,
) -> pd.DataFrame:
    """Squared error against the labels, learner and baselines alike, as `spd_curves`."""
    predictions = predictions_by_name(learner_predictions)
    predictions |= predictions_by_name(baseline_predictions)
    errors = {
        name: squared_prediction_difference(values, prompts["ys"])
        for name, values in predictions.items()
    }
    return _curves(errors, _mean_square(prompts["ys"]), comparison, seed)


def linearity_curve(
    learner_weights: Tensors, comparison: ComparisonConfig, seed: int
) -> pd.DataFrame:
    """How linear the learner is in the query: R² of its implicit weights, against examples seen."""
    labels = {"predictor": LEARNER}
    return curve(learner_weights["r_squared"], labels, comparison.bootstrap, seed)


def describe_nearest(spd: pd.DataFrame, prompts: Tensors) -> str:
    """The answer in a sentence, at k = 2d examples: the nearest algorithms, and whether they are
    near.
    """
    num_examples, dim = prompts["xs"].shape[1:]
    seen = min(2 * dim, num_examples - 1)
    where = f"After {seen} examples" + (" (k = 2d)" if seen == 2 * dim else "")
    nearest = spd[spd["examples_seen"] == seen].nsmallest(3, "mean").reset_index(drop=True)
    variance = _mean_square(prompts["ys"][:, seen])
    shares = [
        f"{row.predictor} ({_percent(row.mean / variance)} of the labels' mean square"
        f" [{_percent(row.low / variance)}, {_percent(row.high / variance)}])"
        for row in nearest.itertuples(index=False)
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
    values: Mapping[str, Tensor], scale: float, comparison: ComparisonConfig, seed: int
) -> pd.DataFrame:
    """One curve a predictor; ``scale`` is the size of what predicting 0 would give."""
    tables = [
        curve(value, {"predictor": name}, comparison.bootstrap, seed)
        for name, value in values.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    # What is not a number has diverged too.
    return table.assign(diverged=~np.less_equal(table["mean"], DIVERGED * scale))
