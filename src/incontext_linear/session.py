"""A run of this project: alone in its data folder, and stopped cleanly by every signal.

Kedro's settings name `ProjectSession`, so ``kedro run`` and a notebook's session are of this class.
It asks the questions that need no hook before anything is written: whether the command can be
carried out, and whether another run is at work on the same files.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline
from kedro.runner import AbstractRunner

from incontext_linear.environment import ConfigurationError, data_folder
from incontext_linear.files import remove_temporaries
from incontext_linear.interrupts import interruptible
from incontext_linear.locks import LOCK_FILE, LockedError, exclusive
from incontext_linear.tracking import end_open_runs

logger = logging.getLogger(__name__)

LAYERS = "[0-9][0-9]_*"
"""The folders of a data folder that a run writes to; beside them lie other environments' folders
and sweeps, which have writers of their own.
"""

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
        _check_filters(**options)
        with interruptible(), self.alone():
            try:
                return super().run(*args, runner=runner, **options)
            except KeyboardInterrupt:
                end_open_runs("KILLED")
                raise

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


@contextmanager
def sole_run(data: Path) -> Iterator[None]:
    """Be the only run that writes to a data folder; remove what killed ones left there half-made.

    Raises:
        click.ClickException: if another run holds the folder, saying which, or it cannot be
            written to.
    """
    lock = exclusive(data / LOCK_FILE)
    try:
        lock.__enter__()
    except LockedError as error:
        raise click.ClickException(
            f"{error}. Two runs would mix their results, and the later learner would take the "
            "place of the earlier one. Wait for it, or give this run files of its own: "
            "`--env NAME` with a folder conf/NAME whose globals.yml says `data: data/NAME`, or "
            "`kedro sweep run`, where every variant has a folder"
        ) from None
    except OSError as error:
        raise click.ClickException(f"cannot write to {data}: {error.strerror}") from None
    try:
        stale = [path for layer in data.glob(LAYERS) for path in remove_temporaries(layer)]
        if stale:
            logger.info("Removed %d unfinished files of a run that was killed", len(stale))
        yield
    finally:
        lock.__exit__(None, None, None)


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
    if runner.rpartition(".")[2] != "SequentialRunner":
        raise click.ClickException(
            f"--runner {runner}: nodes would run outside of their MLflow run; allowed: "
            "SequentialRunner, and `kedro sweep run` for many runs at once"
        )


def _check_filters(pipeline_names: Any = None, **options: Any) -> None:
    """Let Kedro's own errors about nodes and tags that do not exist come early, and as one line."""
    pipelines.set_requested(list(pipeline_names) if pipeline_names else None)
    chosen = sum((pipelines[n] for n in pipeline_names or ["__default__"]), Pipeline([]))
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
