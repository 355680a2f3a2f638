"""Many independent tasks on Dask workers: a local cluster sized to the machine, or one that is
running.

Each task runs in a worker process that does nothing else meanwhile, and can be killed at any
moment: Dask then starts it again elsewhere, and it is up to the task to go on from what it had
saved.
"""

import contextlib
import math
import multiprocessing.resource_tracker
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Reschedule, Scheduler, SpecCluster, get_worker, wait
from distributed.scheduler import KilledWorker
from distributed.worker import WORKER_ANY_RUNNING

from incontext_linear.sweeps.config import SweepError

VARIANTS_PER_GPU = 3
"""Variants that share one GPU, unless the command line says otherwise."""

ALLOWED_DEATHS = 2
"""Workers of a local cluster that one task may lose; with one more it has failed."""

_REPORT_EVERY = 0.25  # seconds between two reports of a task's progress
_CONNECT_TIMEOUT = 10  # seconds

Report = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Report], dict[str, Any]]


class TaskCancelled(BaseException):
    """Raised in a task, where it reports its progress, once nobody waits for it; no error of its
    own.
    """


@dataclass(frozen=True)
class Machine:
    """The worker processes of a local cluster."""

    num_workers: int
    num_threads: int
    """For the arithmetic of each worker."""
    gpus: tuple[str, ...] = ()
    """As in CUDA_VISIBLE_DEVICES; the workers take them in turn. Empty: on the CPU."""


