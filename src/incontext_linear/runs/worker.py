"""How a worker process of `side_by_side` begins; a module of its own, so that it loads little."""

import logging.config
import multiprocessing
import os
import signal
import threading
from typing import Any

import torch
from threadpoolctl import threadpool_limits


def begin(log_settings: dict[str, Any]) -> None:
    """Set one thread, the run's log, and an end with the run, whatever ends that.

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


def _end_with_the_run() -> None:
    """End when the run's process has ended, even if it was killed: its lock is gone then."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
