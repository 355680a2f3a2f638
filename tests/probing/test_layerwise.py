import numpy as np
import pytest
import torch

from incontext_linear.config import TaskConfig
from incontext_linear.predictors import BayesPosteriorMean, GradientDescent, OrdinaryLeastSquares
from incontext_linear.probing import progress_tables, read_predictions, split_prompts
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.tasks import draw_prompts, generator

CONFIG = ProbingConfig(num_resamples=100)
STEPS = {m: GradientDescent(0.03, m) for m in (1, 3, 9)}


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(TaskConfig(dim=2, num_examples=6, noise_std=0.3), 400, seed=0)


def states_that_hold(prompts, predictions):
    """One layer a set of predictions: the predictions, rotated with noise, at the x-tokens."""
    rng = generator(0, "states")
    hidden = torch.randn(len(predictions), 11, 400, 6, generator=rng)
    direction = torch.randn(6, generator=rng)
    rest = torch.eye(6) - torch.outer(direction, direction) / direction.square().sum()
    hidden = hidden @ rest
    for layer, held in enumerate(predictions):
        hidden[layer, ::2] += held.T[..., None] * direction
    return hidden


def test_the_read_out_recovers_a_prediction_that_a_layer_holds(prompts):
    best = BayesPosteriorMean(noise_std=0.3, prior_std=1.0)(prompts.xs, prompts.ys)
    split = split_prompts(400, CONFIG, 0)
    read = read_predictions(states_that_hold(prompts, [best]), prompts.ys, split)
    share = (read[0] - best[split.test]).square().mean() / best.var()
    assert share < 0.05


def test_the_nearest_step_is_the_one_whose_predictions_a_layer_holds(prompts):
    held = [STEPS[m](prompts.xs, prompts.ys) for m in (1, 9, 3)]
    algorithms = {"gradient_descent": STEPS, "least_squares": {0: OrdinaryLeastSquares()}}
    read = torch.stack(held)
    spd, nearest = progress_tables(
        read, algorithms, prompts.xs, prompts.ys, [0, 1, 2], [4, 5], CONFIG, seed=0
    )
    assert nearest.query("examples_seen == 5")["nearest_steps"].tolist() == [1, 9, 3]
    assert (nearest["mean"] < 1e-12).all()
    assert (nearest["low"] == nearest["nearest_steps"]).all()
    assert len(spd) == 2 * (3 * 3 + 3)
    share = (held[0] - held[1])[:, 5].double().square().mean() / prompts.ys.double().square().mean()
    row = spd.query(
        "algorithm == 'gradient_descent' and examples_seen == 5 and layer == 0 and steps == 9"
    )
    np.testing.assert_allclose(row["mean"], share)
