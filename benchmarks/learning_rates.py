"""Which learning rate suits each point of a sweep's axis: python -m benchmarks.learning_rates

    python -m benchmarks.learning_rates --sweep width_small
    python -m benchmarks.learning_rates --env paper --sweep width_narrow --steps 1000

The learner of every point is trained at several rates, on seeds that the sweep does not use, all of
a point in one stack (`training.stacked`). Chosen is the rate with the least loss at the end, on
average over the seeds: the list is what the sweep's ``follow`` takes.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from kedro.framework.startup import bootstrap_project

from incontext_linear.learner import Learner
from incontext_linear.sweeps.project import Project
from incontext_linear.training import Recipe, train_stacked

PROJECT = Path(__file__).parents[1]
SEEDS = (100, 101)
RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)


def last_losses(
    recipe: Recipe, rates: Sequence[float], num_steps: int | None, device: str
) -> dict[float, float]:
    """Rate -> mean loss over the last reports and the seeds; infinite where a learner diverged."""
    recipes = []
    for rate in rates:
        changes = {"learning_rate": rate} | ({"num_steps": num_steps} if num_steps else {})
        training = recipe.training.model_copy(update=changes)
        recipes += [replace(recipe, training=training, seed=seed) for seed in SEEDS]
    found: dict[float, list[float]] = {rate: [] for rate in rates}
    for own, one in zip(recipes, train_stacked(recipes, device), strict=True):
        reports = one.record["history"][-3:] if isinstance(one, Learner) else []
        found[own.training.learning_rate] += [row["loss"] for row in reports] or [float("inf")]
    return {rate: statistics.fmean(losses) for rate, losses in found.items()}


def main() -> None:
    """Print the losses of every point and rate, and the chosen rates in the points' order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="base")
    parser.add_argument("--sweep", default="width_small")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--steps", type=int, help="in place of the sweep's own")
    arguments = parser.parse_args()
    bootstrap_project(PROJECT)
    project = Project(PROJECT, arguments.env)
    variants = project.variants(arguments.sweep, project.sweep(arguments.sweep))
    points = {str(variant.axes): variant.parameters for variant in variants}
    chosen = []
    for point, parameters in points.items():
        settings = arguments.rates, arguments.steps, parameters.device
        losses = last_losses(parameters.recipe, *settings)
        torch.compiler.reset()  # what a point compiled is no use to the next, and counts as a limit
        chosen.append(min(losses, key=lambda rate: losses[rate]))
        told = ", ".join(f"{rate:g}: {loss:.4g}" for rate, loss in losses.items())
        print(f"{point}: {told}", flush=True)
    print("rates:", chosen)


if __name__ == "__main__":
    main()
