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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, Nanny, Reschedule, Scheduler, SpecCluster, get_worker, wait
from distributed.scheduler import KilledWorker
from distributed.security import Security
from distributed.worker import WORKER_ANY_RUNNING

from incontext_linear.sweeps.config import SweepError

VARIANTS_PER_GPU = 3
"""Variants that share one GPU, unless the command line says otherwise."""

ALLOWED_DEATHS = 2
"""Workers of a local cluster that one task may lose; with one more it has failed."""

_HERE = "127.0.0.1"
_NO_PAGES = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask's processes listen for HTTP whatever they are told; so at least they answer nothing."""

_SILENT = {"DASK_LOGGING__DISTRIBUTED": "critical"}
"""For a worker that starts: what it says of its addresses is no news to who runs a sweep."""

_REPORT_EVERY = 0.25  # seconds between two reports of a task's progress
_CONNECT_TIMEOUT = 10  # seconds

WORKER_TIMEOUT = 60.0
"""Seconds without a worker that can run a task after which a sweep gives up."""

SILENCE = 600.0
"""Seconds without a report of a running task after which the user is told."""

Report = Callable[[dict[str, Any]], None]
Work = Callable[[Any, Report], dict[str, Any]]


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


def plan_machine(
    num_tasks: int, num_gpus: int, num_threads: int = 1, num_workers: int | None = None
) -> Machine:
    """Size a local cluster: on a CPU as many workers as have cores for their threads, on GPUs
    `VARIANTS_PER_GPU` each, never more than tasks.

    Args:
        num_tasks: how many there are to run.
        num_gpus: GPUs to use; 0: the CPU.
        num_threads: of each task. Results depend on it in their last bits, so it is never chosen
            here: a sweep that goes on with fewer tasks left must give the same.
        num_workers: in place of the size that would be chosen.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = tuple((visible or [str(index) for index in range(num_gpus)])[:num_gpus])
    fitting = VARIANTS_PER_GPU * num_gpus if num_gpus else CPU_COUNT // num_threads
    return Machine(max(1, min(num_workers or fitting, num_tasks)), num_threads, gpus)


@contextlib.contextmanager
def local_cluster(machine: Machine, environment: dict[str, str]) -> Iterator[Client]:
    """Worker processes on this machine, which end with the block, at once if it is left by an
    exception. Nothing is reached from other machines, and only with a key that is made here.

    Args:
        machine: how many, and what each gets.
        environment: variables that they start with.
    """
    settings = {
        # In place of Dask's own, with which malloc gives back every free page: training took twice
        # as long.
        "distributed.nanny.pre-spawn-environ": _thread_limits(machine.num_threads)
        | _SILENT
        | environment,
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,
        # Dask restarts a worker that was silent for minutes: here the whole machine slept.
        "distributed.scheduler.worker-ttl": None,
        **_NO_PAGES,
    }
    # Any user of the machine can connect to a port, and whoever speaks to a scheduler can run code.
    security = Security.temporary()
    scheduler = {
        "host": _HERE,
        "port": 0,
        "protocol": "tls",
        "security": security,
        "dashboard": False,
        "dashboard_address": f"{_HERE}:0",
    }
    with tempfile.TemporaryDirectory() as scratch, dask.config.set(settings):
        workers = {
            index: _worker(machine, index, scratch, security)
            for index in range(machine.num_workers)
        }
        cluster = None
        try:
            with _terminal_blocked():
                cluster = SpecCluster(
                    scheduler={"cls": Scheduler, "options": scheduler},
                    workers=workers,
                    security=security,
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


def _worker(machine: Machine, index: int, scratch: str, security: Security) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": _HERE,
        "protocol": "tls",
        "security": security,
        "config": _NO_PAGES,
        "nthreads": 1,
        "memory_limit": 0,
        "local_directory": scratch,
        "dashboard": False,
    }
    if machine.gpus:
        options["env"] = {"CUDA_VISIBLE_DEVICES": machine.gpus[index % len(machine.gpus)]}
    return {"cls": Nanny, "options": options}


@contextlib.contextmanager
def _terminal_blocked() -> Iterator[None]:
    """Ctrl-C, and the end of a terminal, reach every process in it; what is started here, and its
    workers, shall not see them: the driver does, and ends the workers.

    A blocked signal stays blocked in threads and processes started meanwhile, and in those that
    they start.
    """
    multiprocessing.resource_tracker.ensure_running()  # on its way it unblocks signals
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
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
def running_cluster(
    address: str, say: Callable[[str], None], worker_timeout: float = WORKER_TIMEOUT
) -> Iterator[Client]:
    """A cluster that was started elsewhere, and goes on after the block.

    Args:
        address: of its scheduler.
        say: takes a line for the user, such as what is waited for.
        worker_timeout: seconds to wait for its first worker.

    Raises:
        SweepError: if there is none at the address, it has no worker, or one that lacks this
            package or runs several tasks at once.
    """
    try:
        client = Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"--scheduler {address}: no Dask scheduler answers there ({error})"
        ) from None
    except TypeError as error:  # Dask's answer where it has no certificate to show
        raise SweepError(
            f"--scheduler {address}: {error}; allowed: tcp://, or Dask's settings "
            "distributed.comm.tls (ca-file, client.cert, client.key) filled in"
        ) from None
    with client:
        if not _workers(client):
            say(f"waiting for a worker to connect to {address}, {worker_timeout:g} s at most")
            try:
                client.wait_for_workers(1, worker_timeout)
            except TimeoutError:
                raise SweepError(_no_worker(client, worker_timeout)) from None
        _check_workers(client)
        yield client


def _no_worker(client: Client, seconds: float) -> str:
    if isinstance(client.cluster, SpecCluster):
        return f"no worker process on this machine in {seconds:g} s"
    return (
        f"--scheduler {client.scheduler.address}: no worker in {seconds:g} s; start one with `dask "
        f"worker {client.scheduler.address} --nthreads 1`, or wait longer with --worker-timeout"
    )


def _check_workers(client: Client) -> None:
    where = f"--scheduler {client.scheduler.address}"
    for name, info in _workers(client).items():
        if info["nthreads"] > 1:
            raise SweepError(
                f"{where}: worker {name} has {info['nthreads']} threads, but a variant needs a "
                "process of its own; allowed: workers started with --nthreads 1"
            )
    answers = client.run(_project_version, on_error="return")
    for name, answer in answers.items():
        if isinstance(answer, BaseException):
            raise SweepError(
                f"{where}: worker {name} cannot run this project ({answer}); allowed: workers "
                "started where the package and its dependencies are installed"
            )


def _project_version() -> str:
    """On a worker: only where this module can be imported."""
    return __name__


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
    """The workers that are there now, by address; none if the scheduler does not answer.

    `Client.scheduler_info` is no use: every two seconds the client's own call takes the workers out
    of the answer that it keeps and returns.
    """

    async def ask() -> dict[str, dict[str, Any]]:
        scheduler: Any = client.scheduler
        if scheduler is None:  # while the client connects again
            return {}
        try:
            return (await scheduler.identity(n_workers=-1))["workers"]
        except OSError:
            return {}

    found: Any = client.sync(ask)
    return found


@dataclass(frozen=True)
class Task:
    """One call of the work, by name."""

    name: str
    arguments: Any
    """What the work is called with; must be importable where the workers are."""
    resources: dict[str, float]


def execute(
    client: Client,
    work: Work,
    tasks: Sequence[Task],
    on_event: Callable[[str, dict[str, Any]], None],
    on_end: Callable[[str, dict[str, Any]], Sequence[Task] | None],
    say: Callable[[str], None] = lambda line: None,
    worker_timeout: float = WORKER_TIMEOUT,
) -> None:
    """Run all tasks, each on a worker of its own, as many at once as there are workers.

    Args:
        client: of the cluster.
        work: called in a worker process with a task's arguments and a function for its reports;
            answers a plain dictionary, also where it fails. Must be importable there.
        tasks: what to run, in this order; all ask for the same resources.
        on_event: called with a task's name and each of its reports, in another thread.
        on_end: called with a task's name and its answer; ``{"status": "failed", "error": …}`` if it
            has none because its workers died. What it gives are tasks that follow; they are next.
        say: takes a line for the user, such as what is waited for.
        worker_timeout: seconds to go on without a worker that could run a task.

    Raises:
        SweepError: if the scheduler is gone, cancelled the tasks for somebody else, or had no
            worker for a task for too long.
    """
    topic, waiting, running = f"sweep-{uuid.uuid4().hex}", list(reversed(tasks)), {}
    idle = _Idleness(client, tasks[0].resources if tasks else {}, say, worker_timeout)
    silence = _Silence(say)

    def take(event: tuple[float, dict[str, Any]]) -> None:
        told = event[1]
        silence.heard(told["task"])
        on_event(told["task"], told["report"])

    client.subscribe_topic(topic, take)
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
                silence.heard(task.name)
            idle.check()
            silence.check(running.values())
            with contextlib.suppress(TimeoutError):
                wait(list(running), timeout=1, return_when="FIRST_COMPLETED")
            for future in [future for future in running if future.done()]:
                waiting += reversed(on_end(running.pop(future), _answer(future)) or ())
    except CancelledError as error:
        raise SweepError(f"Dask has let go of what was running: {error}") from None
    finally:
        if running and client.status == "running":
            if isinstance(client.cluster, SpecCluster):
                _kill_workers(client.cluster)
            # Tasks on workers that are not ours to kill notice at their next report, and stop.
            client.cancel(list(running), force=True)


class _Silence:
    """Says, once, that a running task has reported nothing for long: it may hang, and Dask, whose
    worker still answers, would wait for it without a word.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say, self._heard = say, dict[str, float]()

    def heard(self, name: str) -> None:
        """A task has begun, or reported."""
        self._heard[name] = time.monotonic()

    def check(self, running: Iterable[str]) -> None:
        """Tell of those that are silent."""
        for name in running:
            if time.monotonic() - self._heard[name] > SILENCE:
                self._heard[name] = math.inf  # once, unless it reports again
                self._say(
                    f"{name} has reported nothing for {SILENCE / 60:g} minutes; if it hangs, "
                    "Ctrl-C, and the same command goes on with what is left"
                )


class _Idleness:
    """Says, once, that no worker is there that could run a task, and gives up after a time."""

    def __init__(
        self,
        client: Client,
        resources: dict[str, float],
        say: Callable[[str], None],
        timeout: float,
    ):
        self._client, self._resources = client, resources
        self._say, self._timeout = say, timeout
        self._since: float | None = None

    def check(self) -> None:
        """Look at the workers that are there now.

        Raises:
            SweepError: if there has been none for too long.
        """
        if num_able(self._client, self._resources):
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
            self._say(f"waiting for a worker, {self._timeout:g} s at most")
        elif time.monotonic() - self._since > self._timeout:
            raise SweepError(_no_worker(self._client, self._timeout))


def _answer(future: Any) -> dict[str, Any]:
    try:
        return future.result()
    except KilledWorker as error:
        deaths = error.allowed_failures + 1
        reason = f"its worker process died {deaths} times in a row (killed, or out of memory)"
    except Exception as error:
        reason = f"Dask could not run it: {type(error).__name__}: {error}"
    return {"status": "failed", "error": reason}


def _perform(work: Work, name: str, arguments: Any, topic: str) -> dict[str, Any]:
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
