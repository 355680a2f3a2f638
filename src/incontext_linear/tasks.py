"""What is learned in context: linear-regression prompts, drawn from priors over w, x and noise.

Paper, section 2: w ~ p(w), x ~ p(x), y = wᵀx + ε with ε ~ N(0, σ²). A batch is a pure function of
(task, seed, step), so any training step, and any saved set of prompts, can be drawn again.
"""

import functools
import zlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import Mixture, TaskConfig

# Shapes that recur in signatures, of B prompts of n examples in d dimensions. Within one call the
# names of the axes mean the same numbers, here and beside these aliases.
Xs = Float[Tensor, "batch example dim"]
"""Inputs (B, n, d)."""
Ys = Float[Tensor, "batch example"]
"""Labels, or predictions of them, (B, n)."""


class Prompts(NamedTuple):
    """A batch of prompts; ``ws`` holds the weight vectors that made them."""

    xs: Xs
    ys: Ys
    ws: Float[Tensor, "batch dim"]

    def to(self, *args, **kwargs) -> "Prompts":
        """Move or cast all three tensors, as `torch.Tensor.to` does."""
        return Prompts(*(tensor.to(*args, **kwargs) for tensor in self))


def generator(
    seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A random generator that depends on (seed, stream, step), and on nothing else.

    The three are hashed together (NumPy's SeedSequence), so that neighbouring steps, the same step
    under neighbouring seeds, and streams of different names ("training", "evaluation") share no
    randomness. CPU and CUDA generators give different numbers for the same triple.
    """
    entropy = [seed, zlib.crc32(stream.encode()), step]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def draw_mixture(
    mixture: Mixture, shape: tuple[int, ...], rng: torch.Generator
) -> Float[Tensor, "... dim"]:
    """Draw vectors of ``shape`` (..., dim), each from one component of the mixture.

    Components are equally likely; all coordinates of a vector come from the same component.
    """
    draws = []
    for component in mixture:
        draw = torch.randn if component.kind == "normal" else torch.rand
        noise = draw(shape, generator=rng, device=rng.device)
        draws.append(noise.mul_(component.scale).add_(component.shift))
    if len(draws) == 1:
        return draws[0]
    choice = torch.randint(len(draws), (*shape[:-1], 1), generator=rng, device=rng.device)
    return torch.stack(draws).gather(0, choice.expand(shape).unsqueeze(0)).squeeze(0)


def task_pool(task: TaskConfig, device: torch.device | str = "cpu") -> Float[Tensor, "pool dim"]:
    """The finite pool of weight vectors that the task draws w from (Raventós et al. 2023).

    Drawn on the CPU from the prior over w and the pool's size alone, so that training, evaluation
    and the `DiscreteMMSE` predictor all see the same pool on every device and under every seed.

    Raises:
        ValueError: if the task has no pool.
    """
    if task.pool_size is None:
        raise ValueError(
            "task.pool_size is None: this task draws a fresh w for every prompt and has no pool"
        )
    return _pool(task.weights, task.pool_size, task.dim, str(device))


@functools.lru_cache(maxsize=8)
def _pool(weights: Mixture, size: int, dim: int, device: str) -> Float[Tensor, "pool dim"]:
    # Made once: a training step on a GPU would wait for the CPU at every batch.
    rng = generator(0, "task pool", size)
    return draw_mixture(weights, (size, dim), rng).to(device)


def draw_prompts(
    task: TaskConfig,
    batch_size: int,
    seed: int,
    step: int = 0,
    stream: str = "training",
    device: torch.device | str = "cpu",
) -> Prompts:
    """Draw the batch of prompts that belongs to (task, batch_size, seed, step, stream).

    Args:
        task: priors, sizes and noise.
        batch_size: number of prompts B.
        seed: the run's seed.
        step: which batch of the stream.
        stream: what the prompts are for; streams of different names share no randomness.
        device: where the prompts are drawn; no host-side tensor is made for a CUDA device.

    Returns:
        Float32 prompts with xs (B, n, d), ys (B, n), ws (B, d).
    """
    rng = generator(seed, stream, step, device)
    if task.pool_size is None:
        ws = draw_mixture(task.weights, (batch_size, task.dim), rng)
    else:
        pool = task_pool(task, device)
        ws = pool[torch.randint(len(pool), (batch_size,), generator=rng, device=rng.device)]
    xs = draw_mixture(task.inputs, (batch_size, task.num_examples, task.dim), rng)
    ys = (xs @ ws.unsqueeze(-1)).squeeze(-1)
    if task.noise_std > 0:
        ys += task.noise_std * torch.randn(ys.shape, generator=rng, device=rng.device)
    return Prompts(xs, ys, ws)
