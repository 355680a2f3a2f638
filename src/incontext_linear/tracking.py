"""What MLflow is told about a run: kedro-mlflow's hook, with names, tags and typed parameters."""

import atexit
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import mlflow
import pandas as pd
import torch
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_RUN_CONTEXT
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from incontext_linear.config import Config, flatten
from incontext_linear.environment import data_folder
from incontext_linear.files import fingerprint
from incontext_linear.learner.saved import Learner
from incontext_linear.logged_learner import NAME, fetch_learner
from incontext_linear.parameters import VariantConfig, check_parameters, show
from incontext_linear.runs.database import DatabaseError, database_file, ensure_database
from incontext_linear.runs.locks import LOCK_FILE, LockedError, holds
from incontext_linear.runs.run_table import announce_headline, offer_view

logger = logging.getLogger(__name__)

DATA_TAG = "data_folder"
"""The tag of a run that says where it writes."""


PROMPT_STREAMS = {"evaluation_prompts": "evaluation", "probing_prompts": "probing"}
"""Prompts that a run measures on → their random stream, see `tasks.draw_prompts`."""
TABLES = "tables"
COMPARISON = "comparison_metrics"
"""The dataset among whose metrics is the one that runs are sorted by."""
LONGEST_SHOWN = 5000
"""Rows of the longest table that is also logged as CSV, which MLflow shows; it cannot show Parquet.
"""


class Tracking(MlflowHook):
    """kedro-mlflow's hook; typed parameters are logged field by field, so that the UI can compare
    fields.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up as kedro-mlflow does, with a database that lies in the project, wherever we
        are.
        """
        loader = context.config_loader
        loader.config_patterns.setdefault("mlflow", ["mlflow*", "mlflow*/**", "**/mlflow*"])
        try:
            config = loader["mlflow"]
        except MissingConfigException:  # kedro-mlflow then has defaults
            config = {}
        for name, uri in config.get("server", {}).items():
            config["server"][name] = absolute_sqlite(uri, context.project_path)
        if config:
            loader["mlflow"] = config
        self._data = data_folder(context.project_path, loader)
        self._parameters = check_parameters(loader["parameters"])
        _ensure_database(config, context._package_name)
        super().after_context_created(context)

    def _log_param(self, name: str, value: Any) -> None:
        """Nothing is left to log when a node runs: `before_pipeline_run` has logged all, once."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the run as kedro-mlflow does, name and tag it, and log every parameter that it
        depends on.
        """
        changed = dict(run_params.get("extra_params") or run_params.get("runtime_params") or {})
        variant = (
            VariantConfig.model_validate(changed.pop("variant")) if "variant" in changed else None
        )
        if variant:  # runs of this variant whose worker was killed
            kill_open_runs(self.mlflow_config, variant.parent_run_id, variant.name)
        elif holds(self._data / LOCK_FILE) and not self._already_active_mlflow:
            # Nobody else is at work there.
            kill_dead_runs(self.mlflow_config, self._data)
        self._is_variant, self._catalog = variant is not None, catalog
        born_with = _variant_tags(variant) if variant else {DATA_TAG: str(self._data)}
        # Which runner is no fact about the run: results do not depend on it, and its name is a
        # memory address.
        run_params = {name: value for name, value in run_params.items() if name != "runner"}
        with _born_with(born_with), _system_metrics(not variant), _outside_notebooks():
            super().before_pipeline_run(run_params, pipeline, catalog)
        if self.run_id is None:
            return
        # MLflow ends what an interrupted process leaves open as FINISHED; this handler comes before
        # its own.
        atexit.register(end_open_runs, "KILLED")
        names = sorted(
            run_params.get("pipeline_names") or [run_params.get("pipeline_name") or "__default__"]
        )
        env = [run_params["env"]] if run_params.get("env") else []
        settings = [f"{name}={value}" for name, value in flatten(changed).items()]
        mlflow.set_tags(
            {
                "mlflow.runName": " ".join([*env, "+".join(names), *settings]),
                "pipeline": "+".join(names),
                "git_commit": git_commit(Path(run_params["project_path"])),
                "num_threads": str(torch.get_num_threads()),
            }
            | (_variant_tags(variant) if variant else {})
        )
        mlflow.log_params(parameter_fields(pipeline, catalog))
        if not variant:
            client, experiment_id = _experiment(self.mlflow_config)
            offer_view(client, experiment_id)
            if COMPARISON in pipeline.outputs() and "ols" in self._parameters.baselines.active:
                announce_headline(client, self.run_id)

    @hook_impl
    def before_node_run(
        self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool
    ) -> None:
        """Open the run where a node begins in a thread that has it not open: kedro-mlflow opens it
        anew in every node, and each time it must be ended too.
        """
        run = mlflow.active_run()
        if run is None or run.info.run_id != self.run_id:
            super().before_node_run(node, catalog, inputs, is_async)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Say which prompts the run is about; add a form of its tables that MLflow can show."""
        if self.run_id is None or self._is_variant or not mlflow.active_run():
            return
        if dataset_name in PROMPT_STREAMS:
            self._log_prompts(dataset_name, data)
        elif isinstance(data, pd.DataFrame) and len(data) <= LONGEST_SHOWN:
            dataset = self._catalog.get(dataset_name)
            if getattr(dataset, "artifact_path", None) == TABLES:
                mlflow.log_text(data.to_csv(index=False), f"{TABLES}/{dataset_name}.csv")

    def _log_prompts(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Prompts are a function of the task, the seed and the stream: so is their digest."""
        given = self._parameters
        stream = PROMPT_STREAMS[name]
        task = given.evaluation.over(given.task)
        drawn_by = {"task": str(task), "seed": str(given.seed), "stream": stream}
        prompts = from_numpy(
            tensors["xs"].numpy(),
            source=CodeDatasetSource(tags=drawn_by),
            targets=tensors["ys"].numpy(),
            name=name,
            digest=fingerprint(task.model_dump(mode="json"), given.seed, stream),
        )
        mlflow.log_input(prompts, context=stream)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """End the run as kedro-mlflow does: it was not interrupted."""
        super().after_pipeline_run(run_params, pipeline, catalog)
        # Left open, by a node in another thread too, it would take in a notebook's next run.
        if not self._already_active_mlflow:
            end_open_runs("FINISHED")
        atexit.unregister(end_open_runs)

    @hook_impl
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """End the run as kedro-mlflow does: it failed, and was not interrupted."""
        try:
            super().on_pipeline_error(error, run_params, pipeline, catalog)
        except MlflowException as problem:  # such as a full disk, which is the error's cause too
            reason = str(problem).partition("\n")[0]
            logger.warning("MLflow could not be told that the run failed: %s", reason)
        atexit.unregister(end_open_runs)


