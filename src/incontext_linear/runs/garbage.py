"""When Python looks for cyclic garbage: not while everything is imported and a run is prepared.

A search goes through all objects, a million once every library is loaded, and finds next to nothing
among them: a sixth of the time to the first node, and half a second each time later.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_stopped = False


@contextmanager
def no_search() -> Iterator[None]:
    """While the block runs, or until `search_again`, no garbage is looked for."""
    global _stopped
    if not gc.isenabled():  # by us, or by somebody who has reasons
        yield
        return
    gc.disable()
    _stopped = True
    try:
        yield
    finally:
        if _stopped:
            gc.enable()
            _stopped = False


def search_again() -> None:
    """Inside of `no_search`: everything is loaded. What there is by now is left out of all later
    searches. That happens once in a process: what is garbage at that moment is never found.
    """
    global _stopped
    leave_out()
    if _stopped:
        gc.enable()
        _stopped = False


def leave_out() -> None:
    """Never search among what there is by now; in the first call of a process alone."""
    if not gc.get_freeze_count():
        gc.freeze()
