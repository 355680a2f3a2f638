"""The losses: one minimiser, bounded weights, and a memory that a resumed run takes up again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.training import CheckpointStore, Recipe, TrainingConfig, TrainingRun, train
from incontext_linear.training.loss import LikelihoodLoss, UniformLoss, build_loss

TASK = TaskConfig(dim=2, num_examples=5)
MODEL = ModelConfig(num_layers=1, num_heads=2, width=16)
TRAINING = TrainingConfig(
    num_steps=12,
    batch_size=8,
    learning_rate=2e-3,
    log_every=3,
    checkpoint_every=5,
    loss="likelihood",
)


def batches(num: int, seed: int = 0, num_examples: int = 5) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    scales = torch.arange(1.0, num_examples + 1).flip(0)
    return [scales * torch.randn(64, num_examples, generator=rng) for _ in range(num)]


def reference_means(errors: list[np.ndarray], momentum: float) -> np.ndarray:
    """Running means in NumPy: even at first, exponential once that forgets faster."""
    mean = np.zeros_like(errors[0])
    for step, error in enumerate(errors):
        kept = min(momentum, step / (step + 1))
        mean = kept * mean + (1 - kept) * error
    return mean


def test_running_means_are_those_of_a_loop_in_numpy():
    loss, errors = LikelihoodLoss(5, floor=0.01, momentum=0.8), []
    for ys in batches(12):
        loss(torch.zeros_like(ys), ys)
        errors.append(ys.double().square().mean(0).numpy())
    np.testing.assert_allclose(loss.means[:-1], reference_means(errors, 0.8), rtol=1e-5)
    label = reference_means([error.mean() * np.ones(1) for error in errors], 0.8)
    np.testing.assert_allclose(loss.means[-1:], label, rtol=1e-5)


def test_weights_are_the_inverse_errors_with_mean_one():
    loss = LikelihoodLoss(5, floor=0.01, momentum=0.9)
    for ys in batches(3):
        loss(torch.zeros_like(ys), ys)
    expected = 1 / (loss.means[:-1] + 0.01 * loss.means[-1])
    torch.testing.assert_close(loss.weights(), expected / expected.mean())
    assert loss.weights().mean().item() == pytest.approx(1.0)


def test_the_gradient_is_that_of_the_gaussian_likelihood_with_variances_fitted():
    """∇ ½ Σ_k log E(ŷ_k − y_k)² = Σ_k w_k ∇ ½ E(ŷ_k − y_k)², the weights up to their scale."""
    (ys,) = batches(1)
    loss = LikelihoodLoss(5, floor=1e-12, momentum=0.99)
    offset = torch.full((5,), 0.3, requires_grad=True)
    loss(offset.expand_as(ys), ys)  # the running means are then this batch's
    weighted, _ = loss(offset.expand_as(ys), ys)
    (ours,) = torch.autograd.grad(weighted, offset)
    profile = (offset.expand_as(ys) - ys).square().mean(0).log().sum()
    (likelihood,) = torch.autograd.grad(profile, offset)
    torch.testing.assert_close(ours / ours.norm(), likelihood / likelihood.norm())


@given(st.integers(0, 2**31), st.floats(1e-4, 0.5))
def test_both_losses_have_the_same_minimiser(seed, floor):
    """Where each prefix is free, both are least at its conditional mean, here the mean."""
    ys = torch.stack(batches(2, seed)).flatten(0, 1) + torch.arange(5.0)
    minima = []
    for loss in (UniformLoss(), LikelihoodLoss(5, floor, 0.9)):
        for _ in range(3):  # weights of any history
            loss(torch.randn(len(ys), 5), ys)
        free = ys.mean(0).clone().requires_grad_(True)
        value, _ = loss(free.expand_as(ys), ys)
        (slope,) = torch.autograd.grad(value, free)
        minima.append(slope.abs().max().item())
    assert max(minima) < 1e-4


@given(st.floats(1e-4, 0.5), st.floats(0.5, 0.999))
def test_weights_stay_bounded_where_a_prefix_is_solved_exactly(floor, momentum):
    loss = LikelihoodLoss(5, floor, momentum)
    for ys in batches(30):
        predictions = ys.clone()
        predictions[:, 0] = 0  # one prefix that cannot be solved, four that are
        loss(predictions, ys)
    weights = loss.weights()
    assert bool(weights.isfinite().all())
    largest = loss.means[:-1].max() / (floor * loss.means[-1])
    assert (weights.max() / weights.min()).item() <= 1.001 * (1 + largest).item()


def test_labels_of_zero_give_finite_weights():
    loss = LikelihoodLoss(3, 0.01, 0.9)
    zeros = torch.zeros(4, 3)
    loss(zeros, zeros)
    value, _ = loss(zeros, zeros)
    assert value.item() == 0
    assert bool(loss.weights().isfinite().all())


def test_what_is_reported_is_the_mean_squared_error_under_both():
    (ys,) = batches(1)
    for loss in (UniformLoss(), LikelihoodLoss(5, 0.01, 0.9)):
        loss(torch.zeros_like(ys), ys)
        assert loss(torch.ones_like(ys), ys)[1].item() == pytest.approx(
            (ys - 1).square().mean().item(), rel=1e-6
        )


def test_a_resumed_run_has_the_weights_of_an_unbroken_one_to_the_bit(tmp_path):
    unbroken = train(Recipe(TASK, MODEL, TRAINING, 0), "cpu")
    store, run = CheckpointStore(tmp_path), TrainingRun(Recipe(TASK, MODEL, TRAINING, 0), "cpu")
    run.start(None)
    for _ in range(7):
        run.advance()
    store.save(run.name, run.checkpoint())
    resumed = train(Recipe(TASK, MODEL, TRAINING, 0), "cpu", store)
    assert resumed.record == unbroken.record
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_two_losses_train_different_learners_and_are_named_apart():
    uniform = TRAINING.model_copy(update={"loss": "uniform"})
    first, second = (Recipe(TASK, MODEL, training, 0) for training in (TRAINING, uniform))
    assert first.fingerprint != second.fingerprint
    weights = [train(recipe, "cpu").model.read_in.weight for recipe in (first, second)]
    assert not torch.equal(*weights)


def test_the_parameters_choose_the_loss():
    assert isinstance(build_loss(TrainingConfig(), 5), UniformLoss)
    chosen = build_loss(TRAINING, 5)
    assert isinstance(chosen, LikelihoodLoss)
    assert (chosen.floor, chosen.momentum) == (TRAINING.loss_floor, TRAINING.loss_momentum)
