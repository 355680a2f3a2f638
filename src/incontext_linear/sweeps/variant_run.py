"""Variants in a worker process: each a Kedro run with its own MLflow run and its own folder.

Variants of one shape may be trained together first (`training.stacked`); each then runs as one
whose learner is there already.
"""

import gc
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from kedro.framework.project import pipelines, settings
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from kedro.pipeline.node import Node

from incontext_linear.datasets import LearnerDataset
from incontext_linear.environment import read_environment
from incontext_linear.files import remove_temporaries
from incontext_linear.progress import listening
from incontext_linear.runs.locks import LockedError, exclusive
from incontext_linear.runs.session import ProjectSession
from incontext_linear.sweeps.engine import Report, TaskCancelled
from incontext_linear.sweeps.state import NOTHING_YET
from incontext_linear.sweeps.variants import PIPELINES, GroupTask, VariantTask
from incontext_linear.tracking import Tracking, end_open_runs
from incontext_linear.training import CheckpointStore, TrainingDivergedError, train_stacked
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.loop import Progress
from incontext_linear.training.recipe import Recipe

logger = logging.getLogger(__name__)

LEARNER = "learner"
"""What the catalog calls the dataset that training makes."""

_LOCK_PATIENCE = 60.0
"""Seconds that a variant which was cancelled on another worker may take to its next report."""

_one_at_a_time = threading.Lock()
_bootstrapped: Path | None = None


class VariantSession(ProjectSession):
    """A run in the variant's folder, whose lock `run_variant` holds."""

    def check_variant(self) -> None:
        """The parameter ``variant`` is what this session is for."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing more to hold."""
        yield


def run_group(group: GroupTask, report: Report) -> dict[str, Any]:
    """Run the one variant of a group, or train several together.

    Args:
        group: what to run and where.
        report: takes the progress of each, with ``variant``, its name.

    Returns:
        ``{"status": "done", "variants": {name: answer}}``, answers as of `run_variant`. Those of
        several that are not named have a learner by now, or none to be had together, and are still
        to be run; ``seconds`` is what training took each.
    """
    task = group.tasks[0]
    if len(group.tasks) > 1:
        start = time.perf_counter()
        answers = train_together(group.tasks, report)
        seconds = (time.perf_counter() - start) / len(group.tasks)
        return {"status": "done", "variants": answers, "seconds": seconds}
    name, state = task.variant.name, task.folder.read()
    if state.get("fingerprint") != task.variant.fingerprint or state.get("status") != "done":
        state = run_variant(task, lambda event: report({"variant": name} | event))
    return {"status": "done", "variants": {name: state}}


def train_together(tasks: Sequence[VariantTask], report: Report) -> dict[str, dict[str, Any]]:
    """Train the learners that are missing in one step, and save each in its variant's folder.

    One that diverged is left to `run_variant`: from its last good checkpoint it diverges once more,
    and that is what its log and its MLflow run say.

    Args:
        tasks: of one shape.
        report: takes the progress of the first one that has not diverged, with ``variant``, its
            name, and ``together``, the number trained.

    Returns:
        Answers of the variants that end here: all of them if interrupted, else none.
    """
    first, missing, states = tasks[0], [], {}
    _enter(first.folder.project, first.variant.num_threads)
    with ExitStack() as locks:
        for task in tasks:
            locks.enter_context(exclusive(task.folder.lock, _LOCK_PATIENCE))
            states[task.variant.name] = state = task.variant.record | NOTHING_YET
            learner = _learner(task)
            if not _begin(task, learner, state):
                missing.append((task, learner))
        if len(missing) < 2:
            return {}
        names = [task.variant.name for task, _ in missing]
        about = {"num_steps": first.variant.parameters.training.num_steps, "together": len(names)}
        told = 0

        def on_progress(position: int, progress: Progress) -> None:
            nonlocal told
            if progress.step > told:  # all report at once: one of them speaks for the stack
                told = progress.step
                own = {"variant": names[position], "stage": "training"}
                report(own | about | vars(progress))

        try:
            report({"variant": names[0], "stage": "starting", "together": len(names)})
            recipes = [task.variant.parameters.recipe for task, _ in missing]
            stores, device = [_store(task) for task, _ in missing], first.variant.parameters.device
            ended = train_stacked(recipes, device, stores, on_progress)
        except TaskCancelled:
            outcomes = {name: {"status": "interrupted"} for name in names}
        else:
            outcomes = {}
            for (_, learner), one in zip(missing, ended, strict=True):
                if not isinstance(one, TrainingDivergedError):
                    learner.save(one)
        finally:
            _free_memory()
        answers = {name: states[name] | outcome for name, outcome in outcomes.items()}
        for task, _ in missing:
            if task.variant.name in answers:
                task.folder.write(answers[task.variant.name])
        return answers


