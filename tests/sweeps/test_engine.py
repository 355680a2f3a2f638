"""The engine alone, with worker processes that do next to nothing, and die."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time

import dask.config
import psutil
import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, get_worker
from distributed.core import Status
from distributed.security import Security
from distributed.utils import get_mp_context

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

pytestmark = pytest.mark.slow  # Dask's workers are processes

DEATHS = engine.ALLOWED_DEATHS + 1
METHOD = "distributed.worker.multiprocessing-method"


@pytest.fixture(autouse=True)
def _forked():
    """Workers come from a process that has imported what this file does, and PyTorch with it, on
    which each would spend seconds.
    """
    with dask.config.set({METHOD: "forkserver"}):
        context = get_mp_context()  # the first time, it names what Dask itself would import
        context.set_forkserver_preload([engine.__name__, "psutil", "pytest"])
        yield


def test_workers_start_with_the_variables_that_they_are_given(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which would win
    spawned = dask.config.set({METHOD: "spawn"})  # Dask's own choice; a fork has its parent's
    with spawned, local_cluster(Machine(1, 3), {"SOME_VARIABLE": "x"}) as client:
        for name, value in {"SOME_VARIABLE": "x", "OMP_NUM_THREADS": "3"}.items():
            assert client.submit(os.getenv, name).result() == value


def work(arguments, report):
    """What the workers run: report, and then die, fail, or answer, as told."""
    report({"stage": "starting", "pid": os.getpid()})
    folder, name = arguments["folder"], arguments["name"]
    attempts = folder / name
    with attempts.open("a") as file:
        file.write("x")
    if attempts.stat().st_size <= arguments["deaths"]:
        time.sleep(0.5)  # the report is on its way
        deadline = time.monotonic() + 30
        while list(folder.glob("*.unseen")) and time.monotonic() < deadline:
            time.sleep(0.01)  # and so are answers, which would be lost with the worker
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{name}.unseen").touch()
    return {"status": "done", "attempts": attempts.stat().st_size}


def test_tasks_whose_workers_die_run_again_and_one_that_kills_all_its_workers_fails(tmp_path):
    deaths = {"dies_once": 1, "fine": 0, "kills_all": DEATHS, "fine_too": 0}
    tasks = [
        Task(name, {"name": name, "folder": tmp_path, "deaths": number}, {})
        for name, number in deaths.items()
    ]
    events, answers = [], {}

    def see(name, answer):
        answers[name] = answer
        (tmp_path / f"{name}.unseen").unlink(missing_ok=True)

    with local_cluster(Machine(2, 1), {}) as client:
        pids = set(client.run(os.getpid).values())
        execute(
            client,
            work,
            tasks,
            lambda name, event: events.append((name, event["pid"])),
            see,
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


def silent_for_a_while(arguments, report):
    """Begins, hangs for longer than a user would wait without a word, and ends."""
    report({"stage": "working"})
    time.sleep(4)
    return {"status": "done"}


def test_a_task_that_reports_nothing_for_long_is_told_of(monkeypatch):
    monkeypatch.setattr(engine, "SILENCE", 1.2)
    said, answers = [], {}
    with local_cluster(Machine(1, 1), {}) as client:
        task = Task("hangs", {}, {})
        execute(
            client, silent_for_a_while, [task], lambda *_: None, answers.__setitem__, said.append
        )
    assert answers == {"hangs": {"status": "done"}}
    # Once before its only report, if the worker was slow to begin, and once after it.
    assert 1 <= len(said) <= 2
    assert {line.partition(",")[0] for line in said} == {
        "hangs has reported nothing for 0.02 minutes; if it hangs"
    }


def second_client(owner):
    """Of the same cluster: its owner has the key."""
    return Client(owner.scheduler.address, security=owner.security)


def test_tasks_stop_at_their_next_report_once_nobody_waits_for_them(tmp_path):
    seen = []

    def interrupt(name, event):
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(name)

    with local_cluster(Machine(1, 1), {}) as owner, second_client(owner) as client:
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


def works_for_a_second(arguments, report):
    report({"stage": "starting", "pid": os.getpid()})
    time.sleep(1.0)
    return {"status": "done", "pid": os.getpid()}


def test_a_worker_that_slept_with_its_machine_goes_on_instead_of_being_replaced():
    started, answers = [], {}

    def on_event(name, event):
        started.append(event["pid"])
        os.kill(event["pid"], signal.SIGSTOP)
        threading.Timer(8.0, os.kill, (event["pid"], signal.SIGCONT)).start()

    # Dask's own limit is five minutes; it is never below ten heartbeats, five seconds.
    impatient = dask.config.set({"distributed.scheduler.worker-ttl": "1s"})
    with impatient, local_cluster(Machine(1, 1), {}) as client:
        tasks = [Task("sleeps", {}, {})]
        execute(client, works_for_a_second, tasks, on_event, answers.__setitem__)
    assert answers == {"sleeps": {"status": "done", "pid": started[0]}}
    assert len(started) == 1


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
    with local_cluster(Machine(1, 1), {}) as owner, second_client(owner) as client:
        restart = threading.Thread(target=lambda: seen.wait() and owner.restart())
        restart.start()
        tasks = [Task("endless", {"folder": tmp_path}, {})]
        with pytest.raises(SweepError, match="Dask has let go of what was running: "):
            execute(client, never_ends, tasks, lambda *event: seen.set(), print)
        restart.join()


def small_cluster(**options):
    """A cluster in this process."""
    known = {"n_workers": 1, "processes": False, "protocol": "tcp://", "dashboard_address": None}
    # Without a dashboard too it listens for HTTP, on a port that another scheduler may have.
    free_port = {"dashboard_address": ":0"}
    return LocalCluster(**(known | options), memory_limit=0, scheduler_kwargs=free_port)


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


def test_workers_are_seen_whatever_the_client_keeps_of_its_own_calls():
    with small_cluster(threads_per_worker=1) as cluster, Client(cluster) as client:
        asked = client._update_scheduler_info

        async def overtaken(n_workers=0):
            await asked(n_workers=0)  # as the client does by itself, without the workers

        client._update_scheduler_info = overtaken
        assert client.scheduler_info(n_workers=-1)["workers"] == {}  # the trap is there
        assert engine.num_able(client, {}) == 1


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
        running_cluster(cluster.scheduler_address, print),
    ):
        pass


def test_a_machine_is_filled_but_no_more_workers_than_tasks_are_started(monkeypatch):
    monkeypatch.setattr(engine, "CPU_COUNT", 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert plan_machine(20, 0) == Machine(8, 1)
    assert plan_machine(20, 0, num_threads=3) == Machine(2, 3)
    assert plan_machine(20, 0, num_threads=16) == Machine(1, 16)
    assert plan_machine(20, 0, num_workers=3) == Machine(3, 1)
    assert plan_machine(20, 2) == Machine(2 * engine.VARIANTS_PER_GPU, 1, ("0", "1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert plan_machine(1, 2).gpus == ("5", "7")


def test_how_many_tasks_are_left_does_not_change_the_threads_of_each(monkeypatch):
    monkeypatch.setattr(engine, "CPU_COUNT", 8)
    assert {plan_machine(left, 0).num_threads for left in range(1, 20)} == {1}
    assert {plan_machine(left, 2, num_threads=2).num_threads for left in range(1, 20)} == {2}


def listening(pid):
    """The sockets on which a process and its children take connections."""
    found = []
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [c.laddr for c in process.net_connections("inet") if c.status == "LISTEN"]
    return found


def test_a_local_cluster_is_reached_from_this_machine_alone_and_only_with_its_key():
    before = {address.port for address in listening(os.getpid())}
    with local_cluster(Machine(2, 1), {}) as client:
        client.wait_for_workers(2)
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        opened = [a for a in listening(os.getpid()) if a.port not in before]
        assert len(opened) >= 4  # the scheduler, two nannies, and what else Dask opens
        assert {a.ip for a in opened} == {"127.0.0.1"}
        for place in opened:
            for page in ("/info/main/workers.html", "/json/identity.json", "/health", "/metrics"):
                assert http_status(place, page) in (None, 404)
        strangers = {address.replace("tls", "tcp"): None, address: Security.temporary()}
        for place, security in strangers.items():
            with pytest.raises(OSError):  # noqa: PT011 (its words differ)
                Client(place, timeout=2, security=security)
        assert client.submit(sum, [1, 2]).result() == 3


def http_status(place, page):
    """What a web server answers there; None if what listens there is none."""
    connection = http.client.HTTPConnection(place.ip, place.port, timeout=2)
    try:
        connection.request("GET", page)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_a_scheduler_that_wants_certificates_is_refused_in_one_line_where_there_are_none():
    with (
        local_cluster(Machine(1, 1), {}) as client,
        pytest.raises(SweepError, match=r"TLS .*; allowed: tcp://, or Dask's settings") as error,
        running_cluster(client.scheduler.address, print),
    ):
        pass
    assert "\n" not in str(error.value)


def test_a_cluster_without_workers_is_waited_for_aloud_and_not_for_ever():
    said = []
    with (
        small_cluster(threads_per_worker=1) as cluster,
        contextlib.ExitStack() as stack,
    ):
        cluster.scale(0)
        with Client(cluster) as client:
            deadline = time.monotonic() + 20
            while client.scheduler_info()["workers"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with pytest.raises(SweepError, match=r"no worker in 0.5 s; start one with `dask worker"):
            stack.enter_context(running_cluster(cluster.scheduler_address, said.append, 0.5))
        assert len(said) == 1
        assert said[0].startswith("waiting for a worker to connect to tcp://")
        timer = threading.Timer(1.0, cluster.scale, [1])
        timer.start()
        with running_cluster(cluster.scheduler_address, said.append, 30.0) as client:
            assert len(client.scheduler_info()["workers"]) == 1
        timer.join()


def test_where_all_workers_are_lost_the_sweep_says_so_and_gives_up(tmp_path):
    said = []
    with small_cluster(threads_per_worker=1) as cluster, Client(cluster) as client:

        def lose(name, event):
            cluster.scale(0)

        tasks = [Task("endless", {"folder": tmp_path}, {})]
        with pytest.raises(SweepError, match="no worker"):
            execute(client, never_ends, tasks, lose, print, said.append, 1.0)
    assert said == ["waiting for a worker, 1 s at most"]


def test_a_worker_that_lacks_the_package_is_named_instead_of_waited_for(tmp_path):
    broken = tmp_path / "incontext_linear"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ModuleNotFoundError('no such package here')")
    with small_cluster(threads_per_worker=1, n_workers=0) as cluster:
        command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address]
        command += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        log = (tmp_path / "log").open("w")
        with log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as worker:
            try:
                with (
                    pytest.raises(SweepError, match=r"cannot run this project .*no such package"),
                    running_cluster(cluster.scheduler_address, print),
                ):
                    pass
            finally:
                worker.terminate()


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


def test_tasks_that_follow_from_an_answer_run_next_on_whatever_worker_is_free(tmp_path):
    order = []

    def on_end(name, answer):
        order.append(name)
        follow = [Task(f"after_{name}_{i}", arguments, {}) for i in range(2)]
        return follow if len(name) == 1 else []

    arguments = {"name": "x", "folder": tmp_path, "deaths": 0}
    with local_cluster(Machine(1, 1), {}) as client:
        tasks = [Task(name, arguments, {}) for name in "ab"]
        execute(client, work, tasks, lambda *event: None, on_end)
    assert order == ["a", "after_a_0", "after_a_1", "b", "after_b_0", "after_b_1"]