def plan_machine(num_tasks: int, num_gpus: int, num_workers: int | None = None) -> Machine:
    """Size a local cluster: on a CPU a worker a core, on GPUs `VARIANTS_PER_GPU` each, never more
    than tasks.

    Args:
        num_tasks: how many there are to run.
        num_gpus: GPUs to use; 0: the CPU.
        num_workers: in place of the size that would be chosen.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = tuple((visible or [str(index) for index in range(num_gpus)])[:num_gpus])
    chosen = num_workers or (VARIANTS_PER_GPU * num_gpus if num_gpus else CPU_COUNT)
    size = max(1, min(chosen, num_tasks))
    return Machine(size, max(1, CPU_COUNT // size), gpus)


@contextlib.contextmanager
def local_cluster(machine: Machine, environment: dict[str, str]) -> Iterator[Client]:
    """Worker processes on this machine, which end with the block, at once if it is left by an
    exception.

    Args:
        machine: how many, and what each gets.
        environment: variables that they start with.
    """
    settings = {
        # In place of Dask's own, with which malloc gives back every free page: training took twice
        # as long.
        "distributed.nanny.pre-spawn-environ": _thread_limits(machine.num_threads) | environment,
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,
    }
    scheduler = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": ":0"}
    with tempfile.TemporaryDirectory() as scratch, dask.config.set(settings):
        workers = {index: _worker(machine, index, scratch) for index in range(machine.num_workers)}
        cluster = None
        try:
            with _sigint_blocked():
                cluster = SpecCluster(
                    scheduler={"cls": Scheduler, "options": scheduler}, workers=workers
                )
            with Client(cluster) as client:
                yield client
        except BaseException:
            if cluster:
                _kill_workers(cluster)
            raise
        finally:
            if cluster:
                cluster.close()


def _thread_limits(num_threads: int) -> dict[str, str]:
    """For libraries that count the cores when they are loaded."""
    return {f"{library}_NUM_THREADS": str(num_threads) for library in ("OMP", "MKL", "OPENBLAS")}


def _worker(machine: Machine, index: int, scratch: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": "127.0.0.1",
        "nthreads": 1,
        "memory_limit": 0,
        "local_directory": scratch,
        "dashboard": False,
    }
    if machine.gpus:
        options["env"] = {"CUDA_VISIBLE_DEVICES": machine.gpus[index % len(machine.gpus)]}
    return {"cls": Nanny, "options": options}


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process in the terminal; what is started here, and its workers, shall
    not see it.

    A blocked signal stays blocked in threads and processes started meanwhile, and in those that
    they start.
    """
    multiprocessing.resource_tracker.ensure_running()  # on its way it unblocks signals
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _kill_workers(cluster: SpecCluster) -> None:
    """At once, in the middle of what they do: what they write is written whole or not at all."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if nanny.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


@contextlib.contextmanager
def running_cluster(address: str) -> Iterator[Client]:
    """A cluster that was started elsewhere, and goes on after the block.

    Raises:
        SweepError: if there is none at the address, or its workers run several tasks at once.
    """
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"--scheduler {address}: no Dask scheduler answers there ({error})"
        ) from None
    with client:
        busy = {
            name: info["nthreads"]
            for name, info in _workers(client).items()
            if info["nthreads"] > 1
        }
        for name, threads in busy.items():
            raise SweepError(
                f"--scheduler {address}: worker {name} has {threads} threads, but a variant needs "
                "a process "
                "of its own; allowed: workers started with --nthreads 1"
            )
        yield client


def has_gpus(client: Client) -> bool:
    """Whether some worker declares the resource ``GPU``."""
    return any("GPU" in info["resources"] for info in _workers(client).values())


def gpu_share(device: str, on_gpu_cluster: bool, share: float) -> dict[str, float]:
    """The Dask resources that a variant asks for: ``cuda`` a share of GPU, ``auto`` where there is
    one.
    """
    return {"GPU": share} if device == "cuda" or (device == "auto" and on_gpu_cluster) else {}


def check_resources(client: Client, resources: dict[str, float]) -> None:
    """Refuse what no worker that is there could ever give: Dask would wait for one that can,
    without a word.

    Raises:
        SweepError: naming the resource, how much was asked for and how much there is.
    """
    workers = _workers(client).values()
    for name, amount in resources.items():
        most = max((info["resources"].get(name, 0.0) for info in workers), default=amount)
        if most < amount:
            raise SweepError(
                f"--scheduler {client.scheduler.address}: a variant takes {amount:g} of a worker's "
                "resource "
                f"{name}, but no worker declares more than {most:g}; allowed: workers started with "
                f"--resources {name}=1, a smaller --gpu-share, or the parameter device: cpu"
            )


def num_able(client: Client, resources: dict[str, float]) -> int:
    """How many workers could give so much: as many tasks can run at once, one in each worker."""
    return sum(
        all(info["resources"].get(name, 0.0) >= amount for name, amount in resources.items())
        for info in _workers(client).values()
    )


def default_gpu_share() -> float:
    """What `VARIANTS_PER_GPU` leave each other, rounded down to hundredths, as a worker would
    declare it.
    """
    return math.floor(100 / VARIANTS_PER_GPU) / 100


def _workers(client: Client) -> dict[str, dict[str, Any]]:
    return client.scheduler_info(n_workers=-1)["workers"]


@dataclass(frozen=True)
class Task:
    """One call of the work, by name."""

    name: str
    arguments: dict[str, Any]
    resources: dict[str, float]


def execute(
    client: Client,
    work: Work,
    tasks: Sequence[Task],
    on_event: Callable[[str, dict[str, Any]], None],
    on_end: Callable[[str, dict[str, Any]], None],
) -> None:
    """Run all tasks, each on a worker of its own, as many at once as there are workers.

    Args:
        client: of the cluster.
        work: called in a worker process with a task's arguments and a function for its reports;
            answers a plain dictionary, also where it fails. Must be importable there.
        tasks: what to run, in this order; all ask for the same resources.
        on_event: called with a task's name and each of its reports, in another thread.
        on_end: called with a task's name and its answer; ``{"status": "failed", "error": …}`` if it
            has none because its workers died.

    Raises:
        SweepError: if the scheduler is gone, or cancelled the tasks for somebody else.
    """
    topic, waiting, running = f"sweep-{uuid.uuid4().hex}", list(reversed(tasks)), {}
    client.subscribe_topic(topic, lambda event: on_event(event[1]["task"], event[1]["report"]))
    try:
        while waiting or running:
            # One task a worker, of those that can run it: Dask would let others wait on a worker
            # that is at work, and that worker's death would then count against them too.
            while waiting and len(running) < max(1, num_able(client, waiting[-1].resources)):
                task = waiting.pop()
                future = client.submit(
                    _perform,
                    work,
                    task.name,
                    task.arguments,
                    topic,
                    pure=False,
                    resources=task.resources,
                )
                running[future] = task.name
            with contextlib.suppress(TimeoutError):
                wait(list(running), timeout=1, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                on_end(running.pop(future), _answer(future))
    except CancelledError as error:
        raise SweepError(f"Dask has let go of what was running: {error}") from None
    finally:
        if running and client.status == "running":
            if isinstance(client.cluster, SpecCluster):
                _kill_workers(client.cluster)
            # Tasks on workers that are not ours to kill notice at their next report, and stop.
            client.cancel(list(running), force=True)


def _answer(future: Any) -> dict[str, Any]:
    try:
        return future.result()
    except KilledWorker as error:
        deaths = error.allowed_failures + 1
        reason = f"its worker process died {deaths} times in a row (killed, or out of memory)"
    except Exception as error:
        reason = f"Dask could not run it: {type(error).__name__}: {error}"
    return {"status": "failed", "error": reason}


def _perform(work: Work, name: str, arguments: dict[str, Any], topic: str) -> dict[str, Any]:
    """In the worker: the work, with reports that reach the driver and raise once the task is
    cancelled.
    """
    worker = get_worker()
    key = worker.get_current_task()
    last, closing = 0.0, False

    def report(event: dict[str, Any]) -> None:
        nonlocal last, closing
        # A worker that is paused, or has been asked to go, still finishes what it runs.
        closing = worker.status not in WORKER_ANY_RUNNING
        state = worker.state.tasks.get(key)
        if closing or state is None or state.state != "executing":
            raise TaskCancelled(f"{name} is not waited for any more")
        now = time.monotonic()
        if "step" not in event or now - last > _REPORT_EVERY:
            last = now
            worker.log_event(topic, {"task": name, "report": event})

    answer = work(arguments, report)
    if closing:  # half-way: another worker goes on
        raise Reschedule
    return answer
