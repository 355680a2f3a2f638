"""The same methods on a network whose algorithm is known: what they find, and what they miss.

Gradient descent by construction (paper, Theorem 1; `incontext_linear.construction`), a layer a
step. Linear probes, interventions and read-outs are the learner's own functions, with another
selection: all layers of the constructed network, and as many prompts as it can be tried on.
"""

import logging
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from incontext_linear.config import TaskConfig
from incontext_linear.construction import gradient_descent
from incontext_linear.construction.config import FLOAT32
from incontext_linear.learner.saved import Learner
from incontext_linear.predictors import GradientDescent
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.controls import fit_learner
from incontext_linear.probing.layerwise import measure_progress
from incontext_linear.probing.selection import Selection, select
from incontext_linear.probing.selectivity import score_table

logger = logging.getLogger(__name__)

WRONG_NETWORK = 0.01
"""A constructed network that misses gradient descent by this share of its predictions tells
nothing.
"""


def construct_learner(task: TaskConfig, probing: ProbingConfig) -> Learner:
    """Gradient descent by construction, a layer a step."""
    network = gradient_descent(
        task.dim,
        task.num_examples,
        step_size=probing.gradient_step_size,
        num_steps=probing.calibration.num_steps,
        # No division here, so a small padding does, beside which probes in float32 still see the
        # other rows.
        constants=FLOAT32.model_copy(update={"padding": 1e4}),
        dtype=torch.float32,
    )
    return Learner(network, task)


def select_for_calibration(
    constructed: Learner,
    prompts: Mapping[str, Tensor],
    probing: ProbingConfig,
    device: str,
    seed: int,
) -> Selection:
    """What is probed of the constructed network: as `select`, but all of its layers.

    Warns where the network does not do what it is built for: its products are exact for numbers of
    moderate size only, and descent with too long a step grows beyond it.
    """
    selection = select(constructed, prompts, _calibrating(probing), device, seed)
    missed = _missed(constructed, selection, probing)
    if not missed < WRONG_NETWORK:
        logger.warning(
            "the constructed network misses %d steps of gradient descent at step size %g by %.2g "
            "of its predictions on these prompts: the calibration tells nothing; allowed: a "
            "smaller probing.gradient_step_size, or inputs and weights of size about 1",
            probing.calibration.num_steps,
            probing.gradient_step_size,
            missed,
        )
    return selection


def fit_calibration(
    hidden: Tensor, constructed: Learner, selection: Selection, probing: ProbingConfig, seed: int
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Linear probes on every layer of the constructed network: errors on the test prompts, and
    read-outs, as `fit_learner` gives them.
    """
    errors, _, readouts = fit_learner(hidden, constructed, selection, _calibrating(probing), seed)
    return errors.assign(source="constructed_learner"), readouts


def score_calibration(
    errors: pd.DataFrame, constructed: Learner, probing: ProbingConfig, seed: int
) -> pd.DataFrame:
    """Held-out error of every probe, beside the ``line`` of the algorithm that its layer carries
    out.
    """
    lines = ["embedding", *(layer.line for layer in constructed.model.layers)]
    scores = score_table(errors, probing, seed)
    return scores.assign(line=[lines[layer] for layer in scores["layer"]])


def nearest_calibration_steps(
    hidden: Tensor, constructed: Learner, selection: Selection, probing: ProbingConfig, seed: int
) -> pd.DataFrame:
    """The step that each layer of the constructed network seems to have reached, where the truth is
    known.
    """
    return measure_progress(hidden, constructed, selection, probing, seed)[1]


def _calibrating(probing: ProbingConfig) -> ProbingConfig:
    """All layers, and linear probes alone, which interventions are based on."""
    most = probing.calibration.num_prompts
    fit = probing.fit.model_copy(update={"hidden_units": (), "num_seeds": 1})
    changes = {"layers": None, "num_prompts": min(probing.num_prompts or most, most), "fit": fit}
    return probing.model_copy(update=changes)


@torch.no_grad()
def _missed(constructed: Learner, selection: Selection, probing: ProbingConfig) -> float:
    """Relative root mean square of the difference to gradient descent's predictions."""
    descent = GradientDescent(probing.gradient_step_size, probing.calibration.num_steps)
    reference = descent(selection.xs, selection.ys)
    difference = selection.place(constructed)(selection.xs, selection.ys) - reference
    return (difference.square().mean() / reference.square().mean()).sqrt().item()
