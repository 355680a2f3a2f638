import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from incontext_linear.config import TaskConfig
from incontext_linear.tasks import draw_mixture, draw_prompts, generator, task_pool


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(st.integers(0, 2**32), st.integers(0, 2**40))
def test_a_batch_is_a_pure_function_of_seed_and_step(seed, step):
    task = TaskConfig(dim=3, num_examples=4, noise_std=0.5)
    assert equal(draw_prompts(task, 5, seed, step), draw_prompts(task, 5, seed, step))


def test_seeds_steps_and_streams_share_no_randomness():
    task = TaskConfig(dim=3, num_examples=4)
    batches = [
        draw_prompts(task, 5, seed, step, stream)
        for seed in (0, 1)
        for step in (0, 1)
        for stream in ("training", "evaluation")
    ]
    values = torch.cat([batch.xs.flatten() for batch in batches])
    assert len(values.unique()) == len(values)


def test_labels_are_the_linear_map_plus_noise_of_the_given_size():
    clean = draw_prompts(TaskConfig(dim=3, num_examples=50), 200, 0)
    assert torch.allclose(clean.ys, torch.einsum("bnd,bd->bn", clean.xs, clean.ws), atol=1e-5)
    noisy = draw_prompts(TaskConfig(dim=3, num_examples=50, noise_std=0.5), 200, 0)
    residual = noisy.ys - torch.einsum("bnd,bd->bn", noisy.xs, noisy.ws)
    assert residual.std().item() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("normal*2+1", 1.0, 2.0),
        ("uniform*4+-1", 1.0, 4 / 12**0.5),
        ("normal*1+-3,normal*1+3", 0.0, 10**0.5),
        ("normal*0+1", 1.0, 0.0),
    ],
)
def test_distributions_have_the_moments_of_their_strings(text, mean, std):
    draws = draw_mixture(TaskConfig(weights=text).weights, (40_000, 2), generator(0, "moments"))
    assert draws.mean().item() == pytest.approx(mean, abs=0.05)
    assert draws.std().item() == pytest.approx(std, abs=0.05)


def test_all_coordinates_of_a_vector_come_from_one_component():
    mixture = TaskConfig(weights="normal*0+-1,normal*0+1").weights
    draws = draw_mixture(mixture, (100, 5), generator(0, "mixture"))
    assert set(draws.sum(-1).tolist()) == {-5.0, 5.0}


def test_a_pool_limits_the_weights_and_is_the_same_for_every_seed():
    task = TaskConfig(dim=2, num_examples=3, pool_size=4)
    pool = {tuple(w) for w in task_pool(task).tolist()}
    for seed in (0, 1):
        assert {tuple(w) for w in draw_prompts(task, 100, seed).ws.tolist()} == pool


def test_a_task_without_a_pool_says_so():
    with pytest.raises(ValueError, match="pool_size is None"):
        task_pool(TaskConfig())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_drawn_there_and_repeat():
    task = TaskConfig(dim=3, num_examples=4, noise_std=0.5)
    first, second = (draw_prompts(task, 5, 0, 7, device="cuda") for _ in range(2))
    assert first.xs.is_cuda
    assert equal(first, second)


def test_a_pool_is_drawn_once_for_all_batches():
    task = TaskConfig(dim=3, pool_size=7)
    assert task_pool(task).data_ptr() == task_pool(task.model_copy()).data_ptr()
