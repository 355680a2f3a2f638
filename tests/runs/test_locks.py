"""Locks between real processes, one of which is killed."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from incontext_linear.runs.locks import LockedError, exclusive, holds, is_held

HOLD = """
import sys, time
from pathlib import Path
from incontext_linear.runs.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path):
    """Another process that holds a lock for so many seconds."""
    started = []

    def hold(path, seconds=60.0):
        command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path, hold):
    path = tmp_path / "data" / ".lock"
    process = hold(path)
    assert is_held(path)
    assert not holds(path)
    with pytest.raises(LockedError) as refusal, exclusive(path, patience=0.1):
        pass
    holder = refusal.value.holder
    assert holder.pid == process.pid
    assert str(path.parent) in str(refusal.value)
    assert f"process {process.pid} on {holder.host}, since {holder.since}" in str(refusal.value)


def test_the_lock_of_a_killed_process_binds_nobody_and_a_released_one_leaves_no_file(
    tmp_path, hold
):
    path = tmp_path / ".lock"
    process = hold(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()
    assert not is_held(path)
    with exclusive(path):
        assert holds(path)
        assert is_held(path)
    assert not path.exists()
    assert not is_held(path)


def test_whoever_is_patient_gets_the_lock_once_it_is_released(tmp_path, hold):
    path = tmp_path / ".lock"
    hold(path, seconds=0.6)
    with exclusive(path, patience=20.0):
        assert holds(path)


def test_a_look_at_the_lock_refuses_nobody(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    looking, ended = threading.Event(), threading.Event()

    def look():
        import fcntl

        with path.open() as file:  # as `is_held` does, for longer
            fcntl.flock(file, fcntl.LOCK_SH)
            looking.set()
            time.sleep(0.2)
        ended.set()

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with exclusive(path):
        assert ended.is_set()
    thread.join()


def test_of_many_that_want_the_lock_one_has_it_at_a_time(tmp_path):
    path, log, errors = tmp_path / ".lock", [], []

    def work(name):
        try:
            for _ in range(5):
                with exclusive(path, patience=30.0):
                    log.append(("in", name))
                    time.sleep(0.002)
                    log.append(("out", name))
        except LockedError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(log) == 60
    for (entered, name), (left, other) in zip(log[::2], log[1::2], strict=True):
        assert (entered, left, name) == ("in", "out", other)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match="file"), exclusive(file / "data" / ".lock"):
        pass
