"""Two nodes at a time: computed in other processes, loaded and saved here, and the same numbers."""

import copy
import math
import multiprocessing
import operator
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest
import torch
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from support.project import copy_project, kedro, runs

from incontext_linear.learner import devices
from incontext_linear.runs.session import SIDE_BY_SIDE
from incontext_linear.runs.side_by_side import LONG, SideBySideRunner

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


class Recorder:
    """A hook that notes what is called, for which node or dataset, and in which thread."""

    def __init__(self):
        self.calls, self.threads = [], set()

    def _note(self, what, name):
        self.calls.append((what, name))
        self.threads.add(threading.current_thread())

    @hook_impl
    def after_dataset_loaded(self, dataset_name):
        self._note("loaded", dataset_name)

    @hook_impl
    def before_node_run(self, node):
        self._note("begins", node.name)

    @hook_impl
    def after_node_run(self, node):
        self._note("ends", node.name)

    @hook_impl
    def on_node_error(self, node, error):
        self._note("fails", node.name)

    @hook_impl
    def before_dataset_saved(self, dataset_name):
        self._note("saves", dataset_name)

    @hook_impl
    def after_dataset_saved(self, dataset_name):
        self._note("saved", dataset_name)


@pytest.fixture
def no_process_is_left():
    """Of those that a test starts: other tests' may still be there."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.fixture
def one_thread():
    """As a run side by side has them, a node."""
    with devices.one_thread():
        yield


def carry_out(nodes, recorder, **inputs):
    """Run nodes while a hook notes what is called; gives the outputs' values."""
    manager = _create_hook_manager()
    manager.register(recorder)
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in inputs.items()})
    outputs = SideBySideRunner().run(Pipeline(nodes), catalog, manager)
    return {name: dataset.load() for name, dataset in outputs.items()}


@pytest.mark.usefixtures("no_process_is_left")
def test_a_node_is_computed_in_another_process_on_what_its_forerunners_gave():
    nodes = [
        node(operator.add, ["a", "b"], "sum", name="add"),
        node(operator.mul, ["sum", "b"], "product", name="multiply"),
        node(os.getpid, None, "pid", name="where"),
    ]
    outputs = carry_out(nodes, Recorder(), a=2, b=3)
    assert outputs["product"] == (2 + 3) * 3
    assert outputs["pid"] != os.getpid()


class CalledInWorker(MemoryDataset):
    """What it is given to save has been called by the process that computed it."""

    def in_worker(self):
        return operator.call


def test_what_is_saved_is_made_ready_where_it_was_computed_unless_a_node_reads_it():
    catalog = DataCatalog({"a": MemoryDataset(os.getpid), "b": CalledInWorker()})
    catalog["c"] = CalledInWorker()
    nodes = [node(copy.copy, "a", "b", name="read"), node(copy.copy, "b", "c", name="unread")]
    SideBySideRunner().run(Pipeline(nodes), catalog, _create_hook_manager())
    assert isinstance(catalog.load("c"), int)  # and could not be called, had "b" been
    assert catalog.load("c") != os.getpid()


def test_long_nodes_begin_first_and_then_those_that_others_wait_for():
    nodes = [
        node(operator.neg, "a", "b", name="waited_for"),
        node(operator.neg, "b", "c", name="waits"),
        node(operator.neg, "a", "d", name="another"),
        node(operator.neg, "a", "e", name="long", tags=LONG),
    ]
    recorder = Recorder()
    carry_out(nodes, recorder, a=1)
    begun = [name for what, name in recorder.calls if what == "begins"]
    assert begun[:2] == ["long", "waited_for"]


def test_on_a_gpu_nodes_run_one_after_the_other_in_the_run_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    outputs = carry_out([node(os.getpid, None, "pid", name="where")], Recorder())
    assert outputs["pid"] == os.getpid()


def test_two_nodes_run_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    # Opening one end of a pipe waits for the other: alone, either would wait until its time is up.
    write, read = (
        ["timeout", "120", "sh", "-c", f"{command} {tmp_path}/pipe"]
        for command in ("echo met >", "cat <")
    )
    nodes = [
        node(subprocess.check_output, "write", "written", name="write"),
        node(subprocess.check_output, "read", "was_read", name="read"),
    ]
    outputs = carry_out(nodes, Recorder(), write=write, read=read)
    assert outputs["was_read"] == b"met\n"


def test_hooks_are_called_in_kedros_order_in_the_thread_of_the_run():
    nodes = [
        node(operator.neg, "a", "b", name="first"),
        node(operator.neg, "b", "c", name="second"),
    ]
    recorder = Recorder()
    carry_out(nodes, recorder, a=1)
    expected = []
    for name, read, written in (("first", "a", "b"), ("second", "b", "c")):
        expected += [("loaded", read), ("begins", name), ("ends", name)]
        expected += [("saves", written), ("saved", written)]
    assert recorder.calls == expected
    assert recorder.threads == {threading.current_thread()}


