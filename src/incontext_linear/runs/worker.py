"""How a worker process of `side_by_side` begins; a module of its own, so that it loads little."""

import ctypes
import logging.config
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from kedro.pipeline.node import Node
from threadpoolctl import threadpool_limits

from incontext_linear.runs.garbage import leave_out


def begin(log_settings: dict[str, Any]) -> None:
    """Set one thread, the run's log, its use of memory, and an end with the run, whatever ends
    that.

    Args:
        log_settings: of `logging.config`.
    """
    for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal: the run itself ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    os.environ["TTY_COMPATIBLE"] = "0"  # to rich: log lines in the place of a bar
    logging.config.dictConfig(log_settings)
    threadpool_limits(1)
    torch.set_num_threads(1)
    keep_freed_memory()
    leave_out()


def compute(
    node: Node, inputs: dict[str, Any], prepare: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    """A node's outputs, those of ``prepare`` made ready to be saved."""
    outputs = node.run(inputs)
    return {name: prepare.get(name, _as_it_is)(value) for name, value in outputs.items()}


def _as_it_is(value: Any) -> Any:
    return value


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB of freed memory for what is allocated next, where this is glibc.

    Otherwise tensors of some hundred kilobytes go back to the system when they are freed, and the
    pages of the next ones are cleared and mapped anew: a fifth of the base learner's training.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system's library
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    mallopt(trim_threshold, 2**30)
    mallopt(top_pad, 2**26)
    mallopt(mmap_threshold, 2**25)  # no larger one is allowed


def _end_with_the_run() -> None:
    """End when the run's process has ended, even if it was killed: its lock is gone then."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
