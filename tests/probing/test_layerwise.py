import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.predictors import BayesPosteriorMean, GradientDescent, OrdinaryLeastSquares
from incontext_linear.probing import progress_tables, read_predictions, split_prompts
from incontext_linear.probing.config import FitConfig
from incontext_linear.probing.layerwise import PENALTIES
from incontext_linear.tasks import draw_prompts, generator

BOOTSTRAP = BootstrapConfig(num_resamples=100)
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
    split = split_prompts(400, FitConfig(), 0)
    read = read_predictions(states_that_hold(prompts, [best]), prompts.ys, split)
    share = (read[0] - best[split.test]).square().mean() / best.var()
    assert share < 0.05


def test_the_nearest_step_is_the_one_whose_predictions_a_layer_holds(prompts):
    held = [STEPS[m](prompts.xs, prompts.ys) for m in (1, 9, 3)]
    algorithms = {"gradient_descent": STEPS, "least_squares": {0: OrdinaryLeastSquares()}}
    read = torch.stack(held)
    spd, nearest = progress_tables(
        read, algorithms, prompts.xs, prompts.ys, [0, 1, 2], [4, 5], BOOTSTRAP, seed=0
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


def test_the_least_penalty_fits_what_float32_would_round_away(prompts):
    """A layer that holds the labels beside a coordinate that varies much more, rotated: ridge in
    float64, as scikit-learn does it, is the reference.
    """
    rng = generator(1, "states")
    held = torch.randn(11, 400, 3, generator=rng).double()
    held[::2, :, 0] = 0.1 * prompts.ys.T
    held[:, :, 1] *= 300
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=rng))[0].double()
    hidden = (held @ rotation).float().unsqueeze(0)
    split = split_prompts(400, FitConfig(), 0)
    read = read_predictions(hidden, prompts.ys, split)[0].double()
    states = hidden[0, ::2].double()
    center = states[:, split.train].mean(1, keepdim=True)
    fitted = (states[1:, split.train] - center[1:]).flatten(0, 1).numpy()
    labels = prompts.ys.T[1:, split.train].flatten().double().numpy()
    size = np.linalg.eigvalsh(fitted.T @ fitted).mean()

    def predictions(share):
        ridge = Ridge(alpha=share * size, fit_intercept=False).fit(fitted, labels)
        return (states - center).numpy() @ ridge.coef_

    missed = [
        np.square(
            predictions(share)[1:, split.validation] - prompts.ys.T[1:, split.validation].numpy()
        ).mean()
        for share in PENALTIES
    ]
    expected = predictions(PENALTIES[int(np.argmin(missed))])[:, split.test].T
    np.testing.assert_allclose(read.numpy(), expected, rtol=1e-4, atol=1e-5)
