"""One variant in a worker process: a Kedro run with its own MLflow run and its own folder."""

import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from kedro.framework.project import pipelines, settings
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from incontext_linear.files import UnreadableFileError
from incontext_linear.learner.saved import load_learner
from incontext_linear.parameters import Parameters
from incontext_linear.progress import listening
from incontext_linear.sweeps.engine import Report, TaskCancelled
from incontext_linear.sweeps.state import LOG_FILE, NOTHING_YET, read_state, write_state
from incontext_linear.sweeps.variants import PIPELINES
from incontext_linear.tracking import Tracking, end_open_runs
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.recipe import Recipe

logger = logging.getLogger(__name__)

LEARNER_FILE = Path("06_models", "learner.safetensors")
"""Where the catalog keeps the learner, below the data folder."""

TRAINING_NODE = "train_learner"
"""What is left out where the learner is there already."""

_one_at_a_time = threading.Lock()
_bootstrapped: Path | None = None


def run_variant(task: dict[str, Any], report: Report) -> dict[str, Any]:
    """Run one variant's pipelines; a failure is an answer too, so that the other variants go on.

    Args:
        task: ``project`` and ``env``; ``runtime_params``, which hold the parameter ``variant``;
            its ``record``; ``num_threads`` for PyTorch, None for its own choice.
        report: takes the run's progress, as `progress.listening` gives it.

    Returns:
        What the variant's folder then says of it, see `state.write_state`.
    """
    with _one_at_a_time:
        project = Path(task["project"])
        _enter(project, task["num_threads"])
        variant = task["runtime_params"]["variant"]
        folder = _folder(task)
        trained = is_trained(
            folder / LEARNER_FILE, Parameters.model_validate(task["record"]["parameters"])
        )
        if (
            read_state(folder).get("fingerprint") not in (None, task["record"]["fingerprint"])
            and not trained
        ):
            shutil.rmtree(folder)  # results of other parameters must not stand beside the new ones
        state = task["record"] | NOTHING_YET
        write_state(folder, state)
        try:
            with _logged_to(folder / LOG_FILE):
                state |= _run(task, variant, report, trained)
        finally:
            _free_memory()
        write_state(folder, state)
        return state


def _folder(task: dict[str, Any]) -> Path:
    return Path(task["project"], task["runtime_params"]["variant"]["folder"])


def is_trained(path: Path, parameters: Parameters) -> bool:
    """Whether the file holds the learner that training with these parameters would give.

    Then a change of the baselines or of the comparison costs no training, nor does a variant that
    failed after it.
    """
    try:
        learner = load_learner(path)
        training, seed = (
            TrainingConfig.model_validate(learner.record["training"]),
            learner.record["seed"],
        )
    except (
        FileNotFoundError,
        UnreadableFileError,
        KeyError,
        ValueError,
    ):  # none, or of an older version
        return False
    recipe = Recipe(learner.task, learner.model.config, training, seed)
    return recipe.fingerprint == parameters.recipe.fingerprint


def _node_names(trained: bool) -> list[str]:
    """The nodes of a variant's pipelines, the one that trains only where there is a learner to
    train.
    """
    # Pipelines share nodes; Kedro takes a name that is given twice for two nodes.
    names = list(
        dict.fromkeys(node.name for pipeline in PIPELINES for node in pipelines[pipeline].nodes)
    )
    return [name for name in names if not (trained and name == TRAINING_NODE)]


def _run(
    task: dict[str, Any], variant: dict[str, Any], report: Report, trained: bool
) -> dict[str, Any]:
    tracking = next(hook for hook in settings.HOOKS if isinstance(hook, Tracking))
    tracking.run_id, last, start = None, {}, time.perf_counter()

    def listener(event: dict[str, Any]) -> None:
        last.update(event)
        report(event)

    outcome: dict[str, Any] = {"status": "done"}
    try:
        listener({"stage": "starting"})
        arguments = {"env": task["env"], "runtime_params": task["runtime_params"]}
        with KedroSession.create(task["project"], **arguments) as session, listening(listener):
            session.run(pipeline_names=list(PIPELINES), node_names=_node_names(trained))
        if "spd_to_ols" not in last:  # there was no step of training left to report
            last |= load_learner(_folder(task) / LEARNER_FILE).record["history"][-1]
        end_open_runs("FINISHED")
    except TaskCancelled:
        end_open_runs("KILLED")
        outcome = {"status": "interrupted"}
    except Exception as error:
        logger.exception("The variant %s failed", variant["name"])
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        # kedro-mlflow ends the run of a node that fails, not of what goes wrong before the first or
        # after the last one; left open, it would take in the next variant of this process.
        end_open_runs("FAILED")
    return outcome | {
        "seconds": round(time.perf_counter() - start, 1),
        "mlflow_run_id": tracking.run_id,
        "spd_to_ols": last.get("spd_to_ols"),
    }


def _enter(project: Path, num_threads: int | None) -> None:
    """Relative places, such as MLflow's database, mean those of the project."""
    global _bootstrapped
    os.chdir(project)
    if _bootstrapped != project:
        bootstrap_project(project)
        _bootstrapped = project
    if num_threads:
        torch.set_num_threads(num_threads)


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """What the run says goes to a file: the terminal belongs to the sweep's progress."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    with path.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        try:
            yield
        finally:
            root.handlers = before


def _free_memory() -> None:
    """The process lives on for the next variant; what this one compiled and allocated does not."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
