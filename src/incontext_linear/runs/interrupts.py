"""Ctrl-C, a batch system's SIGTERM and a closed terminal's SIGHUP are one thing: stop, cleanly."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

EXIT_STATUS = 130
"""After an interruption, as shells have it for Ctrl-C."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise once; whatever comes while the interrupted work is put in order changes nothing."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def interruptible(*, until_exit: bool = False) -> Iterator[None]:
    """While the block runs, the first of these signals raises KeyboardInterrupt in it, and further
    ones are ignored.

    Inside another such block, or outside the main thread, nothing is changed; a signal that was
    ignored before (``nohup``) stays so.

    Args:
        until_exit: the process ends with the block. After an interruption the signals stay ignored;
            otherwise Ctrl-C ends what is left of a command line at once, where an exception would
            be raised in the middle of what libraries do at exit.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if threading.current_thread() is not threading.main_thread() or _interrupt in before.values():
        yield
        return
    previous = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if until_exit:
            previous = {}
        raise
    finally:
        if until_exit and previous.get(signal.SIGINT) and _is_command_line():
            previous[signal.SIGINT] = signal.SIG_DFL
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What is only half done must not be left: inside of `interruptible`, a signal that comes while
    the block runs waits for its end.
    """
    raising = [number for number in _SIGNALS if signal.getsignal(number) is _interrupt]
    if threading.current_thread() is not threading.main_thread():
        raising = []
    came: list[int] = []
    for number in raising:
        signal.signal(number, lambda signum, frame: came.append(signum))
    try:
        yield
    finally:
        for number in raising:
            signal.signal(number, _interrupt)
    if came:
        _interrupt(came[0], None)


@contextmanager
def quiet_start() -> Iterator[None]:
    """While the block imports for a command line, Ctrl-C ends the process at once: nothing was
    begun, and libraries take an exception in the middle of their import for an error of their own.
    Afterwards an interruption that nobody catches is one line instead of a traceback.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    if not (in_main_thread and _is_command_line() and handler is signal.default_int_handler):
        yield
        return
    _hide_traceback()
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _is_command_line() -> bool:
    """Whether this is ``kedro`` or ``python -m incontext_linear``, not a notebook or a test."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return name in ("kedro", "python -m kedro", "incontext_linear")


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"\nInterrupted before anything was begun.\n")
    os._exit(EXIT_STATUS)


def _hide_traceback() -> None:
    previous = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nInterrupted.", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = excepthook
