"""How far apart two learners are: squared prediction difference and implicit linear weights.

Paper, section 4 (equations for SPD and ILWD). Both are curves over k, the number of examples seen;
both compare learners through their predictions alone, so a transformer and a textbook algorithm are
measured alike. Means over prompts come with bootstrap confidence intervals.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import BootstrapConfig
from incontext_linear.predictors import Predictor
from incontext_linear.statistics import mean_interval
from incontext_linear.tasks import Xs, Ys


class ImplicitWeights(NamedTuple):
    """The linear map nearest to what a predictor predicts, for every prompt and prefix."""

    weights: Float[Tensor, "batch example dim"]
    """ŵ (B, n, d): ``[:, k]`` after k examples."""
    r_squared: Float[Tensor, "batch example"]
    """Share of the predictions' mean square that ŵ explains, adjusted for its d fitted numbers; 1
    for a
    predictor that is linear in the query, NaN where it predicts 0 everywhere (as all do at k =
    0)."""


def squared_prediction_difference(
    first: Float[Tensor, "batch example"], second: Float[Tensor, "batch example"]
) -> Ys:
    """SPD before its mean over prompts: (A₁(D)(x') − A₂(D)(x'))², float64, (B, n)."""
    return (first.double() - second.double()).square()


def predict_queries(
    predictor: Predictor,
    xs: Xs,
    ys: Ys,
    queries: Float[Tensor, "batch query dim"],
) -> Float[Tensor, "batch example query"]:
    """Ask any predictor for predictions at the same fresh queries behind every prefix.

    Uses the predictor's own ``predict_queries`` where it has one. Otherwise it asks prompt by
    prompt
    through the one interface: a query takes the place of x_{k+1} in a copy of the prompt, n·Q
        copies.

    Args:
        predictor: what is asked.
        xs: (B, n, d).
        ys: (B, n).
        queries: (B, Q, d).

    Returns:
        (B, n, Q); entry [b, k, q] is the prediction at query q after the first k examples.
    """
    if hasattr(predictor, "predict_queries"):
        return predictor.predict_queries(xs, ys, queries)
    num_queries = queries.shape[1]
    predictions = []
    for k in range(xs.shape[1]):
        prefix_xs = xs[:, :k].repeat_interleave(num_queries, dim=0)
        prefix_ys = ys[:, : k + 1].repeat_interleave(num_queries, dim=0)
        asked = torch.cat((prefix_xs, queries.flatten(0, 1).unsqueeze(1)), dim=1)
        predictions.append(predictor(asked, prefix_ys)[:, k].unflatten(0, (-1, num_queries)))
    return torch.stack(predictions, dim=1)


def implicit_weights(
    predictor: Predictor,
    xs: Xs,
    ys: Ys,
    queries: Float[Tensor, "batch query dim"],
    prompts_at_once: int = 64,
) -> ImplicitWeights:
    """Regress a predictor's predictions at fresh queries on the queries (paper, section 4).

    ŵ_A(D) = argmin_w E_{x'} (A(D)(x') − wᵀx')², the mean taken over the Q queries; no intercept.

    Args:
        predictor: what is measured.
        xs: (B, n, d).
        ys: (B, n).
        queries: (B, Q, d), Q > d, drawn from the inputs' distribution.
        prompts_at_once: prompts in memory together.

    Returns:
        Float64 weights (B, n, d) and adjusted R² (B, n).

    Raises:
        ValueError: if there are no more queries than dimensions.
    """
    num_queries, dim = queries.shape[1:]
    if num_queries <= dim:
        raise ValueError(
            f"num_queries={num_queries} cannot determine weights of dim={dim}; allowed: more than "
            f"{dim}"
        )
    with torch.no_grad():
        chunks = zip(*(tensor.split(prompts_at_once) for tensor in (xs, ys, queries)), strict=True)
        predictions = torch.cat([predict_queries(predictor, *chunk) for chunk in chunks]).double()
    design = queries.double()
    weights = predictions @ torch.linalg.pinv(design).mT
    residual = (predictions - weights @ design.mT).square().sum(-1)
    total = predictions.square().sum(-1)
    adjusted = 1 - (residual / (num_queries - dim)) / (total / num_queries)
    return ImplicitWeights(weights, adjusted)


def implicit_weight_difference(
    first: Float[Tensor, "batch example dim"], second: Float[Tensor, "batch example dim"]
) -> Ys:
    """ILWD before its mean over prompts: ‖ŵ₁ − ŵ₂‖², float64, (B, n)."""
    return (first.double() - second.double()).square().sum(-1)


def curve(
    values: Float[Tensor, "batch example"],
    labels: dict[str, str],
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    """Turn per-prompt values (B, n) into a tidy curve over the number of examples seen.

    Returns:
        Columns: the labels, ``examples_seen``, and the mean and the median with their intervals
        over prompts, as `mean_interval` gives them; one row a prefix.
    """
    table = mean_interval(values.double().cpu().numpy(), bootstrap, seed)
    table.insert(0, "examples_seen", np.arange(len(table)))
    for position, (name, label) in enumerate(labels.items()):
        table.insert(position, name, label)
    return table
