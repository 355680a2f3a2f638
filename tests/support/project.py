"""The project as a user has it: a copy of its tree, and Kedro's commands in it.

A command starts a process only where the process is what a test is about; `kedro` gives the same
commands to Kedro's command line in this process, which saves the many seconds of imports.
"""

import contextlib
import functools
import io
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mlflow
import pandas as pd
import yaml
from click.testing import CliRunner
from kedro.framework.cli.cli import KedroCLI
from kedro.framework.project import settings
from mlflow.entities import Run
from mlflow.tracking import fluent

from incontext_linear.runs.database import ensure_database
from incontext_linear.tracking import Tracking

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"DO_NOT_TRACK": "1", "COLUMNS": "250", "OMP_NUM_THREADS": "1"}
"""Of processes that tests start."""
if "PYTHONPATH" in ENVIRONMENT:  # they start in other folders
    _paths = filter(None, ENVIRONMENT["PYTHONPATH"].split(os.pathsep))
    ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, _paths))


@dataclass(frozen=True)
class Outcome:
    """A command's exit status, and all it said: printed, logged and raised."""

    returncode: int
    output: str

    @property
    def says(self) -> str:
        """The output in one line, since a terminal wraps long ones."""
        return " ".join(self.output.split())


def copy_project(target: Path, *more: str, database: bool = True) -> Path:
    """Copy what Kedro reads of the project, and ``more`` of its folders, to ``target``.

    Args:
        target: an empty folder.
        more: names of folders.
        database: with MLflow's, in which nothing is yet, so that the first run need not make it.
    """
    for name in ("conf", *more):
        shutil.copytree(ROOT / name, target / name)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(ROOT / name, target)
    (target / "src").mkdir()  # Kedro wants the folder; the package is the one under test
    if database:
        _write_database(target / "mlflow.db")
    return target


@functools.cache
def _empty_database() -> tuple[bytes, Path]:
    """MLflow's database as a first run makes it, by some fifty migrations; and where it was made,
    of which its experiments know.
    """
    configuration = yaml.safe_load((ROOT / "conf/base/mlflow.yml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        ensure_database(path, configuration["tracking"]["experiment"]["name"])
        return path.read_bytes(), path.parent


def _write_database(path: Path) -> None:
    content, made_in = _empty_database()
    path.write_bytes(content)
    move = "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(move, (str(made_in), str(path.parent)))


def kedro(project: Path, *arguments: str, drawn: bool = True) -> Outcome:
    """``kedro …`` in a project's folder, in this process.

    Args:
        project: the folder.
        arguments: the command's.
        drawn: whether figures are drawn, which takes a third of a run of ``conf/test``; otherwise
            they are built, and files that hold no picture are saved in their places.
    """
    drawing = mock.patch("incontext_linear.datasets.draw", return_value=b"not drawn")
    with _in_project(project) as log, contextlib.nullcontext() if drawn else drawing:
        result = CliRunner().invoke(KedroCLI(project), list(arguments), prog_name="kedro")
        raised = ""
        if result.exc_info and not isinstance(result.exception, SystemExit | None):
            raised = "".join(traceback.format_exception(*result.exc_info))
        return Outcome(result.exit_code, result.output + log.getvalue() + raised)


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    """``kedro …`` in a folder, in a process of its own, its output in one pipe."""
    known = {"cwd": folder, "env": ENVIRONMENT, "text": True}
    known |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-m", "kedro", *arguments], **(known | options))


def kedro_process(folder: Path, *arguments: str, **options) -> Outcome:
    """As `start`, until the process ends."""
    process = start(folder, *arguments, **options)
    output, _ = process.communicate(timeout=600)
    return Outcome(process.returncode, output)


def await_(condition: Callable[[], object], process: subprocess.Popen[str], seconds: int = 300):
    """Wait until something holds, as long as the process is alive."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            assert process.stdout is not None
            raise AssertionError(f"exit status {process.returncode}: {process.stdout.read()}")
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def _in_project(project: Path) -> Iterator[io.StringIO]:
    """Work in a project's folder; what Kedro and MLflow change in the process is undone.

    Yields:
        What is logged meanwhile.
    """
    log = io.StringIO()
    handler, root = logging.StreamHandler(log), logging.getLogger()
    path, environment = list(sys.path), dict(os.environ)
    root.addHandler(handler)
    try:
        with contextlib.chdir(project):
            yield log
    finally:
        root.removeHandler(handler)
        forget_runs()
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)


def forget_runs() -> None:
    """Forget the run, the database and the experiment that MLflow and its hook remember.

    A run that is still open is ended as MLflow ends it with the process.
    """
    while mlflow.active_run():
        mlflow.end_run()
    for hook in settings.HOOKS:
        if isinstance(hook, Tracking):
            hook.run_id = None
    mlflow.set_tracking_uri("")
    mlflow.set_registry_uri("")
    fluent._active_experiment_id = None


def client(project: Path) -> mlflow.MlflowClient:
    """MLflow, as the project's runs use it."""
    return mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")


def runs(project: Path) -> list[Run]:
    """All runs that MLflow holds of a project, newest first."""
    experiments = [found.experiment_id for found in client(project).search_experiments()]
    return list(client(project).search_runs(experiments, order_by=["attributes.start_time DESC"]))


def statuses(project: Path) -> list[str]:
    """What MLflow says of all runs, oldest first; read past MLflow, which keeps a database open
    that was moved away.
    """
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as connection:
        rows = connection.execute("SELECT status FROM runs ORDER BY start_time").fetchall()
    return [status for (status,) in rows]


def snapshot(project: Path) -> dict[str, tuple[int, int]]:
    """Time and size of every file but logs and bytecode, to see that nothing was written."""
    return {
        str(path.relative_to(project)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in project.rglob("*")
        if path.is_file() and path.suffix != ".log" and "__pycache__" not in path.parts
    }


def report(project: Path, name: str) -> pd.DataFrame:
    """A table of ``data/test/08_reporting``."""
    return pd.read_parquet(project / "data/test/08_reporting" / f"{name}.parquet")
