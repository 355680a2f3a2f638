"""``kedro sweep``: what its three commands do."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from incontext_linear.config import resolve_device
from incontext_linear.parameters import show
from incontext_linear.runs.interrupts import EXIT_STATUS, interruptible
from incontext_linear.runs.sizes import check_sizes
from incontext_linear.sweeps.config import SweepConfig, SweepError
from incontext_linear.sweeps.display import failures_table, list_table, open_display, status_table
from incontext_linear.sweeps.project import Project
from incontext_linear.sweeps.state import NOTHING_YET, Standing, SweepFolder, standing
from incontext_linear.sweeps.variants import NODES, GroupTask, Variant, VariantTask, group


@dataclass(frozen=True)
class Cluster:
    """Where a sweep runs: on this machine, unless there is a scheduler's address."""

    scheduler: str | None = None
    num_workers: int | None = None
    """Of the local cluster; None: sized to the machine."""
    gpu_share: float | None = None
    """Of a worker's resource ``GPU``, for each variant; None: what the engine thinks right."""
    worker_timeout: float = 60.0
    """Seconds to go on without a worker."""


def run_sweep(project: Project, name: str, cluster: Cluster, console: Console) -> int:
    """Run what is missing of a sweep, has failed, or has other parameters by now.

    Args:
        project: the project and environment.
        name: of the sweep.
        cluster: where to run.
        console: what to report to.

    Returns:
        The exit status: 0 if all variants are done, 1 if any failed, `interrupts.EXIT_STATUS` after
        Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        SweepError: before anything is run, if the sweep cannot be.
    """
    sweep = project.sweep(name)
    variants = project.variants(name, sweep)
    if cluster.scheduler is None:
        _check_machine(variants)
    folder = project.folder(name)
    with interruptible(), folder.sole_driver():
        todo = _todo(folder, variants)
        console.print(
            f"{name}: {len(variants) - len(todo)} of {len(variants)} variants are done",
            highlight=False,
        )
        if not todo:
            return 0
        facts = {
            "sweep": name,
            "sweep.axes": _axes(sweep),
            "sweep.seeds": _list(sweep.seeds),
            "sweep.num_variants": str(len(variants)),
            "sweep.num_threads": str(sweep.num_threads),
        }
        try:
            failures = _run(project, folder, todo, cluster, facts, sweep.stacked, console)
        except KeyboardInterrupt:
            _leave(project, name, cluster, variants, console)
            return EXIT_STATUS
    if failures:
        console.print(failures_table(failures))
    num_done = len(variants) - len(failures)
    console.print(
        f"{name}: {num_done} done, {len(failures)} failed; in {folder.relative}", highlight=False
    )
    return 1 if failures else 0


def _todo(folder: SweepFolder, variants: list[Variant]) -> list[Variant]:
    """The variants that are not done; those of a driver that was killed were interrupted."""
    for variant in variants:
        folder.of(variant.folder).end_running()
    return [v for v in variants if _stands(folder, v, at_work=False) != "done"]


def _stands(folder: SweepFolder, variant: Variant, at_work: bool) -> Standing:
    return standing(folder.of(variant.folder).read(), variant.fingerprint, at_work)


def _run(
    project: Project,
    folder: SweepFolder,
    todo: list[Variant],
    cluster: Cluster,
    facts: dict[str, str],
    wanted: bool | Literal["auto"],
    console: Console,
) -> list[tuple[str, Path, str]]:
    """Run the variants under the sweep's run in MLflow; gives those that failed, with folder and
    error.
    """
    from incontext_linear.sweeps.engine import Task, execute
    from incontext_linear.sweeps.tracking import parent_run
    from incontext_linear.sweeps.variant_run import run_group

    # Workers that die are no news to the log: the display says what becomes of their variants.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    by_name, failures = {variant.name: variant for variant in todo}, []
    groups: dict[str, list[Variant]] = {}
    seconds: dict[str, float] = {}  # of training together
    sweep = facts["sweep"]

    def end_variant(name: str, answer: dict[str, Any]) -> None:
        place = folder.of(by_name[name].folder)
        if answer["status"] != "done":
            failures.append((name, place.log, answer.get("error") or answer["status"]))
            written = by_name[name].record | NOTHING_YET | answer
            if place.read() != written:  # nobody was left to write it
                place.write(written)
        elif name in seconds:
            answer = answer | {"seconds": round(answer["seconds"] + seconds[name], 1)}
        display.end(name, answer)

    def task(members: list[Variant]) -> Task:
        """Of a group, by its first variant's name."""
        name = members[0].name
        groups[name] = members
        return Task(name, _work(members, folder, project, run.run_id), resources(members[0]))

    def on_end(name: str, answer: dict[str, Any]) -> list[Task]:
        """Variants that were trained together are measured one by one, on all workers; a group
        that died is taken apart.
        """
        members, answers = groups[name], answer.get("variants", {})
        if len(members) == 1:
            end_variant(name, answers.get(name, answer))
            return []
        if "variants" not in answer:
            why = answer.get("error") or answer["status"]
            say(f"{name} and {len(members) - 1} more are run one by one, since together {why}")
        for ended in answers:  # those that were interrupted
            end_variant(ended, answers[ended])
        left = [variant for variant in members if variant.name not in answers]
        seconds.update({variant.name: answer.get("seconds", 0.0) for variant in left})
        return [task([variant]) for variant in left]

    def on_event(name: str, event: dict[str, Any]) -> None:
        display.report(event.pop("variant", name), event)

    def say(line: str) -> None:
        console.print(f"{sweep}: {line}", markup=False, highlight=False, soft_wrap=True)

    with (
        project.mlflow() as config,
        _connect(project, cluster, todo, say) as (client, resources, on_gpu),
        parent_run(config, folder, f"sweep {sweep}", facts) as run,
        open_display(console, sweep, len(todo)) as display,
    ):
        stacked = on_gpu if wanted == "auto" else wanted
        tasks = [task(members) for members in group(todo, stacked)]
        execute(client, run_group, tasks, on_event, on_end, say, cluster.worker_timeout)
        run.status = "FAILED" if failures else "FINISHED"
    return failures


