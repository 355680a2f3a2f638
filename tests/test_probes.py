import numpy as np
import pytest
import torch

from incontext_linear.config import ProbingConfig, TaskConfig
from incontext_linear.probes import TARGETS, ProbeSet, fit_probes, split_prompts
from incontext_linear.tasks import draw_prompts, generator

CONFIG = ProbingConfig(num_steps=300, batch_size=64, hidden_units=16, learning_rate=1e-2)


def planted_states():
    """Two layers, four tokens: the first target lies, rotated, in token 2 of layer 1, and nowhere else."""
    rng = generator(0, "planted")
    targets = torch.randn(2, 600, 3, generator=rng)
    hidden = torch.randn(2, 600, 4, 8, generator=rng)
    rotation = torch.linalg.qr(torch.randn(8, 3, generator=rng))[0]
    hidden[1, :, 2] = 3 * targets[0] @ rotation.T
    return hidden, targets


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_probes_find_a_planted_target_in_its_layer_and_position_only(kind):
    scores = fit_probes(*planted_states(), kind, CONFIG, seed=0)
    error = scores.squared_error.mean(-1)
    assert error[1, 0] < 0.1
    assert (error[0] > 0.8).all()
    assert error[1, 1] > 0.8
    assert scores.attention[1, 0].argmax() == 2
    assert scores.attention[1, 0, 2] > 0.4


def test_scores_come_from_prompts_that_fitting_never_saw():
    split = split_prompts(100, CONFIG, seed=0)
    together = torch.cat(split)
    assert sorted(together.tolist()) == list(range(100))
    assert len(split.test) == 25


def test_a_split_with_an_empty_part_is_refused():
    with pytest.raises(ValueError, match="3 probing prompts cannot be split"):
        split_prompts(3, CONFIG, seed=0)


def test_the_same_seed_gives_the_same_scores():
    hidden, targets = planted_states()
    first, second = (fit_probes(hidden, targets, "linear", CONFIG, seed=3) for _ in range(2))
    assert torch.equal(first.squared_error, second.squared_error)


def test_probes_trained_together_have_gradients_of_their_own_loss_only():
    hidden, targets = planted_states()
    probes = ProbeSet(2, 2, 4, 8, 3, None, generator(0, "probes"))
    losses = (probes(hidden) - targets).square().mean((-1, -2))
    losses[1, 0].backward()
    touched = probes.matrices[0].grad.flatten(2).norm(dim=-1) > 0
    assert touched.tolist() == [[False, False], [True, False]]


def test_targets_agree_with_numpy():
    prompts = draw_prompts(TaskConfig(dim=3, num_examples=7, noise_std=0.2), 5, seed=0)
    moment, weights = (TARGETS[name](prompts.xs, prompts.ys) for name in ("moment", "least_squares"))
    for b in range(5):
        xs, ys = prompts.xs[b].double().numpy(), prompts.ys[b].double().numpy()
        assert np.allclose(moment[b], xs.T @ ys, atol=1e-4)
        assert np.allclose(weights[b], np.linalg.lstsq(xs, ys, rcond=None)[0], atol=1e-5)
