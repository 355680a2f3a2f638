"""Which learning rate suits each width of ``width_small``: python -m benchmarks.learning_rates

Every width is trained at several rates, on seeds that the sweep does not use, all of a width in one
stack (`training.stacked`). Chosen is the rate with the least loss at the end, on average over the
seeds.
"""

import argparse
import statistics

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import Learner
from incontext_linear.training import Recipe, train_stacked
from incontext_linear.training.config import TrainingConfig

SEEDS = (100, 101)
RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)


def last_losses(width: int, num_steps: int) -> dict[float, float]:
    """Rate -> mean loss over the last reports and the seeds; infinite where a learner diverged."""
    task = TaskConfig(dim=2, num_examples=8)
    model = ModelConfig(num_layers=2, num_heads=2, width=width)
    recipes = [
        Recipe(
            task,
            model,
            TrainingConfig(
                num_steps=num_steps,
                batch_size=32,
                learning_rate=rate,
                optimizer="muon",
                loss="likelihood",
            ),
            seed,
        )
        for rate in RATES
        for seed in SEEDS
    ]
    ended = train_stacked(recipes, "cpu")
    found: dict[float, list[float]] = {rate: [] for rate in RATES}
    for recipe, one in zip(recipes, ended, strict=True):
        history = (
            one.record["history"][-3:] if isinstance(one, Learner) else [{"loss": float("inf")}]
        )
        found[recipe.training.learning_rate] += [row["loss"] for row in history]
    return {rate: statistics.fmean(losses) for rate, losses in found.items()}


def main() -> None:
    """Print the losses of every width and rate, and the chosen rates in the widths' order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    chosen = []
    for width in arguments.widths:
        losses = last_losses(width, arguments.steps)
        chosen.append(min(losses, key=lambda rate: losses[rate]))
        print(
            f"width {width}: " + ", ".join(f"{r:g}: {v:.4g}" for r, v in losses.items()), flush=True
        )
    print("rates:", chosen)


if __name__ == "__main__":
    main()
