"""Kedro hooks: checks before anything is touched, and what MLflow is told about a run."""

import atexit
import importlib
import json
import logging
import pkgutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.environment_variables import MLFLOW_RUN_CONTEXT

from incontext_linear import pipelines
from incontext_linear.checkpoints import check_same_shape
from incontext_linear.config import Config, flatten
from incontext_linear.parameters import ParameterError, check_parameters
from incontext_linear.phase_variants import PhaseDiagramError
from incontext_linear.progress import announce
from incontext_linear.sweeps.config import VariantConfig
from incontext_linear.sweeps.tracking import kill_open_runs
from incontext_linear.sweeps.variants import show
from incontext_linear.training import TrainingDivergedError

logger = logging.getLogger(__name__)

SELF_EXPLANATORY = (PhaseDiagramError, TrainingDivergedError)
"""Errors of nodes that are not the project's but of what was asked of it."""


class ProjectChecks:
    """Stop a run that cannot succeed before it starts, with a message that says what to do."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check every parameter, also those of pipelines that will not run."""
        try:
            self._parameters = check_parameters(context.config_loader["parameters"])
        except ParameterError as error:
            raise click.ClickException(f"The parameters are not valid:\n{error}") from None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check that what the pipeline reads has been made, by a run with these parameters."""
        self._check_inputs_exist(run_params, pipeline, catalog)
        if "learner" in pipeline.inputs():
            self._check_learner(catalog)

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """On the command line, say without a traceback what its message alone explains."""
        if isinstance(error, SELF_EXPLANATORY) and click.get_current_context(silent=True):
            raise click.ClickException(str(error)) from None

    def _check_learner(self, catalog: DataCatalog) -> None:
        """A saved learner of another shape than the parameters say is from another run: stop.

        One that was trained on other prompts may be measured on these on purpose: warn.
        """
        learner, expected = catalog.load("learner"), (self._parameters.task, self._parameters.model)
        try:
            check_same_shape("the saved learner", (learner.task, learner.model.config), expected)
        except ValueError as error:
            raise click.ClickException(
                f"{error}; train one of that shape with the pipeline model_training"
            ) from None
        trained, given = (task.flat("task") for task in (learner.task, self._parameters.task))
        other = [
            f"{name} {trained[name]!r}, not {value!r}"
            for name, value in given.items()
            if trained[name] != value
        ]
        if other:
            logger.warning(
                "the saved learner is measured on prompts that are new to it: trained with %s",
                "; ".join(other),
            )

    def _check_inputs_exist(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        needed = sorted(name for name in pipeline.inputs() if not name.startswith(("params:", "parameters")))
        missing = [
            name
            for name in needed
            if not catalog.exists(name) and not getattr(catalog.get(name), "ships", False)
        ]
        if missing:
            env = f" --env {run_params['env']}" if run_params.get("env") else ""
            raise click.ClickException(
                "Some of what this pipeline reads has not been made yet:\n"
                + "\n".join(f"- {name}: make it with `{_maker(name, catalog, env)}`" for name in missing)
            )


def _maker(name: str, catalog: DataCatalog, env: str) -> str:
    """The command that makes a dataset: what its catalog entry says, or else the pipeline that writes it."""
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


class Tracking(MlflowHook):
    """kedro-mlflow's hook; typed parameters are logged field by field, so that the UI can compare fields."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set MLflow up as kedro-mlflow does, with a database that lies in the project, wherever we are."""
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
        super().after_context_created(context)

    def _log_param(self, name: str, value: Any) -> None:
        """Nothing is left to log when a node runs: `before_pipeline_run` has logged all, once."""

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the run as kedro-mlflow does, name and tag it, and log every parameter that it depends on."""
        changed = dict(run_params.get("extra_params") or run_params.get("runtime_params") or {})
        variant = VariantConfig.model_validate(changed.pop("variant")) if "variant" in changed else None
        if variant:  # runs of this variant whose worker was killed
            kill_open_runs(self.mlflow_config, variant.parent_run_id, variant.name)
        with _born_with(_variant_tags(variant) if variant else {}):
            super().before_pipeline_run(run_params, pipeline, catalog)
        if self.run_id is None:
            return
        # MLflow ends what an interrupted process leaves open as FINISHED; this handler comes before its own.
        atexit.register(end_open_runs, "KILLED")
        names = sorted(run_params.get("pipeline_names") or [run_params.get("pipeline_name") or "__default__"])
        env = [run_params["env"]] if run_params.get("env") else []
        settings = [f"{name}={value}" for name, value in flatten(changed).items()]
        mlflow.set_tags(
            {
                "mlflow.runName": " ".join([*env, "+".join(names), *settings]),
                "pipeline": "+".join(names),
                "git_commit": git_commit(Path(run_params["project_path"])),
            }
            | (_variant_tags(variant) if variant else {})
        )
        for name in sorted(name for name in pipeline.inputs() if name.startswith("params:")):
            mlflow.log_params(_fields(name.removeprefix("params:"), catalog.load(name)))

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """End the run as kedro-mlflow does: it was not interrupted."""
        super().after_pipeline_run(run_params, pipeline, catalog)
        atexit.unregister(end_open_runs)

    @hook_impl
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """End the run as kedro-mlflow does: it failed, and was not interrupted."""
        super().on_pipeline_error(error, run_params, pipeline, catalog)
        atexit.unregister(end_open_runs)


class Stages:
    """Tell whoever shows this run's progress which node begins."""

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Announce the node by its name."""
        announce(node.name)


def absolute_sqlite(uri: Any, project: Path) -> Any:
    """The URI of a database file, below the project if its path is relative; anything else as it is."""
    prefix = "sqlite:///"
    if not isinstance(uri, str) or not uri.startswith(prefix):
        return uri
    path = uri.removeprefix(prefix)
    return uri if path.startswith(("/", ":memory:", "file:")) else f"{prefix}{project / path}"


@contextmanager
def _born_with(tags: dict[str, str]) -> Iterator[None]:
    """Tag the MLflow run that begins in the block as it is made: its process may die before the next call."""
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


def _fields(name: str, value: Any) -> dict[str, Any]:
    """A parameter's fields by dotted name; a plain value is its only field."""
    if isinstance(value, Config):
        return value.flat(name)
    return flatten(value, name) if isinstance(value, dict) else {name: value}


def end_open_runs(status: str) -> None:
    """End what this process has open in MLflow: a run that was interrupted, if this is at its end."""
    while mlflow.active_run():  # kedro-mlflow opens the same run once more in each node
        mlflow.end_run(status)


def git_commit(project: Path) -> str:
    """The commit that is checked out, marked where files differ from it."""
    command = ["git", "-C", str(project), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