def absolute_sqlite(uri: Any, project: Path) -> Any:
    """The URI of a database file, below the project if its path is relative; anything else as it
    is.
    """
    prefix = "sqlite:///"
    if not isinstance(uri, str) or not uri.startswith(prefix):
        return uri
    path = uri.removeprefix(prefix)
    return uri if path.startswith(("/", ":memory:", "file:")) else f"{prefix}{project / path}"


@contextmanager
def _system_metrics(wanted: bool) -> Iterator[None]:
    """Watch the machine's load for the run that begins in the block, and for it alone: where it is
    opened once more, in a node, that would begin to watch again.
    """
    if wanted:
        mlflow.enable_system_metrics_logging()
    try:
        yield
    finally:
        mlflow.disable_system_metrics_logging()


@contextmanager
def _outside_notebooks() -> Iterator[None]:
    """Where nothing has imported IPython, MLflow need not, a second long, to see that a run that
    begins in the block is no notebook's: for it, IPython is not installed.
    """
    if "IPython" in sys.modules:
        yield
        return
    sys.modules["IPython"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["IPython"]


@contextmanager
def _born_with(tags: dict[str, str]) -> Iterator[None]:
    """Tag the MLflow run that begins in the block as it is made: its process may die before the
    next call.
    """
    given = MLFLOW_RUN_CONTEXT.get_raw()
    MLFLOW_RUN_CONTEXT.set(json.dumps(json.loads(given or "{}") | tags))
    try:
        yield
    finally:
        if given is None:
            MLFLOW_RUN_CONTEXT.unset()
        else:
            MLFLOW_RUN_CONTEXT.set(given)


def _variant_tags(variant: VariantConfig) -> dict[str, str]:
    """What puts a variant's run below its sweep's in the UI, and lets it be found by its axes."""
    tags = {
        "sweep": variant.sweep,
        "variant": variant.name,
        "mlflow.runName": f"{variant.sweep} {variant.name}",
    }
    settings = {**variant.axes, "seed": variant.seed}
    tags |= {f"sweep.{name}": show(value) for name, value in settings.items()}
    return tags | ({"mlflow.parentRunId": variant.parent_run_id} if variant.parent_run_id else {})


def _fields(name: str, value: Any) -> dict[str, str]:
    """A parameter's fields by dotted name, as long as MLflow takes them; a plain value is its only
    field.
    """
    if isinstance(value, Config):
        fields = value.flat(name)
    else:
        fields = flatten(value, name) if isinstance(value, dict) else {name: value}
    return {field: str(value)[:MAX_PARAM_VAL_LENGTH] for field, value in fields.items()}


def parameter_fields(pipeline: Pipeline, catalog: DataCatalog) -> dict[str, str]:
    """Every parameter that a pipeline depends on, by dotted name."""
    fields: dict[str, str] = {}
    for name in sorted(name for name in pipeline.inputs() if name.startswith("params:")):
        fields |= _fields(name.removeprefix("params:"), catalog.load(name))
    return fields


def end_open_runs(status: str) -> None:
    """End what this process has open in MLflow: a run that was interrupted, if this is at its
    end.
    """
    while mlflow.active_run():  # kedro-mlflow opens the same run once more in a node's thread
        mlflow.end_run(status)


def git_commit(project: Path) -> str:
    """The commit that is checked out, marked where files differ from it."""
    command = [
        "git",
        "-C",
        str(project),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def kill_dead_runs(config: KedroMlflowConfig, data: Path) -> None:
    """Mark as killed the runs that say they are running and writing to a data folder whose lock
    this process holds: they died without a word (SIGKILL, power).

    Args:
        config: kedro-mlflow's, set up.
        data: the folder.
    """
    where = f"attributes.status = 'RUNNING' and tags.`{DATA_TAG}` = '{data}'"
    for run in _search(config, where):
        logger.warning("MLflow run %s died without an end: it is KILLED now", run.info.run_id)
        _client(config).set_terminated(run.info.run_id, "KILLED")


def kill_open_runs(
    config: KedroMlflowConfig, parent_run_id: str | None, variant: str | None = None
) -> None:
    """Mark as killed the variants' runs that say they are running: nobody is left to end them.

    Args:
        config: kedro-mlflow's, set up.
        parent_run_id: the sweep's run.
        variant: only this variant's; None: all.
    """
    where = f"attributes.status = 'RUNNING' and tags.mlflow.parentRunId = '{parent_run_id}'"
    for run in _search(config, where):
        if variant is None or run.data.tags.get("variant") == variant:
            _client(config).set_terminated(run.info.run_id, "KILLED")


def _client(config: KedroMlflowConfig) -> MlflowClient:
    return config.server._mlflow_client


def _experiment(config: KedroMlflowConfig) -> tuple[MlflowClient, str]:
    return _client(config), config.tracking.experiment._experiment.experiment_id


def _search(config: KedroMlflowConfig, where: str) -> list[Run]:
    client, experiment = _experiment(config)
    return list(client.search_runs([experiment], where))


def _ensure_database(config: dict[str, Any], package: str) -> None:
    """Have MLflow's database made, or checked, if it is a file.

    Raises:
        click.ClickException: if it cannot be, or is not sound; the message says what to do.
    """
    path = database_file(config.get("server", {}).get("mlflow_tracking_uri"))
    if path is None:
        return
    experiment = config.get("tracking", {}).get("experiment", {}).get("name") or package
    try:
        ensure_database(path, experiment)
    except (DatabaseError, LockedError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from None


def learner_of_run(run_id: str) -> Learner:
    """The learner that a run trained, from the model that MLflow keeps of it.

    Raises:
        ValueError: if MLflow has no such run, or the run trained no learner.
        UnreadableFileError: if the file is damaged.
    """
    try:
        return fetch_learner(f"runs:/{run_id}/{NAME}")
    except (MlflowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"mlflow_run={run_id!r}: {reason}; allowed: a run that trained a learner"
        ) from None
