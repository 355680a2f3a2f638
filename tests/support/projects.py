"""The project's commands in processes of their own, for tests that stop or starve them."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow

from support.project import ROOT, copy_project

__all__ = [
    "ROOT",
    "await_",
    "copy_project",
    "kedro",
    "mlflow_runs",
    "snapshot",
    "start",
    "statuses",
]

ENVIRONMENT = os.environ | {"DO_NOT_TRACK": "1", "COLUMNS": "250", "OMP_NUM_THREADS": "1"}


def start(project: Path, *arguments: str, **options) -> subprocess.Popen:
    """``kedro`` in a process of its own, its output in one pipe."""
    command = [sys.executable, "-m", "kedro", *arguments]
    known = {"cwd": project, "env": ENVIRONMENT, "text": True}
    known |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **(known | options))


def kedro(project: Path, *arguments: str, **options) -> tuple[int, str]:
    """``kedro`` until it ends: its exit status, and all it said on one line."""
    process = start(project, *arguments, **options)
    output, _ = process.communicate(timeout=600)
    return process.returncode, " ".join(output.split())


def await_(condition, process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait until something holds, as long as the process is alive."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"exit status {process.returncode}: {process.stdout.read()}")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mlflow_runs(project: Path) -> list[mlflow.entities.Run]:
    """All runs of the project's database, oldest first."""
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, order_by=["attributes.start_time ASC"])


def statuses(project: Path) -> list[str]:
    """What MLflow says of all runs, oldest first; read past MLflow, which keeps a database open
    that was moved away.
    """
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as connection:
        rows = connection.execute("SELECT status FROM runs ORDER BY start_time").fetchall()
    return [status for (status,) in rows]


def snapshot(project: Path) -> dict[str, tuple[int, int]]:
    """Time and size of every file, to see that nothing was written."""
    return {
        str(path.relative_to(project)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in project.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
