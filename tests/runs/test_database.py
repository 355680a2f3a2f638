"""MLflow's database, broken in the ways in which it has been found broken."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from incontext_linear.runs.database import DatabaseError, database_file, ensure_database

# MLflow's libraries warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

MAKE = """
import sys
from pathlib import Path
from incontext_linear.runs.database import ensure_database
print("starting", flush=True)
ensure_database(Path(sys.argv[1]), "experiment")
"""


def start(path):
    command = [sys.executable, "-W", "ignore", "-c", MAKE, str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def await_(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "mlflow.db"
    ensure_database(path, "experiment")
    return path


@pytest.fixture
def copy(sound, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(sound.read_bytes())
    return path


def test_it_holds_the_experiment_and_mlflow_can_use_it(copy):
    client = MlflowClient(f"sqlite:///{copy}")
    experiment = client.get_experiment_by_name("experiment")
    run = client.create_run(experiment.experiment_id)
    client.log_metric(run.info.run_id, "x", 1.0)
    client.set_terminated(run.info.run_id)
    assert client.get_run(run.info.run_id).data.metrics == {"x": 1.0}
    assert [path.name for path in copy.parent.iterdir()] == ["mlflow.db"]


def test_a_process_killed_while_it_makes_the_database_leaves_none_and_the_next_one_makes_it(
    tmp_path,
):
    path = tmp_path / "mlflow.db"
    process = start(path)
    half_made = lambda: any(f.stat().st_size > 100_000 for f in tmp_path.glob(".mlflow*.tmp.db"))  # noqa: E731
    await_(half_made, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists()
    assert list(tmp_path.glob(".mlflow*.tmp.db"))
    ensure_database(path, "experiment")
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_processes_that_start_at_once_make_one_database(tmp_path):
    path = tmp_path / "mlflow.db"
    processes = [start(path) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    names = {e.name for e in MlflowClient(f"sqlite:///{path}").search_experiments()}
    assert names == {"Default", "experiment"}


def execute(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("CREATE TABLE _alembic_tmp_datasets (x INT)", "left half-made .*: move .* away"),
        ("DROP TABLE alembic_version", "left half-made .*: move .* away"),
        ("DELETE FROM alembic_version", "left half-made .*: move .* away"),
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'", "newer MLflow .* update"),
        # A migration that this MLflow knows, and that is not its last.
        ("UPDATE alembic_version SET version_num = '451aebb31d03'", "older MLflow.* db upgrade"),
    ],
)
def test_a_database_that_mlflow_could_not_use_is_named_with_what_to_do(copy, statement, says):
    execute(copy, statement)
    with pytest.raises(DatabaseError, match=says) as refusal:
        ensure_database(copy, "experiment")
    assert str(copy) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_database_is_named_and_an_empty_one_is_filled(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"text" * 1000)
    with pytest.raises(DatabaseError, match=r"is no database of MLflow .* move .* away"):
        ensure_database(path, "experiment")
    path.write_bytes(b"")
    ensure_database(path, "experiment")
    assert path.stat().st_size > 100_000


def test_what_a_killed_writer_left_in_the_journal_is_rolled_back(copy):
    script = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "c.execute('PRAGMA cache_size=1');"
        "c.execute('BEGIN'); c.execute('CREATE TABLE t (x)');"
        "c.executemany('INSERT INTO t VALUES (?)', ((os.urandom(3000),) for _ in range(200)));"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(copy)], check=False)
    assert copy.with_name("mlflow.db-journal").exists()
    ensure_database(copy, "experiment")


def test_only_an_sqlite_file_is_the_projects_to_make(tmp_path):
    assert str(database_file("sqlite:////a/mlflow.db?timeout=60")) == "/a/mlflow.db"
    for uri in ("sqlite:///:memory:", "sqlite://", "http://tracking:5000", None):
        assert database_file(uri) is None
