"""What a sweep's folder records: a ``variant.json`` a variant, the sweep's own file, and who is at
work. Every path below the folder is named here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from incontext_linear.files import read_json, write_json
from incontext_linear.runs.locks import LOCK_FILE, LockedError, exclusive, is_held
from incontext_linear.sweeps.config import SweepError

NOTHING_YET = {
    "status": "running",
    "seconds": None,
    "mlflow_run_id": None,
    "spd_to_ols": None,
    "error": None,
}
"""What is known of a variant when it starts, beside its `variants.Variant.record`."""

Standing = Literal["done", "failed", "running", "interrupted", "changed", "missing"]


@dataclass(frozen=True)
class VariantFolder:
    """Where one variant's outputs lie.

    Args:
        project: the project's folder.
        relative: its place below that.
    """

    project: Path
    relative: Path

    @property
    def path(self) -> Path:
        """The folder."""
        return self.project / self.relative

    @property
    def log(self) -> Path:
        """The log of its run, relative to the project."""
        return self.relative / "run.log"

    @property
    def lock(self) -> Path:
        """The lock of whoever runs it, beside the folder, which may be removed."""
        return self.path.with_name(f".{self.path.name}{LOCK_FILE}")

    def read(self) -> dict[str, Any]:
        """What it says of the variant; empty if nothing (readable) is there."""
        return read_json(self.path / "variant.json")

    def write(self, state: dict[str, Any]) -> None:
        """Replace what it says: the variant's record, and what became of it (`NOTHING_YET`)."""
        write_json(self.path / "variant.json", state)

    def end_running(self) -> None:
        """What says that it is running, though nobody runs it, was interrupted."""
        state = self.read()
        if state.get("status") == "running":
            self.write(state | {"status": "interrupted"})


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's variants lie.

    Args:
        project: the project's folder.
        relative: its place below that.
    """

    project: Path
    relative: Path

    @property
    def path(self) -> Path:
        """The folder."""
        return self.project / self.relative

    def of(self, variant: Path) -> VariantFolder:
        """A variant's folder, by its place below this one (`variants.Variant.folder`)."""
        return VariantFolder(self.project, self.relative / variant)

    def read_parent_run(self) -> str | None:
        """The id of the sweep's run in MLflow, if it has one."""
        return read_json(self.path / "sweep.json").get("parent_run_id")

    def write_parent_run(self, run_id: str) -> None:
        """Keep the id of the sweep's run in MLflow."""
        write_json(self.path / "sweep.json", {"parent_run_id": run_id})

    @contextmanager
    def sole_driver(self) -> Iterator[None]:
        """Hold the sweep's lock, which the system releases even if the process is killed.

        Raises:
            SweepError: if another process holds it, saying which; or if the folder cannot be
                written to.
        """
        lock = exclusive(self.path / LOCK_FILE)
        try:
            lock.__enter__()
        except LockedError as error:
            raise SweepError(f"another `kedro sweep run` is at work: {error}") from None
        except OSError as error:
            raise SweepError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def is_at_work(self) -> bool:
        """Whether some process holds the sweep's lock."""
        return is_held(self.path / LOCK_FILE)


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
