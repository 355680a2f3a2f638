"""One writer at a time: a lock that the system releases when its holder dies, however it dies.

Whoever writes to a folder for a while holds its lock (`exclusive`). The lock is ``flock`` on a file
that says who holds it; the file is removed on release, so that it only stays behind where the
holder was killed, and then it binds nobody.
"""

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"
"""Its name in a folder that is locked."""

_PATIENCE = 0.5  # seconds; a glance at the lock (`is_held`) takes microseconds
_PAUSE = 0.05  # seconds between two attempts

_held: set[Path] = set()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        pid: of the process.
        host: where it runs.
        command: its command line.
        since: local time, to the second.
    """

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since})"


class LockedError(RuntimeError):
    """Somebody else holds the lock; ``holder`` says who, where that is known."""

    def __init__(self, path: Path, holder: Holder | None):
        super().__init__(f"{path.parent} is in use by {holder or 'another process'}")
        self.holder = holder


@contextmanager
def exclusive(path: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: the lock's file; its folder is made where it is missing.
        patience: seconds to wait for whoever holds it.

    Raises:
        LockedError: if somebody, in this process or another, still holds it after that time.
        OSError: naming ``path``, if its folder cannot be written to or its disk knows no locks.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _acquire(path, time.monotonic() + patience) as file:
        _held.add(path)
        try:
            json.dump(asdict(_myself()), file)
            file.flush()
            yield
        finally:
            _held.discard(path)
            path.unlink(missing_ok=True)  # before the lock goes: afterwards it may be another's


def holds(path: Path) -> bool:
    """Whether this process holds the lock."""
    return path.absolute() in _held


def is_held(path: Path) -> bool:
    """Whether some process holds the lock."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _acquire(path: Path, deadline: float) -> IO[str]:
    """The lock's file, open, locked and empty."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                file.truncate(0)
                return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _read_holder(file)
                file.close()
                raise LockedError(path, holder) from None
            time.sleep(_PAUSE)
        except OSError as error:
            file.close()
            raise OSError(error.errno, error.strerror, str(path)) from error
        file.close()  # its holder removed it, or still holds it: once more


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that lies there now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(file: IO[str]) -> Holder | None:
    try:
        return Holder(**json.load(file))
    except (json.JSONDecodeError, TypeError):  # not written yet
        return None


def _myself() -> Holder:
    program = Path(sys.argv[0] or "python")
    name = program.parent.name if program.name == "__main__.py" else program.name
    since = datetime.now().isoformat(sep=" ", timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), " ".join([name, *sys.argv[1:]]), since)
