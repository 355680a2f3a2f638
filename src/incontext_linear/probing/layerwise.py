"""Which algorithm's progress does depth resemble? Predictions read out of every layer, and m steps.

A linear read-out (ridge regression) is fitted on each layer's residual stream at the x-tokens, to
the labels, one for all prefixes. Its predictions on other prompts are what the layer already knows;
their squared difference to the predictions after m steps of an iterative algorithm says which m, if
any, the layer resembles.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import BootstrapConfig
from incontext_linear.learner.saved import Learner
from incontext_linear.predictors import (
    GradientDescent,
    IterativeNewton,
    OrdinaryLeastSquares,
    Predictor,
)
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.fitting import Split
from incontext_linear.probing.selection import Selection
from incontext_linear.statistics import crossed_means, interval
from incontext_linear.tasks import Xs, Ys

# Ridge penalties tried, as shares of the mean eigenvalue of the states' covariance.
PENALTIES = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def read_predictions(
    hidden: Float[Tensor, "layer token batch width"],
    ys: Ys,
    split: Split,
    places: Sequence[int] | None = None,
) -> Float[Tensor, "layer test example"]:
    """Fit a linear read-out of the label on every layer, and read predictions out of the test
    prompts.

    States are centred at each position; with no example seen there is nothing to fit, so the first
    x-token is left out of the fit. The penalty is the one with the lowest error on the validation
    prompts, layer by layer.

    Args:
        hidden: residual streams (L, T, B, H).
        ys: labels (B, n).
        split: prompts to fit on, to choose the penalty on, and to predict.
        places: the n tokens that predict; None: the paper's x-tokens.

    Returns:
        Predictions (L, test prompts, n); ``[..., k]`` has seen k examples.
    """
    parts = [part.to(hidden.device) for part in split]
    labels = [ys[part].T for part in parts]  # (n, prompts)
    asked = slice(0, None, 2) if places is None else list(places)
    return torch.stack([_read_layer(states[asked], *parts, *labels[:2]) for states in hidden])


def _read_layer(
    states: Float[Tensor, "example batch width"],
    train: Tensor,
    validation: Tensor,
    test: Tensor,
    train_labels: Float[Tensor, "example train"],
    validation_labels: Float[Tensor, "example validation"],
) -> Float[Tensor, "test example"]:
    """One layer's read-out, in float64: in float32 the least penalties lie below the rounding."""
    dtype, states = states.dtype, states.double()
    center = states[:, train].mean(1, keepdim=True)
    fitted = (states[1:, train] - center[1:]).flatten(0, 1)
    values, vectors = torch.linalg.eigh(fitted.mT @ fitted)
    rotated = vectors.mT @ (fitted.mT @ train_labels[1:].flatten().double())
    size = values.mean()
    solutions = [vectors @ (rotated / (values + share * size)) for share in PENALTIES]
    weights = torch.stack(solutions, dim=-1)  # (H, penalties)
    tried = (states[1:, validation] - center[1:]) @ weights
    missed = (tried - validation_labels[1:].unsqueeze(-1)).square().mean((0, 1))
    return ((states[:, test] - center) @ weights[:, missed.argmin()]).mT.to(dtype)


@torch.no_grad()
def measure_progress(
    hidden: Float[Tensor, "layer token batch width"],
    learner: Learner,
    selection: Selection,
    probing: ProbingConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions read out of every layer, beside m steps of gradient descent and of iterative
    Newton, least squares, and the learner's own: as `progress_tables`.
    """
    test, steps = selection.split.test.to(selection.device), probing.layerwise
    read = read_predictions(hidden, selection.ys, selection.split, selection.places)
    step_size = probing.gradient_step_size
    algorithms = {
        "gradient_descent": {m: GradientDescent(step_size, m) for m in steps.gradient_steps},
        "iterative_newton": {m: IterativeNewton(m) for m in steps.newton_steps},
        "least_squares": {0: OrdinaryLeastSquares()},
        "learner": {0: selection.place(learner)},
    }
    prompts = selection.xs[test], selection.ys[test]
    places = selection.layers, selection.context_lengths
    return progress_tables(read, algorithms, *prompts, *places, probing.bootstrap, seed)


def progress_tables(
    read: Float[Tensor, "layer batch example"],
    algorithms: Mapping[str, Mapping[int, Predictor]],
    xs: Xs,
    ys: Ys,
    layers: list[int],
    context_lengths: list[int],
    bootstrap: BootstrapConfig,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """SPD of each layer's predictions to each algorithm after m steps, and the nearest step.

    Args:
        read: predictions (L, B, n) read out of the layers.
        algorithms: name → {number of steps: predictor}; a predictor without steps stands under 0.
        xs: (B, n, d).
        ys: (B, n).
        layers: the numbers of the L layers.
        context_lengths: numbers of examples seen at which the predictions are compared.
        bootstrap: confidence and number of resamples.
        seed: of the bootstrap.

    Returns:
        SPDs, shares of the labels' variance: ``algorithm``, ``examples_seen``, ``layer``,
        ``steps``, ``mean``, ``low``, ``high``. And the ``nearest_steps`` of each layer and
        algorithm with several, ``low``, ``high``, ``mean``.
    """
    variance = ys.double().square().mean().item()
    spd, nearest = [], []
    for name, steps in algorithms.items():
        numbers = np.array(list(steps))
        predictions = torch.stack([predictor(xs, ys) for predictor in steps.values()])
        for seen in context_lengths:
            missed = read[:, None, :, seen].double() - predictions[None, :, :, seen].double()
            share = (missed.square() / variance).cpu().numpy()  # (L, steps, B)
            values = np.moveaxis(share, -1, 0).reshape(1, share.shape[-1], -1)
            resampled = crossed_means(values, bootstrap.num_resamples, seed)
            low, high = interval(resampled, bootstrap.confidence)
            keys = pd.MultiIndex.from_product(
                [[name], [seen], layers, numbers],
                names=["algorithm", "examples_seen", "layer", "steps"],
            ).to_frame(index=False)
            table = keys.assign(mean=values.mean((0, 1)), low=low, high=high)
            spd.append(table)
            if len(numbers) > 1:
                nearest.append(_nearest(table, resampled, numbers, bootstrap.confidence))
    return pd.concat(spd, ignore_index=True), pd.concat(nearest, ignore_index=True)


def _nearest(
    table: pd.DataFrame, resampled: np.ndarray, numbers: np.ndarray, confidence: float
) -> pd.DataFrame:
    """The number of steps with the least SPD, a row a layer, with an interval over the
    resamples.
    """
    best = table.loc[table.groupby("layer", sort=False)["mean"].idxmin()].reset_index(drop=True)
    chosen = numbers[resampled.reshape(len(resampled), -1, len(numbers)).argmin(-1)]
    low, high = interval(chosen.astype(float), confidence, discrete=True)
    columns = ["algorithm", "examples_seen", "layer", "steps", "mean"]
    return best[columns].rename(columns={"steps": "nearest_steps"}).assign(low=low, high=high)
