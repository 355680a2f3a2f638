"""What a sweep's folder records: a ``variant.json`` a variant, the sweep's own file, and who is at
work.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from incontext_linear.files import read_json, write_json
from incontext_linear.sweeps.config import SweepError

STATE_FILE = "variant.json"
LOG_FILE = "run.log"
_SWEEP_FILE, _LOCK_FILE = "sweep.json", ".lock"

NOTHING_YET = {
    "status": "running",
    "seconds": None,
    "mlflow_run_id": None,
    "spd_to_ols": None,
    "error": None,
}
"""What is known of a variant when it starts, beside its `variants.Variant.record`."""

Standing = Literal["done", "failed", "running", "interrupted", "changed", "missing"]


def read_state(folder: Path) -> dict[str, Any]:
    """What a variant's folder says of it; empty if nothing (readable) is there."""
    return read_json(folder / STATE_FILE)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace what a variant's folder says of it: its record, and what became of it
    (`NOTHING_YET`).
    """
    write_json(folder / STATE_FILE, state)


def standing(state: dict[str, Any], fingerprint: str, at_work: bool) -> Standing:
    """Where a variant stands.

    Args:
        state: what its folder says.
        fingerprint: of the parameters that it should have been run with.
        at_work: whether a ``kedro sweep run`` of this sweep is alive.
    """
    if not state:
        return "missing"
    if state["status"] == "running":
        return "running" if at_work else "interrupted"
    if state["fingerprint"] != fingerprint:
        return "changed"
    return state["status"]


def read_parent_run(folder: Path) -> str | None:
    """The id of the sweep's run in MLflow, if it has one."""
    return read_json(folder / _SWEEP_FILE).get("parent_run_id")


def write_parent_run(folder: Path, run_id: str) -> None:
    """Keep the id of the sweep's run in MLflow."""
    write_json(folder / _SWEEP_FILE, {"parent_run_id": run_id})


@contextmanager
def sole_driver(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock, which the system releases even if the process is killed.

    Raises:
        SweepError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"another `kedro sweep run` is at work on {folder}") from None
        yield


def is_at_work(folder: Path) -> bool:
    """Whether some process holds the sweep's lock."""
    try:
        with (folder / _LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
