"""The engine alone, with worker processes that do next to nothing, and die."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, get_worker
from distributed.core import Status

from incontext_linear.sweeps import engine
from incontext_linear.sweeps.config import SweepError
from incontext_linear.sweeps.engine import (
    Machine,
    Task,
    check_resources,
    execute,
    local_cluster,
    plan_machine,
    running_cluster,
)

DEATHS = engine.ALLOWED_DEATHS + 1


def work(arguments, report):
    """What the workers run: report, and then die, fail, or answer, as told."""
    report({"stage": "starting", "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()})
    attempts = arguments["folder"] / arguments["name"]
    with attempts.open("a") as file:
        file.write("x")
    if attempts.stat().st_size <= arguments["deaths"]:
        time.sleep(0.2)  # the report is on its way
        os.kill(os.getpid(), signal.SIGKILL)
    return {"status": "done", "attempts": attempts.stat().st_size}


def test_tasks_whose_workers_die_run_again_and_one_that_kills_all_its_workers_fails(tmp_path):
    deaths = {"dies_once": 1, "fine": 0, "kills_all": DEATHS, "fine_too": 0}
    tasks = [
        Task(name, {"name": name, "folder": tmp_path, "deaths": number}, {})
        for name, number in deaths.items()
    ]
    events, answers = [], {}
    with local_cluster(Machine(2, 1), {"SOME_VARIABLE": "x"}) as client:
        pids = set(client.run(os.getpid).values())
        assert set(client.run(os.getenv, "SOME_VARIABLE").values()) == {"x"}
        execute(
            client,
            work,
            tasks,
            lambda name, event: events.append((name, event["pid"])),
            answers.__setitem__,
        )
        pids |= set(client.run(os.getpid).values())
    assert answers.pop("kills_all") == {
        "status": "failed",
        "error": f"its worker process died {DEATHS} times in a row (killed, or out of memory)",
    }
    assert {name: answer["attempts"] for name, answer in answers.items()} == {
        "dies_once": 2,
        "fine": 1,
        "fine_too": 1,
    }
    assert {name for name, _ in events} == set(deaths)
    assert gone(pids | {pid for _, pid in events})


def gone(pids):
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10
    )
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def never_ends(arguments, report):
    """Reports until it is told that nobody waits."""
    try:
        while True:
            report({"stage": "working"})
            time.sleep(0.05)
    except engine.TaskCancelled:
        (arguments["folder"] / "cancelled").touch()
        raise


def test_tasks_stop_at_their_next_report_once_nobody_waits_for_them(tmp_path):
    seen = []

    def interrupt(name, event):
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(name)

    with local_cluster(Machine(1, 1), {}) as owner, Client(owner.scheduler.address) as client:
        with pytest.raises(KeyboardInterrupt):
            execute(
                client, never_ends, [Task("endless", {"folder": tmp_path}, {})], interrupt, print
            )
        deadline = time.monotonic() + 10
        while not (tmp_path / "cancelled").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def pauses_its_worker(arguments, report):
    """What happens to a worker that holds more memory than Dask likes: it takes no new task."""
    worker = get_worker()
    worker.loop.add_callback(setattr, worker, "status", Status[arguments["status"]])
    while worker.status == Status.running:
        time.sleep(0.01)
    report({"stage": worker.status.name})
    return {"status": "done"}


@pytest.mark.parametrize("status", ["paused", "closing_gracefully"])
def test_a_task_goes_on_in_a_worker_that_takes_no_new_ones(status):
    answers = {}
    with local_cluster(Machine(1, 1), {}) as client:
        tasks = [Task("first", {"status": status}, {})]
        execute(client, pauses_its_worker, tasks, lambda *event: None, answers.__setitem__)
    assert answers == {"first": {"status": "done"}}


def leaves_once(arguments, report):
    """Stops in the middle of the first attempt, since its worker closes; then goes through."""
    mark = arguments["folder"] / "left"
    if mark.exists():
        return {"status": "done"}
    mark.touch()
    worker = get_worker()
    worker._status = Status.closing  # without the rest of closing, which would take the answer away
    try:
        report({"stage": "working"})
    except engine.TaskCancelled:
        worker._status = Status.running
        return {"status": "interrupted"}
    raise AssertionError


def test_a_task_that_a_closing_worker_stops_is_run_again(tmp_path):
    answers = {}
    with local_cluster(Machine(1, 1), {}) as client:
        tasks = [Task("moves", {"folder": tmp_path}, {})]
        execute(client, leaves_once, tasks, lambda *event: None, answers.__setitem__)
    assert answers == {"moves": {"status": "done"}}


def test_a_scheduler_that_lets_go_of_the_tasks_is_named_as_the_cause(tmp_path):
    seen = threading.Event()
    with local_cluster(Machine(1, 1), {}) as owner, Client(owner.scheduler.address) as client:
        restart = threading.Thread(target=lambda: seen.wait() and owner.restart())
        restart.start()
        tasks = [Task("endless", {"folder": tmp_path}, {})]
        with pytest.raises(SweepError, match="Dask has let go of what was running: "):
            execute(client, never_ends, tasks, lambda *event: seen.set(), print)
        restart.join()


def small_cluster(**options):
    """A cluster in this process."""
    known = {"n_workers": 1, "processes": False, "protocol": "tcp://", "dashboard_address": None}
    return LocalCluster(**known, memory_limit=0, **options)


def test_what_no_worker_could_ever_give_is_refused_instead_of_waited_for():
    with (
        small_cluster(threads_per_worker=1, resources={"GPU": 1}) as cluster,
        Client(cluster) as client,
    ):
        check_resources(client, {"GPU": 0.33})
        check_resources(client, {})
        with pytest.raises(
            SweepError, match=r"takes 2 of a worker's resource GPU, .* more than 1; allowed"
        ):
            check_resources(client, {"GPU": 2.0})


def counts_tasks_given(arguments, report):
    """Runs for a moment, and counts the tasks that its worker has been given."""
    time.sleep(0.3)
    return {"status": "done", "tasks": len(get_worker().state.tasks)}


def test_no_task_is_given_to_a_worker_that_runs_another_where_some_workers_lack_what_it_takes():
    answers = {}
    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False}
    workers = {
        name: {"cls": Worker, "options": options | {"resources": given}}
        for name, given in (("cpu", {}), ("gpu", {"GPU": 1}), ("another cpu", {}))
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0"}}
    with SpecCluster(scheduler=scheduler, workers=workers) as cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        assert (engine.num_able(client, {"GPU": 0.33}), engine.num_able(client, {})) == (1, 3)
        tasks = [Task(name, {}, {"GPU": 0.33}) for name in "abc"]
        execute(client, counts_tasks_given, tasks, lambda *event: None, answers.__setitem__)
    assert [answer["tasks"] for answer in answers.values()] == [1, 1, 1]


def test_workers_are_killed_if_the_block_is_left_by_an_exception():
    with contextlib.suppress(KeyboardInterrupt), local_cluster(Machine(1, 1), {}) as client:
        pids = set(client.run(os.getpid).values())
        client.submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert gone(pids)


def test_a_running_cluster_whose_workers_would_mix_variants_in_one_process_is_refused():
    with (
        small_cluster(threads_per_worker=2) as cluster,
        pytest.raises(
            SweepError, match=r"has 2 threads.*allowed: workers started with --nthreads 1"
        ),
        running_cluster(cluster.scheduler_address),
    ):
        pass


def test_a_machine_is_filled_but_no_more_workers_than_tasks_are_started(monkeypatch):
    monkeypatch.setattr(engine, "CPU_COUNT", 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert plan_machine(20, 0) == Machine(8, 1)
    assert plan_machine(2, 0) == Machine(2, 4)
    assert plan_machine(20, 0, num_workers=3) == Machine(3, 2)
    assert plan_machine(20, 2) == Machine(2 * engine.VARIANTS_PER_GPU, 1, ("0", "1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert plan_machine(1, 2).gpus == ("5", "7")


@pytest.mark.parametrize(
    ("device", "on_gpu_cluster", "asks"),
    [
        ("cpu", True, {}),
        ("auto", True, {"GPU": 0.5}),
        ("auto", False, {}),
        ("cuda", False, {"GPU": 0.5}),
    ],
)
def test_a_variant_asks_for_a_gpu_if_its_device_is_one(device, on_gpu_cluster, asks):
    assert engine.gpu_share(device, on_gpu_cluster, 0.5) == asks