@pytest.mark.usefixtures("no_process_is_left")
def test_an_error_ends_the_run_and_what_runs_beside_it():
    nodes = [
        node(math.sqrt, "a", "root", name="fails"),
        node(time.sleep, "long", "slept", name="sleeps"),
    ]
    recorder = Recorder()
    own = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,))
    own.start()
    try:
        with pytest.raises(ValueError, match="math domain error"):
            carry_out(nodes, recorder, a=-1.0, long=3600)
        assert own.is_alive()  # a process of the program's own is nobody else's to end
    finally:
        own.kill()
        own.join()
    assert ("fails", "fails") in recorder.calls
    assert ("ends", "sleeps") not in recorder.calls


SLEEPING = """
import time
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from incontext_linear.runs.side_by_side import LONG, SideBySideRunner

if __name__ == "__main__":
    catalog = DataCatalog({"long": MemoryDataset(3600)})
    nodes = [node(time.sleep, "long", name, name=name) for name in ("a", "b")]
    SideBySideRunner().run(Pipeline(nodes), catalog, _create_hook_manager())
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    with subprocess.Popen([sys.executable, tmp_path / "sleeping.py"], cwd=tmp_path) as process:
        started = psutil.Process(process.pid)
        limit = time.monotonic() + 120
        # The server that forks the workers, what tracks their resources, and the two.
        while len(started.children(recursive=True)) < 4 and time.monotonic() < limit:
            time.sleep(0.2)
        workers = started.children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert len(workers) >= 4
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, [worker.cmdline() for worker in alive]


STARTING = """
import signal, time
from incontext_linear.runs.side_by_side import SideBySideRunner

signal.signal(signal.SIGINT, lambda *_: None)
SideBySideRunner()
print("started", flush=True)
time.sleep(1)
"""


def test_ctrl_c_does_not_interrupt_the_imports_of_what_workers_are_forked_from():
    pipe = subprocess.PIPE
    options = {"stdout": pipe, "stderr": pipe, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", STARTING], **options) as process:
        assert process.stdout is not None
        assert "started\n" in iter(process.stdout.readline, "")  # behind Kedro's log
        time.sleep(0.5)  # it is at its imports, which take seconds
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert "Traceback" not in error


PAGE_FAULTS = """
import resource, torch
from incontext_linear.runs.worker import keep_freed_memory

def faults_of_allocating():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**18) for _ in range(32)]  # 256 pages each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*(faults_of_allocating() for _ in range(3)))
keep_freed_memory()
print(*(faults_of_allocating() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another system's library")
def test_freed_memory_is_kept_for_what_is_allocated_next():
    # As a process may find it: what is large is given back at once. By itself the library raises
    # this limit now and then.
    gives_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    program = [sys.executable, "-c", PAGE_FAULTS]
    output = subprocess.check_output(program, text=True, env=gives_back)
    before, after = (list(map(int, line.split())) for line in output.splitlines())
    assert min(before) > 32 * 256 / 2
    assert after[-1] < 32 * 256 / 10


def test_a_number_of_workers_that_is_none_is_refused():
    with pytest.raises(ValueError, match="num_workers=0; allowed"):
        SideBySideRunner(num_workers=0)


def test_a_run_gives_the_same_tables_and_metrics_as_one_node_after_the_other(tmp_path, one_thread):
    pipelines = "data_generation,model_training,baseline_estimation,behavioral_comparison"
    found = []
    for name, options in {"one": [], "two": ["--runner", SIDE_BY_SIDE]}.items():
        project = copy_project(tmp_path / name)
        command = ("run", "--env", "test", "--pipelines", pipelines, *options)
        result = kedro(project, *command, drawn=name == "two")
        assert result.returncode == 0, result.output[-3000:]
        written = sorted((project / "data/test").rglob("*.parquet"))
        (run,) = runs(project)
        metrics = {
            metric: value
            for metric, value in run.data.metrics.items()
            if not metric.startswith(("run/", "system/"))
        }
        tables = {path.name: pd.read_parquet(path) for path in written}
        found.append((tables, metrics, run.data.tags["num_threads"], run.info.status))
    (tables, metrics, *facts), (other_tables, other_metrics, *other_facts) = found
    assert len(tables) > 5
    assert len(metrics) > 10
    assert tables.keys() == other_tables.keys()
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, other_tables[name], check_exact=True, obj=name)
    assert metrics == other_metrics
    assert facts == other_facts == ["1", "FINISHED"]
