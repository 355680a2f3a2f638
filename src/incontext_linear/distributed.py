"""Train one learner on several processes, data-parallel: one a GPU, or several on a CPU.

    torchrun --nproc-per-node 2 -m incontext_linear.distributed --env paper

takes the place of ``kedro run --env paper --pipelines model_training``: the parameters, the
checkpoints and the file of the learner are those of the environment, so ``kedro run --env paper
--pipelines baseline_estimation,behavioral_comparison,probing`` goes on from it. The first process
saves.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from kedro.framework.cli.utils import _split_params

from incontext_linear.environment import read_environment
from incontext_linear.progress import training_progress
from incontext_linear.training import train
from incontext_linear.training.processes import process_group


def run(project: Path, env: str | None, runtime_parameters: dict[str, Any] | None = None) -> None:
    """Train with an environment's parameters; the first process saves the learner through the
    catalog.
    """
    parameters, catalog = read_environment(project, env, runtime_parameters)
    checkpoints = catalog.load("training_checkpoints")
    recipe = parameters.recipe
    with (
        process_group(parameters.device) as rank,
        training_progress(recipe.training.num_steps) as report,
    ):
        learner = train(recipe, parameters.device, checkpoints, report)
    if rank == 0:
        catalog.save("learner", learner)
        checkpoints.discard(recipe.fingerprint)


def main() -> None:
    """Read the command line; started by torchrun in every process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", help="the Kedro environment, such as paper")
    parser.add_argument(
        "--params", default="", help="as for kedro run: training.batch_size=256,seed=1"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    run(Path.cwd(), arguments.env, _split_params(None, None, arguments.params))


if __name__ == "__main__":
    main()
