"""A run of this project: alone in its data folder, and stopped cleanly by every signal.

Kedro's settings name `ProjectSession`, so ``kedro run`` and a notebook's session are of this class.
It asks the questions that need no hook before anything is written: whether the command can be
carried out, and whether another run is at work on the same files.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline
from kedro.runner import AbstractRunner

from incontext_linear.environment import ConfigurationError, data_folder, sole_run
from incontext_linear.learner.devices import one_thread
from incontext_linear.runs.garbage import no_search
from incontext_linear.runs.interrupts import interruptible
from incontext_linear.runs.side_by_side import SideBySideRunner
from incontext_linear.runs.worker import keep_freed_memory
from incontext_linear.tracking import end_open_runs, learner_of_run

RUNNERS = {"SequentialRunner", SideBySideRunner.__name__}
SIDE_BY_SIDE = f"{SideBySideRunner.__module__}.{SideBySideRunner.__name__}"
VARIANT_IS_SET = "variant: set by `kedro sweep run` for each run that it starts; leave it out"


class ProjectSession(KedroSession):
    """Kedro's session, whose run holds the lock of the folder that it writes to."""

    def run(self, *args: Any, runner: AbstractRunner | None = None, **options: Any) -> Any:
        """Run as Kedro does, and stop at Ctrl-C, SIGTERM or SIGHUP with the MLflow run KILLED.

        Raises:
            click.ClickException: if the runner is of a kind that loses results, a node or tag does
                not exist, or another run is at work on this environment's data folder.
        """
        if runner is not None:
            check_runner(type(runner).__name__, getattr(runner, "_is_async", False))
        self.check_variant()
        # The process that saves computes little, and says how many threads a node has.
        threads = one_thread() if isinstance(runner, SideBySideRunner) else nullcontext()
        with no_search():  # until the hook `Stages` is told that the run begins
            _check_filters(**options)
            keep_freed_memory()
            with interruptible(), self.alone(), threads:
                try:
                    return super().run(*args, runner=runner, **options)
                except KeyboardInterrupt:
                    end_open_runs("KILLED")
                    raise

    def restore_learner(self, run_id: str) -> str:
        """Save the learner that an MLflow run has trained as the environment's; says where.

        Raises:
            click.ClickException: if MLflow has no such learner, or another run is at work here.
        """
        catalog = self.load_context().catalog
        with self.alone():
            try:
                learner = learner_of_run(run_id)
            except ValueError as error:
                raise click.ClickException(str(error)) from None
            catalog.save("learner", learner)
        return f"The learner of run {run_id} ({learner.shape}) is the saved one now."

    def load_context(self) -> KedroContext:
        """The context, as Kedro makes it."""
        self.check_variant()
        return super().load_context()

    def check_variant(self) -> None:
        """Refuse the parameter that says where a variant of a sweep writes."""
        if "variant" in (self.store.get("runtime_params") or {}):
            raise click.ClickException(VARIANT_IS_SET)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock of the environment's data folder."""
        try:
            data = data_folder(self._project_path, self._get_config_loader())
        except ConfigurationError as error:
            raise click.ClickException(str(error)) from None
        with sole_run(data):
            yield


def check_runner(runner: str, is_async: bool) -> None:
    """Refuse what takes nodes, or their files, out of the thread of the MLflow run.

    Args:
        runner: its name, or the dotted path of its class.
        is_async: whether it loads and saves in threads of their own.

    Raises:
        click.ClickException: saying what is allowed.
    """
    if is_async:
        raise click.ClickException(
            "--async: files would be saved in threads of their own, which MLflow takes for other "
            "runs, so metrics and tables would be lost; allowed: without it"
        )
    if runner.rpartition(".")[2] not in RUNNERS:
        raise click.ClickException(
            f"--runner {runner}: nodes would run outside of their MLflow run; allowed: "
            f"SequentialRunner, {SIDE_BY_SIDE} for two nodes at once, and `kedro sweep run` for "
            "many runs at once"
        )


def _check_filters(
    pipeline_name: str | None = None, pipeline_names: Iterable[str] | None = None, **options: Any
) -> None:
    """Let Kedro's own errors about nodes and tags that do not exist come early, and as one line."""
    names = [pipeline_name] if pipeline_name else list(pipeline_names or ())
    pipelines.set_requested(names or None)
    chosen = sum((pipelines[name] for name in names or ["__default__"]), Pipeline([]))
    filters = ("tags", "node_names", "from_nodes", "to_nodes", "from_inputs", "to_outputs")
    given = {name: options[name] for name in filters if options.get(name)}
    if options.get("namespaces"):
        given["node_namespaces"] = options["namespaces"]
    try:
        chosen.filter(**given)
    except ValueError as error:
        raise click.ClickException(f"{error} (given {_show(given)})") from None


def _show(given: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in given.items())