def run_variant(task: VariantTask, report: Report) -> dict[str, Any]:
    """Run one variant's pipelines; a failure is an answer too, so that the other variants go on.

    Args:
        task: what to run and where.
        report: takes the run's progress, as `progress.listening` gives it.

    Returns:
        What the variant's folder then says of it, see `state.VariantFolder.write`.
    """
    folder, record = task.folder, task.variant.record
    with _one_at_a_time:
        _enter(folder.project, task.variant.num_threads)
        try:
            with exclusive(folder.lock, _LOCK_PATIENCE):
                state = record | NOTHING_YET
                try:
                    return _run_in_folder(task, state, report)
                finally:
                    _free_memory()
        except LockedError as error:
            return record | NOTHING_YET | {"status": "failed", "error": str(error)}


def _run_in_folder(task: VariantTask, state: dict[str, Any], report: Report) -> dict[str, Any]:
    folder, learner = task.folder, _learner(task)
    trained = _begin(task, learner, state)
    with _logged_to(folder.project / folder.log):
        answer = state | _run(task, learner, report, trained)
    folder.write(answer)
    return answer


def _begin(task: VariantTask, learner: LearnerDataset, state: dict[str, Any]) -> bool:
    """Put the folder in order and say in it that the variant runs; gives whether it is trained."""
    folder, recipe = task.folder, task.variant.parameters.recipe
    trained = is_trained(learner, recipe, task.variant.num_threads)
    changed = folder.read().get("fingerprint") not in (None, state["fingerprint"])
    if changed and not trained:
        shutil.rmtree(folder.path)  # results of other parameters must not stand beside the new ones
    if folder.path.exists():
        remove_temporaries(folder.path)
    folder.write(state)
    return trained


def _learner(task: VariantTask) -> LearnerDataset:
    """The catalog's entry of the variant's learner."""
    _, catalog = read_environment(task.folder.project, task.env, task.runtime_params)
    return catalog.get(LEARNER)


def _store(task: VariantTask) -> CheckpointStore:
    """The variant's checkpoints."""
    _, catalog = read_environment(task.folder.project, task.env, task.runtime_params)
    return catalog.load("training_checkpoints")


def is_trained(learner: LearnerDataset, recipe: Recipe, num_threads: int) -> bool:
    """Whether the learner that a training by this recipe would give lies there.

    Then a change of the baselines or of the comparison costs no training, nor does a variant that
    failed after it.
    """
    if not learner.exists():
        return False
    try:
        found = learner.load()
        training = TrainingConfig.model_validate(found.record["training"])
        by = Recipe(found.task, found.config, training, found.record["seed"])
    except (DatasetError, KeyError, ValueError):  # damaged, or of an older version
        return False
    threads = found.record.get("num_threads", num_threads)  # older ones do not say
    return by.fingerprint == recipe.fingerprint and threads == num_threads


def _node_names(names: Sequence[str], trained: bool, figures: bool) -> list[str]:
    """The nodes of a variant's pipelines: the one that trains only where there is a learner to
    train, those that draw only where figures are asked for.
    """
    nodes = [node for pipeline in names for node in pipelines[pipeline].nodes]
    chosen = [
        node.name
        for node in nodes
        if not (trained and LEARNER in node.outputs) and (figures or not _draws(node))
    ]
    return list(dict.fromkeys(chosen))  # pipelines share nodes, and Kedro takes each name once


def _draws(node: Node) -> bool:
    return bool(node.outputs) and all(name.endswith("_figure") for name in node.outputs)


def _run(
    task: VariantTask, learner: LearnerDataset, report: Report, trained: bool
) -> dict[str, Any]:
    tracking = next(hook for hook in settings.HOOKS if isinstance(hook, Tracking))
    tracking.run_id, last, start = None, {}, time.perf_counter()

    def listener(event: dict[str, Any]) -> None:
        last.update(event)
        report(event)

    outcome: dict[str, Any] = {"status": "done"}
    try:
        listener({"stage": "starting", "trained": trained})
        arguments = {"env": task.env, "runtime_params": task.runtime_params}
        project = task.folder.project
        with VariantSession.create(project, **arguments) as session, listening(listener):
            names = [*PIPELINES, *task.variant.pipelines]
            chosen = _node_names(names, trained, task.variant.figures)
            options: dict[str, Any] = {"pipeline_names": names, "node_names": chosen}
            session.run(**options)
        if "spd_to_ols" not in last:  # there was no step of training left to report
            last |= learner.load().record["history"][-1]
        end_open_runs("FINISHED")
    except TaskCancelled:
        end_open_runs("KILLED")
        outcome = {"status": "interrupted"}
    except Exception as error:
        logger.exception("The variant %s failed", task.variant.name)
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        # kedro-mlflow ends the run of a node that fails, not of what goes wrong before the first or
        # after the last one; left open, it would take in the next variant of this process.
        end_open_runs("FAILED")
    return outcome | {
        "seconds": round(time.perf_counter() - start, 1),
        "mlflow_run_id": tracking.run_id,
        "spd_to_ols": last.get("spd_to_ols"),
    }


def _enter(project: Path, num_threads: int) -> None:
    """Relative places, such as MLflow's database, mean those of the project."""
    global _bootstrapped
    os.chdir(project)
    if _bootstrapped != project:
        bootstrap_project(project)
        _bootstrapped = project
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
    if not gc.get_freeze_count():  # what the libraries hold is not looked through after each one
        gc.freeze()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
