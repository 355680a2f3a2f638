"""Signals sent to real processes."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from incontext_linear.runs.interrupts import interruptible, uninterrupted

pytestmark = pytest.mark.slow

WORK = """
import signal, sys, time
from incontext_linear.runs.interrupts import interruptible
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    with interruptible(until_exit=True):
        print("working", flush=True)
        time.sleep(3)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(0.5)
    print("put in order", flush=True)
    sys.exit(130)
"""

START = """
import sys, time
sys.argv[0] = "kedro"
from incontext_linear.runs.interrupts import quiet_start
with quiet_start():
    print("importing", flush=True)
    try:
        time.sleep(30)
    except BaseException as error:  # as NumPy does with what comes while it is imported
        raise ImportError("broken installation") from error
"""


END = """
import atexit, sys, time
sys.argv[0] = "kedro"
from incontext_linear.runs.interrupts import interruptible
atexit.register(lambda: (print("ending", flush=True), time.sleep(30)))
with interruptible(until_exit=True):
    pass
"""


def start(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_interrupts_and_a_second_one_does_not_disturb_what_follows(number):
    process = start(WORK)
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    assert process.stdout.readline() == "interrupted\n"
    for again in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(again)
    output, error = process.communicate(timeout=30)
    assert (output, error, process.returncode) == ("put in order\n", "", 130)


def test_what_nohup_ignores_stays_ignored():
    process = start(WORK, "nohup")
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGHUP)
    output, error = process.communicate(timeout=30)
    assert (output, error, process.returncode) == ("", "", 0)


def test_ctrl_c_during_imports_is_one_line():
    process = start(START)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", 130)
    assert error.strip() == "Interrupted before anything was begun."


def test_ctrl_c_while_the_process_ends_by_itself_ends_it_without_a_traceback():
    process = start(END)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=30)
    assert (output, error, process.returncode) == ("", "", -signal.SIGINT)


def interrupted(inside, after):
    """What is done where these signals come in what must not be left, and behind it."""
    done = []
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        with uninterrupted():
            for number in inside:
                signal.raise_signal(number)
            done.append("whole")
        for number in after:
            signal.raise_signal(number)
        done.append("went on")
    return done


def test_a_signal_waits_for_the_end_of_what_must_not_be_left_half_done():
    assert interrupted([], []) == ["whole", "went on"]
    assert interrupted([signal.SIGTERM, signal.SIGINT], []) == ["whole"]
    assert interrupted([], [signal.SIGTERM]) == ["whole"]


def handlers():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def terminated_within_two_blocks():
    with interruptible():
        outer = handlers()
        with interruptible():
            assert handlers() == outer
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1)


def test_signals_are_as_before_after_the_block_and_a_block_within_changes_nothing():
    before = handlers()
    with pytest.raises(KeyboardInterrupt):
        terminated_within_two_blocks()
    assert handlers() == before