def _work(members: list[Variant], folder: SweepFolder, project: Project, run_id: str) -> GroupTask:
    """What a worker needs to know of some variants."""
    places = [(variant, folder.of(variant.folder)) for variant in members]
    return GroupTask(tuple(VariantTask(v, at, project.env, run_id) for v, at in places))


@contextlib.contextmanager
def _connect(
    project: Project, cluster: Cluster, todo: list[Variant], say: Callable[[str], None]
) -> Iterator[tuple[Any, Any, bool]]:
    """A client, what a variant asks of its worker, and whether it will train on a GPU."""
    from incontext_linear.sweeps import engine

    if cluster.scheduler is None:
        num_gpus = _num_gpus(todo)
        machine = engine.plan_machine(len(todo), num_gpus, todo[0].num_threads, cluster.num_workers)
        with engine.local_cluster(machine, project.worker_environment) as client:
            yield client, lambda variant: {}, num_gpus > 0
    else:
        share = cluster.gpu_share or engine.default_gpu_share()
        timeout = cluster.worker_timeout
        with engine.running_cluster(cluster.scheduler, say, timeout) as client:
            on_gpus = engine.has_gpus(client)

            def resources(variant: Variant) -> dict[str, float]:
                return engine.gpu_share(variant.parameters.device, on_gpus, share)

            engine.check_resources(client, resources(todo[0]))  # no axis changes the device
            yield client, resources, bool(resources(todo[0]))


def _check_machine(variants: list[Variant]) -> None:
    """Refuse what this machine cannot run, before any variant begins; a cluster's workers say it
    themselves.
    """
    lines = []
    for variant in variants:
        try:
            resolve_device(variant.parameters.device)
            check_sizes(variant.parameters, NODES)
        except ValueError as error:
            lines += str(error).splitlines()
    if lines:
        raise SweepError("\n".join(dict.fromkeys(lines)))


def _num_gpus(variants: list[Variant]) -> int:
    """GPUs of this machine that the variants may use: none if the parameters say ``device:
    cpu``.
    """
    import torch

    wanted = any(resolve_device(variant.parameters.device).type == "cuda" for variant in variants)
    return torch.cuda.device_count() if wanted else 0


def _leave(
    project: Project, name: str, cluster: Cluster, variants: list[Variant], console: Console
) -> None:
    """After Ctrl-C: what is done stays, and the rest says that it was interrupted."""
    left = _todo(project.folder(name), variants)
    options = {"--env": project.env, "--scheduler": cluster.scheduler}
    again = "".join(f" {option} {value}" for option, value in options.items() if value)
    console.print(
        f"{name}: interrupted; {len(variants) - len(left)} of {len(variants)} variants are done; "
        f"`kedro sweep run {name}{again}` goes on from here",
        highlight=False,
    )


def show_status(project: Project, name: str, console: Console) -> None:
    """Print where each variant of a sweep stands.

    Raises:
        SweepError: if there is no such sweep, or it cannot be run.
    """
    folder = project.folder(name)
    at_work, rows = folder.is_at_work(), []
    for variant in project.variants(name, project.sweep(name)):
        state = folder.of(variant.folder).read()
        rows.append((variant.name, standing(state, variant.fingerprint, at_work), state))
    console.print(status_table(name, rows))


def show_list(project: Project, console: Console) -> None:
    """Print all sweeps of the environment, and of those that cannot be run, why.

    Raises:
        SweepError: at the end, if one of them cannot be run.
    """
    rows, problems = [], []
    for name in project.names():
        axes = seeds = ""
        try:
            sweep = project.sweep(name)
            axes, seeds = _axes(sweep), _list(sweep.seeds)
            folder, variants = project.folder(name), project.variants(name, sweep)
        except SweepError as error:
            problems.append(str(error))
            rows.append((name, axes, seeds, "not valid", ""))
            continue
        stands = [_stands(folder, v, at_work=False) for v in variants]
        rows.append((name, axes, seeds, str(len(variants)), str(stands.count("done"))))
    console.print(list_table(rows))
    if problems:
        raise SweepError("\n".join(problems))


def _axes(sweep: SweepConfig) -> str:
    return "; ".join(f"{axis}: {_list(values)}" for axis, values in sweep.all_axes.items())


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(show, values))
