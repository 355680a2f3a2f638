"""CPU milliseconds a step and learner, alone and stacked: ``python -m benchmarks.stacking``.

Learners are trained for a few steps of Muon, one alone and several in one stack
(`training.stacked`), on one thread. The time is the process's own, so other work on the machine
slows it less than a clock would show, though it does: cores share caches.
"""

import argparse
import time
from typing import NamedTuple

import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.training import Recipe, train, train_stacked
from incontext_linear.training.config import TrainingConfig

WARM_UP = 2
"""Steps whose time is taken off: what the first ones allocate is no step's cost."""


class Shape(NamedTuple):
    """What is trained: sizes of the task, the learner and the batch."""

    dim: int
    num_examples: int
    num_layers: int
    num_heads: int
    width: int
    batch_size: int


SHAPES = (Shape(2, 8, 3, 2, 16, 32), Shape(2, 8, 3, 2, 32, 32))


def step_time(shape: Shape, stack: int, num_steps: int) -> float:
    """CPU milliseconds a step and learner of ``stack`` learners, which differ in their seed."""

    def seconds(steps: int) -> float:
        training = TrainingConfig(
            num_steps=steps, batch_size=shape.batch_size, optimizer="muon", loss="likelihood"
        )
        task = TaskConfig(dim=shape.dim, num_examples=shape.num_examples)
        model = ModelConfig(
            num_layers=shape.num_layers, num_heads=shape.num_heads, width=shape.width
        )
        recipes = [Recipe(task, model, training, seed) for seed in range(stack)]
        start = time.process_time()
        if stack == 1:
            train(recipes[0], "cpu")
        else:
            train_stacked(recipes, "cpu")
        return time.process_time() - start

    before = seconds(WARM_UP)
    return 1e3 * (seconds(WARM_UP + num_steps) - before) / num_steps / stack


def main() -> None:
    """Print a row of a Markdown table for every shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stacks", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = " | ".join(f"S = {stack}" for stack in arguments.stacks)
    print(f"| d, n, layers, heads, H, batch | {names} |")
    for shape in SHAPES:
        times = [f"{step_time(shape, stack, arguments.steps):.1f}" for stack in arguments.stacks]
        print(f"| {', '.join(map(str, shape))} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()
