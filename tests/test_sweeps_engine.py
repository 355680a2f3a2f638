"""The engine alone, with worker processes that do next to nothing, and die."""

import contextlib
import os
import signal
import time

import psutil
import pytest
from distributed import Client, LocalCluster

from incontext_linear.sweeps import engine
from incontext_linear.sweeps.config import SweepError
from incontext_linear.sweeps.engine import (
    Machine,
    Task,
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
            client, work, tasks, lambda name, event: events.append((name, event["pid"])), answers.__setitem__
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
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
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
            execute(client, never_ends, [Task("endless", {"folder": tmp_path}, {})], interrupt, print)
        deadline = time.monotonic() + 10
        while not (tmp_path / "cancelled").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_workers_are_killed_if_the_block_is_left_by_an_exception():
    with contextlib.suppress(KeyboardInterrupt), local_cluster(Machine(1, 1), {}) as client:
        pids = set(client.run(os.getpid).values())
        client.submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert gone(pids)


def test_a_running_cluster_whose_workers_would_mix_variants_in_one_process_is_refused():
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            protocol="tcp://",
            dashboard_address=None,
            memory_limit=0,
        ) as cluster,
        pytest.raises(SweepError, match=r"has 2 threads.*allowed: workers started with --nthreads 1"),
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
