"""Kedro hooks: checks before anything is touched, and which node begins."""

import errno
import importlib
import logging
import pkgutil
import sqlite3
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog, DatasetError, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from incontext_linear import pipelines
from incontext_linear.config import MeasurementError
from incontext_linear.environment import (
    ConfigurationError,
    data_folder,
    read_configuration,
    sole_run,
)
from incontext_linear.files import UnreadableFileError
from incontext_linear.learner.base import check_learner
from incontext_linear.learner.saved import Learner, check_same_shape
from incontext_linear.learner.sources import LearnerSource, load_source
from incontext_linear.parameters import ParameterError, check_parameters
from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.progress import announce
from incontext_linear.runs.garbage import search_again
from incontext_linear.runs.locks import LOCK_FILE, holds
from incontext_linear.runs.rehearsal import rehearse
from incontext_linear.runs.session import VARIANT_IS_SET
from incontext_linear.tracking import learner_of_run
from incontext_linear.training import TrainingDivergedError

logger = logging.getLogger(__name__)

SELF_EXPLANATORY = (MeasurementError, PhaseDiagramError, TrainingDivergedError, UnreadableFileError)
"""Errors of nodes that are not the project's but of what was asked of it."""


PURPOSES = {
    "collect_hidden_states": "probing",
    "measure_progress": "layerwise",
    "measure_causality": "interventions",
}
"""Function of a node that reads the learner → what it needs of it, beside predictions."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_DISK = _FULL | _CLOSED | {errno.EIO}


def explain_error(error: BaseException | None) -> str | None:
    """One line for an error, or a cause of it, that is not the project's: what was asked of it, a
    damaged file, the disk. None: a defect, whose traceback is wanted.
    """
    while error is not None:
        if isinstance(error, SELF_EXPLANATORY):
            return str(error)
        if isinstance(error, OSError) and error.errno in _DISK and error.filename:
            return (
                f"cannot write or read {error.filename}: {error.strerror}; what was there before "
                "is as it was. Make room, or let this user write there, and run again"
            )
        if isinstance(error, sqlite3.OperationalError):
            return f"MLflow's database cannot be used: {error}. Make room, and run again"
        error = error.__cause__ or error.__context__
    return None


class ProjectChecks:
    """Stop a run that cannot succeed before it starts, with a message that says what to do."""

    def __init__(self) -> None:
        self._lock = ExitStack()

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check every parameter, also those of pipelines that will not run."""
        loader = context.config_loader
        try:
            raw = read_configuration(loader, "parameters")
            read_configuration(loader, "catalog")
            self._data = data_folder(context.project_path, loader)
            self._project = Path(context.project_path)
            if "variant" in raw and "variant" not in (loader.runtime_params or {}):
                raise click.ClickException(VARIANT_IS_SET)
            self._parameters = check_parameters(raw)
        except ConfigurationError as error:
            raise click.ClickException(str(error)) from None
        except ParameterError as error:
            raise click.ClickException(f"The parameters are not valid:\n{error}") from None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check that what the pipeline reads has been made, by a run with these parameters."""
        if not (self._parameters.variant or holds(self._data / LOCK_FILE)):
            # A session of Kedro's own class, made in a program: ours holds the lock already.
            self._lock.enter_context(sole_run(self._data))
        if self._parameters.learner is not None:
            self._take_learner(self._parameters.learner, pipeline, catalog)
        self._check_inputs_exist(run_params, pipeline, catalog)
        try:
            names = [node.name for node in pipeline.nodes]
            rehearse(self._parameters, names, pipeline.datasets())
        except ValueError as error:
            raise click.ClickException(f"The parameters are not valid:\n{error}") from None
        if "learner" in pipeline.inputs():
            self._check_learner(pipeline, catalog)

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Let others write."""
        self._lock.close()

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Let others write. On the command line, say without a traceback what its message alone
        explains.
        """
        self._lock.close()
        says = explain_error(error)
        if says and click.get_current_context(silent=True):
            raise click.ClickException(says) from None

    def _take_learner(
        self, source: LearnerSource, pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Put a network that was trained elsewhere in the place of the one that is read, or
        trained; its own architecture is then the model's.
        """
        try:
            if source.mlflow_run is not None:
                learner = learner_of_run(source.mlflow_run)
            else:
                learner = load_source(source, self._parameters.task, self._project)
            self._check_purposes(learner, pipeline)
        except (FileNotFoundError, UnreadableFileError, ValueError) as error:
            raise click.ClickException(f"learner: {error}") from None
        name = "learner" if "learner" in pipeline.inputs() else "pretrained_learner"
        catalog[name] = MemoryDataset(learner, copy_mode="assign")
        catalog["params:model"] = MemoryDataset(learner.config, copy_mode="assign")
        self._parameters = self._parameters.model_copy(update={"model": learner.config})

    def _check_purposes(self, learner: Learner, pipeline: Pipeline) -> None:
        """Refuse what a node asks of a network that lacks it, before any node runs."""
        for node in pipeline.nodes:
            purpose = PURPOSES.get(node.func.__name__)
            if purpose and "learner" in node.inputs:
                check_learner(learner.model, purpose)

    def _check_learner(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """A saved learner of another shape than the parameters say is from another run: stop.

        One that was trained on other prompts may be measured on these on purpose: warn.
        """
        expected = (self._parameters.task, self._parameters.model)
        try:
            learner = catalog.load("learner")
            check_same_shape("the saved learner", (learner.task, learner.config), expected)
            self._check_purposes(learner, pipeline)
        except DatasetError as error:
            raise click.ClickException(explain_error(error) or str(error)) from None
        except ValueError as error:
            raise click.ClickException(
                f"{error}; train one of that shape with the pipeline model_training. It takes the "
                "place of the saved one, which stays in MLflow, in the run that trained it: "
                "`kedro learner restore RUN_ID` brings it back"
            ) from None
        measured = self._parameters.evaluation.over(self._parameters.task)
        trained, given = (task.flat("task") for task in (learner.task, measured))
        other = [
            f"trained with {name} = {trained[name]!r}, these prompts have {value!r}"
            for name, value in given.items()
            if trained[name] != value
        ]
        if other:
            logger.warning("out of distribution: %s", "; ".join(other))

    def _check_inputs_exist(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        needed = sorted(
            name for name in pipeline.inputs() if not name.startswith(("params:", "parameters"))
        )
        missing = [
            name
            for name in needed
            if not catalog.exists(name) and not getattr(catalog.get(name), "ships", False)
        ]
        if missing:
            env = f" --env {run_params['env']}" if run_params.get("env") else ""
            raise click.ClickException(
                "Some of what this pipeline reads has not been made yet:\n"
                + "\n".join(
                    f"- {name}: make it with `{_maker(name, catalog, env)}`" for name in missing
                )
            )


def _maker(name: str, catalog: DataCatalog, env: str) -> str:
    """The command that makes a dataset: what its catalog entry says, or else the pipeline that
    writes it.
    """
    metadata = getattr(catalog.get(name), "metadata", None) or {}
    if "made_by" in metadata:
        command = metadata["made_by"]
        return command + env if command.startswith("kedro ") else command
    # Kedro has only loaded the requested pipeline, so all are built here.
    for module in pkgutil.iter_modules(pipelines.__path__):
        package = importlib.import_module(f"{pipelines.__name__}.{module.name}")
        if name in package.create_pipeline().all_outputs():
            return f"kedro run{env} --pipelines {module.name}"
    return f"kedro catalog describe-datasets{env}"


class Stages:
    """Tell whoever shows this run's progress which node begins; log which part does."""

    @hook_impl(trylast=True)
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Count the nodes of each part. Everything is prepared: let garbage be looked for again."""
        search_again()
        self._left = Counter(_part(node) for node in pipeline.nodes)
        self._begun: set[str] = set()

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Announce the node by its name; a part, once, with its number of nodes."""
        announce(node.name)
        part = _part(node)
        if part not in self._begun:
            self._begun.add(part)
            count = self._left[part]
            logger.info("%s: %d node%s", part, count, "s" if count > 1 else "")


def _part(node: Node) -> str:
    return node.namespace or node.name
