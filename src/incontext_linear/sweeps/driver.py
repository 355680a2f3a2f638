"""``kedro sweep``: what its three commands do."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from incontext_linear.config import resolve_device
from incontext_linear.parameters import show
from incontext_linear.sweeps.config import SweepError
from incontext_linear.sweeps.display import failures_table, list_table, open_display, status_table
from incontext_linear.sweeps.project import Project
from incontext_linear.sweeps.state import (
    NOTHING_YET,
    is_at_work,
    read_state,
    sole_driver,
    standing,
    write_state,
)
from incontext_linear.sweeps.variants import Variant

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@dataclass(frozen=True)
class Cluster:
    """Where a sweep runs: on this machine, unless there is a scheduler's address."""

    scheduler: str | None = None
    num_workers: int | None = None
    """Of the local cluster; None: sized to the machine."""
    gpu_share: float | None = None
    """Of a worker's resource ``GPU``, for each variant; None: what the engine thinks right."""


def run_sweep(project: Project, name: str, cluster: Cluster, console: Console) -> int:
    """Run what is missing of a sweep, has failed, or has other parameters by now.

    Args:
        project: the project and environment.
        name: of the sweep.
        cluster: where to run.
        console: what to report to.

    Returns:
        The exit status: 0 if all variants are done, 1 if any failed, `INTERRUPTED` after Ctrl-C.

    Raises:
        SweepError: before anything is run, if the sweep cannot be.
    """
    sweep = project.sweep(name)
    variants = project.variants(name, sweep)
    if cluster.scheduler is None:
        _check_devices(variants)
    folder = project.folder(name)
    with sole_driver(project.path / folder):
        _end_running(project.path / folder, variants)  # of a driver that was killed
        states = {v.name: read_state(project.path / folder / v.folder) for v in variants}
        todo = [
            v for v in variants if standing(states[v.name], v.fingerprint, at_work=False) != "done"
        ]
        console.print(
            f"{name}: {len(variants) - len(todo)} of {len(variants)} variants are done",
            highlight=False,
        )
        if not todo:
            return 0
        facts = {
            "sweep": name,
            "sweep.axes": "; ".join(
                f"{axis}: {_list(values)}" for axis, values in sweep.axes.items()
            ),
            "sweep.seeds": _list(sweep.seeds),
            "sweep.num_variants": str(len(variants)),
        }
        try:
            with _sigterm_as_ctrl_c():
                failures = _run(project, folder, todo, cluster, facts, console)
        except KeyboardInterrupt:
            _leave(project, name, cluster, variants, console)
            return INTERRUPTED
    if failures:
        console.print(failures_table(failures))
    console.print(
        f"{name}: {len(variants) - len(failures)} done, {len(failures)} failed; in {folder}",
        highlight=False,
    )
    return 1 if failures else 0


def _run(
    project: Project,
    folder: Path,
    todo: list[Variant],
    cluster: Cluster,
    facts: dict[str, str],
    console: Console,
) -> list[tuple[str, Path, str]]:
    """Run the variants under the sweep's run in MLflow; gives those that failed, with folder and
    error.
    """
    from incontext_linear.sweeps.engine import execute
    from incontext_linear.sweeps.tracking import parent_run
    from incontext_linear.sweeps.variant_run import run_variant

    # Workers that die are no news to the log: the display says what becomes of their variants.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    by_name, failures = {variant.name: variant for variant in todo}, []
    sweep = facts["sweep"]

    def on_end(name: str, answer: dict[str, Any]) -> None:
        place = folder / by_name[name].folder
        if answer["status"] != "done":
            failures.append((name, place, answer["error"]))
            written = by_name[name].record | NOTHING_YET | answer
            if read_state(project.path / place) != written:  # nobody was left to write it
                write_state(project.path / place, written)
        display.end(name, answer)

    with (
        project.mlflow() as config,
        _connect(project, cluster, todo) as (client, num_threads, resources),
        parent_run(config, project.path / folder, f"sweep {sweep}", facts) as run,
        open_display(console, sweep, len(todo)) as display,
    ):
        tasks = [_task(project, folder, v, run.run_id, num_threads, resources(v)) for v in todo]
        execute(client, run_variant, tasks, display.report, on_end)
        run.status = "FAILED" if failures else "FINISHED"
    return failures


