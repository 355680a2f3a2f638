"""Train one learner on several processes, data-parallel: one a GPU, or several on a CPU.

    torchrun --nproc-per-node 2 -m incontext_linear.distributed --env paper

takes the place of ``kedro run --env paper --pipelines model_training``: the parameters, the checkpoints and
the file of the learner are those of the environment, so ``kedro run --env paper --pipelines
baseline_estimation,behavioral_comparison,probing`` goes on from it. The first process saves.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.cli.utils import _split_params
from kedro.io import DataCatalog

from incontext_linear.distributed import process_group
from incontext_linear.parameters import Parameters, check_parameters
from incontext_linear.progress import training_progress
from incontext_linear.settings import CONFIG_LOADER_ARGS
from incontext_linear.training import run_fingerprint, train


def read_environment(
    project: Path, env: str | None, runtime_parameters: dict[str, Any] | None = None
) -> tuple[Parameters, DataCatalog]:
    """The parameters of a Kedro environment, and its catalog's entries for the learner and checkpoints.

    Kedro's hooks are left out: many processes that each open MLflow's database would trip over one another.
    """
    arguments = {**CONFIG_LOADER_ARGS, "runtime_params": runtime_parameters or {}}
    loader = OmegaConfigLoader(str(project / "conf"), env=env, **arguments)
    entries = {name: loader["catalog"][name] for name in ("learner", "training_checkpoints")}
    for entry in entries.values():
        place = "filepath" if "filepath" in entry else "path"
        entry[place] = str(project / entry[place])
    return check_parameters(loader["parameters"]), DataCatalog.from_config(entries)


def run(project: Path, env: str | None, runtime_parameters: dict[str, Any] | None = None) -> None:
    """Train with an environment's parameters; the first process saves the learner through the catalog."""
    parameters, catalog = read_environment(project, env, runtime_parameters)
    checkpoints = catalog.load("training_checkpoints")
    what = (parameters.task, parameters.model, parameters.training, parameters.seed)
    with process_group(parameters.device) as rank, training_progress(what[2].num_steps) as report:
        learner = train(*what, parameters.device, checkpoints, report)
    if rank == 0:
        catalog.save("learner", learner)
        checkpoints.discard(run_fingerprint(*what))


def main() -> None:
    """Read the command line; started by torchrun in every process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", help="the Kedro environment, such as paper")
    parser.add_argument("--params", default="", help="as for kedro run: training.batch_size=256,seed=1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    run(Path.cwd(), arguments.env, _split_params(None, None, arguments.params))


if __name__ == "__main__":
    main()
