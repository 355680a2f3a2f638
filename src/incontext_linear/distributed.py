"""Train one learner on several processes, data-parallel: one a GPU, or several on a CPU.

    torchrun --nproc-per-node 2 -m incontext_linear.distributed --env paper

takes the place of ``kedro run --env paper --pipelines model_training``: the parameters, the
checkpoints and the file of the learner are those of the environment, so ``kedro run --env paper
--pipelines baseline_estimation,behavioral_comparison,probing`` goes on from it. The first process
saves.
"""

import argparse
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.utils import _split_params
from kedro.io import DataCatalog

from incontext_linear.environment import (
    ConfigurationError,
    environment_data,
    read_environment,
    sole_run,
)
from incontext_linear.parameters import ParameterError, Parameters
from incontext_linear.progress import training_progress
from incontext_linear.runs.interrupts import interruptible
from incontext_linear.runs.sizes import SizeError, check_sizes
from incontext_linear.training import train
from incontext_linear.training.processes import process_group


def run(project: Path, env: str | None, runtime_parameters: dict[str, Any] | None = None) -> None:
    """Train with an environment's parameters; the first process saves the learner through the
    catalog.
    """
    parameters, catalog = read_environment(project, env, runtime_parameters)
    check_sizes(parameters, ["train_learner"])
    with interruptible(), _sole_run(environment_data(project, env)):
        _train(parameters, catalog)


def _sole_run(data: Path) -> AbstractContextManager[None]:
    """The first process holds the lock for all of them."""
    return sole_run(data) if os.environ.get("RANK", "0") == "0" else nullcontext()


def _train(parameters: Parameters, catalog: DataCatalog) -> None:
    checkpoints = catalog.load("training_checkpoints")
    recipe = parameters.recipe
    with (
        process_group(parameters.device) as rank,
        # One bar: of the first process, the only one that `train` reports in.
        training_progress(recipe.training.num_steps) if rank == 0 else nullcontext() as report,
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
    try:
        run(Path.cwd(), arguments.env, _split_params(None, None, arguments.params))
    except click.ClickException as error:
        raise SystemExit(f"Error: {error.message}") from None
    except (ConfigurationError, ParameterError, SizeError) as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