@contextlib.contextmanager
def _connect(
    project: Project, cluster: Cluster, todo: list[Variant]
) -> Iterator[tuple[Any, int | None, Any]]:
    """A client, the threads that PyTorch shall use in a worker, and what a variant asks of its
    worker.
    """
    from incontext_linear.sweeps import engine

    if cluster.scheduler is None:
        num_gpus = _num_gpus(todo)
        machine = engine.plan_machine(len(todo), num_gpus, cluster.num_workers)
        with engine.local_cluster(machine, project.worker_environment) as client:
            yield client, machine.num_threads, lambda variant: {}
    else:
        share = cluster.gpu_share or engine.default_gpu_share()
        with engine.running_cluster(cluster.scheduler) as client:
            on_gpus = engine.has_gpus(client)

            def resources(variant: Variant) -> dict[str, float]:
                return engine.gpu_share(variant.parameters.device, on_gpus, share)

            engine.check_resources(client, resources(todo[0]))  # no axis changes the device
            yield client, None, resources


def _check_devices(variants: list[Variant]) -> None:
    for device in {variant.parameters.device for variant in variants}:
        try:
            resolve_device(device)
        except ValueError as error:
            raise SweepError(str(error)) from None


def _num_gpus(variants: list[Variant]) -> int:
    """GPUs of this machine that the variants may use: none if the parameters say ``device:
    cpu``.
    """
    import torch

    wanted = any(resolve_device(variant.parameters.device).type == "cuda" for variant in variants)
    return torch.cuda.device_count() if wanted else 0


def _task(
    project: Project,
    folder: Path,
    variant: Variant,
    parent: str,
    num_threads: int | None,
    resources: dict[str, float],
) -> Any:
    from incontext_linear.sweeps.engine import Task

    identity = {
        "sweep": variant.sweep,
        "name": variant.name,
        "folder": (folder / variant.folder).as_posix(),
        "axes": variant.axes,
        "seed": variant.seed,
        "parent_run_id": parent,
    }
    arguments = {
        "project": str(project.path),
        "env": project.env,
        "runtime_params": variant.overrides | {"variant": identity},
        "record": variant.record,
        "num_threads": num_threads,
    }
    return Task(variant.name, arguments, resources)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """A batch system's request to end is treated as a user's Ctrl-C; a second one changes
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_running(folder: Path, variants: list[Variant]) -> None:
    """What says that it is running, though nobody runs it, was interrupted."""
    for variant in variants:
        state = read_state(folder / variant.folder)
        if state.get("status") == "running":
            write_state(folder / variant.folder, state | {"status": "interrupted"})


def _leave(
    project: Project, name: str, cluster: Cluster, variants: list[Variant], console: Console
) -> None:
    """After Ctrl-C: what is done stays, and the rest says that it was interrupted."""
    folder = project.path / project.folder(name)
    _end_running(folder, variants)
    stands = [
        standing(read_state(folder / v.folder), v.fingerprint, at_work=False) for v in variants
    ]
    options = {"--env": project.env, "--scheduler": cluster.scheduler}
    again = "".join(f" {option} {value}" for option, value in options.items() if value)
    console.print(
        f"{name}: interrupted; {stands.count('done')} of {len(variants)} variants are done; "
        f"`kedro sweep run {name}{again}` goes on from here",
        highlight=False,
    )


def show_status(project: Project, name: str, console: Console) -> None:
    """Print where each variant of a sweep stands.

    Raises:
        SweepError: if there is no such sweep, or it cannot be run.
    """
    folder = project.path / project.folder(name)
    at_work, rows = is_at_work(folder), []
    for variant in project.variants(name, project.sweep(name)):
        state = read_state(folder / variant.folder)
        rows.append((variant.name, standing(state, variant.fingerprint, at_work), state))
    console.print(status_table(name, rows))


def show_list(project: Project, console: Console) -> None:
    """Print all sweeps of the environment, and of those that cannot be run, why.

    Raises:
        SweepError: at the end, if one of them cannot be run.
    """
    rows, problems = [], []
    for name, sweep in project.sweeps().items():
        axes = "; ".join(f"{axis}: {_list(values)}" for axis, values in sweep.axes.items())
        try:
            folder, variants = project.path / project.folder(name), project.variants(name, sweep)
        except SweepError as error:
            problems.append(str(error))
            rows.append((name, axes, _list(sweep.seeds), "not valid", ""))
            continue
        stands = [standing(read_state(folder / v.folder), v.fingerprint, False) for v in variants]
        rows.append((name, axes, _list(sweep.seeds), str(len(variants)), str(stands.count("done"))))
    console.print(list_table(rows))
    if problems:
        raise SweepError("\n".join(problems))


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(show, values))
