"""Train the learners that ship in data/06_models/pretrained: ``python -m tools.pretrained``.

The learner is trained with the parameters of conf/pretrained; the control, of the same shape, for a
tenth of the steps on prompts that all have the one weight vector w = (1, …, 1), where there is
nothing to learn in context. Interrupted training goes on from its checkpoint.
"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

from incontext_linear.environment import read_environment
from incontext_linear.learner.saved import save_learner
from incontext_linear.parameters import Parameters
from incontext_linear.probing.controls import control_recipe
from incontext_linear.progress import training_progress
from incontext_linear.training import train
from incontext_linear.training.checkpoints import CheckpointStore

PROJECT = Path(__file__).parents[1]
CONTROL_SHARE_OF_STEPS = 0.1


def train_and_save(
    name: str, parameters: Parameters, store: CheckpointStore, folder: Path, num_steps: int | None
) -> None:
    """Train one of the two learners and write it to ``folder/<name>.safetensors``."""
    recipe = parameters.recipe
    if num_steps is not None:
        training = recipe.training.model_copy(update={"num_steps": num_steps})
        recipe = replace(recipe, training=training)
    if name == "control":
        steps = max(1, round(CONTROL_SHARE_OF_STEPS * recipe.training.num_steps))
        recipe = control_recipe(recipe, steps)
    start, num_steps = time.perf_counter(), recipe.training.num_steps
    with training_progress(num_steps) as report:
        learner = train(recipe, parameters.device, store, report)
    save_learner(folder / f"{name}.safetensors", learner)
    logging.info("%s: %d steps in %.0f s", name, num_steps, time.perf_counter() - start)


def main() -> None:
    """Train both, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["learner", "control"])
    parser.add_argument("--output", type=Path, default=PROJECT / "data/06_models/pretrained")
    parser.add_argument("--num-steps", type=int, default=None, help="instead of training.num_steps")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parameters, catalog = read_environment(PROJECT, "pretrained")
    store = catalog.load("training_checkpoints")
    for name in [arguments.only] if arguments.only else ["learner", "control"]:
        train_and_save(name, parameters, store, arguments.output, arguments.num_steps)


if __name__ == "__main__":
    main()
