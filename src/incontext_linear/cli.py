"""The project's own commands beside Kedro's: ``kedro sweep`` and ``kedro learner``."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import KedroCliError
from kedro.framework.startup import ProjectMetadata
from omegaconf import OmegaConf

from incontext_linear.hooks import explain_error
from incontext_linear.runs.interrupts import EXIT_STATUS, interruptible
from incontext_linear.runs.session import check_runner


@click.group(name="incontext-linear")
def cli() -> None:
    """Commands of this project, among them ``run`` in place of Kedro's."""


class RunCommand(click.Command):
    """Kedro's ``run``, which ends in one line where it is interrupted or cannot begin."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the command line; Kedro's own errors about it would be shown without their text."""
        try:
            return super().make_context(*args, **options)
        except KedroCliError as error:
            raise click.ClickException(error.message) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run; exit with 130 after Ctrl-C, SIGTERM or SIGHUP."""
        options = ctx.params
        is_async = options["is_async"] or options["runner_params"].get("is_async", False)
        check_runner(options["runner"] or "SequentialRunner", is_async)  # before one is made
        try:
            with interruptible(until_exit=True):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted; the same command goes on from the last checkpoint.", err=True)
            raise SystemExit(EXIT_STATUS) from None
        except Exception as error:  # outside of any node, such as MLflow's on a full disk
            says = explain_error(error)
            if says is None or isinstance(error, click.ClickException):
                raise
            raise click.ClickException(says) from None


def split_params(ctx: click.Context, param: click.Parameter, value: Any) -> dict[str, Any]:
    """``--params``: a comma begins the next parameter only where a name and ``=`` follow.

    Kedro's own splits at every comma, which leaves no way to write a list or a mixture:
    ``probing.layers=[0,4],task.inputs=normal*1+0,normal*3+0``.
    """
    if isinstance(value, dict):
        return value
    items: list[str] = []
    for part in filter(str.strip, value.split(",")):
        if "=" in part or not items:
            items.append(part.strip())
        else:
            items[-1] += f",{part}"
    for item in items:
        if not re.match(r"\s*[^=\s]+\s*=", item):
            raise click.BadParameter(
                f"{item!r} is no parameter and its value; allowed: NAME=VALUE, several of them "
                "separated by commas",
                ctx,
                param,
            )
    pairs = (item.partition("=") for item in items)
    return OmegaConf.to_container(
        OmegaConf.from_dotlist([f"{name.strip()}={text}" for name, _, text in pairs])
    )


def _options() -> list[click.Parameter]:
    """Kedro's own, with ``--params`` split as above."""
    options = [copy.copy(option) for option in kedro_run.params]
    for option in options:
        if option.name == "params":
            option.callback = split_params
    return options


# `python -m incontext_linear` looks for it by this name.
run = RunCommand("run", params=_options(), callback=kedro_run.callback, help=kedro_run.help)
cli.add_command(run)


@cli.group()
def sweep() -> None:
    """Run the model over axes of parameters that conf/<env>/sweeps.yml names."""


_env = click.option("--env", "-e", envvar="KEDRO_ENV", help="Kedro environment, such as paper.")


@sweep.command(name="run")
@click.argument("name")
@_env
@click.option("--workers", type=click.IntRange(min=1), help="Variants at once on this machine.")
@click.option("--scheduler", help="Address of a running Dask scheduler: tcp://host:8786.")
@click.option(
    "--gpu-share",
    type=click.FloatRange(min=0, min_open=True),
    help="With --scheduler: how much of a worker's resource GPU a variant takes.",
)
@click.option(
    "--worker-timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for a worker before giving up.",
)
@click.pass_obj
def run_command(
    metadata: ProjectMetadata,
    name: str,
    env: str | None,
    workers: int | None,
    scheduler: str | None,
    gpu_share: float | None,
    worker_timeout: float,
) -> None:
    """Run what is missing of sweep NAME, has failed, or has other parameters by now."""
    if scheduler and workers:
        raise click.UsageError("--workers sizes a local cluster; allowed: either it or --scheduler")
    if gpu_share and not scheduler:
        raise click.UsageError("--gpu-share is for --scheduler; allowed on this machine: --workers")
    with _driver(metadata, env) as (driver, project, console):
        cluster = driver.Cluster(scheduler, workers, gpu_share, worker_timeout)
        try:
            with interruptible(until_exit=True):
                status = driver.run_sweep(project, name, cluster, console)
        except KeyboardInterrupt:  # before or after what `run_sweep` puts in order itself
            status = EXIT_STATUS
    raise SystemExit(status)


@sweep.command()
@click.argument("name")
@_env
@click.pass_obj
def status(metadata: ProjectMetadata, name: str, env: str | None) -> None:
    """Show which variants of sweep NAME are done, failed, running, missing or changed since."""
    with _driver(metadata, env) as (driver, project, console):
        driver.show_status(project, name, console)


@sweep.command(name="list")
@_env
@click.pass_obj
def list_command(metadata: ProjectMetadata, env: str | None) -> None:
    """Show all sweeps, and how many of their variants are done."""
    with _driver(metadata, env) as (driver, project, console):
        driver.show_list(project, console)


@cli.group()
def learner() -> None:
    """Learners that earlier runs have trained: MLflow keeps one a run."""


@learner.command()
@click.argument("run_id")
@_env
@click.pass_obj
def restore(metadata: ProjectMetadata, run_id: str, env: str | None) -> None:
    """Put the learner that MLflow run RUN_ID has trained in the place of the saved one."""
    from incontext_linear.runs.session import ProjectSession

    with ProjectSession.create(metadata.project_path, env=env) as session:
        click.echo(cast(ProjectSession, session).restore_learner(run_id))


@contextmanager
def _driver(metadata: ProjectMetadata, env: str | None) -> Iterator[tuple[Any, Any, Any]]:
    """The module behind the commands, the project and a console; a sweep's errors become the
    command's.
    """
    # Imported here, since Kedro imports this module for every command.
    from rich.console import Console

    from incontext_linear.sweeps import driver
    from incontext_linear.sweeps.config import SweepError
    from incontext_linear.sweeps.project import Project

    try:
        yield driver, Project(metadata.project_path, env), Console()
    except SweepError as error:
        raise click.ClickException(str(error)) from None
