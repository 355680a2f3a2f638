import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import mlflow
import pytest
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import node
from mlflow.utils.databricks_utils import is_running_in_ipython_environment
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from incontext_linear.config import TaskConfig
from incontext_linear.hooks import ProjectChecks
from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.progress import training_progress
from incontext_linear.tracking import Tracking, _fields, _outside_notebooks, absolute_sqlite
from incontext_linear.training import Progress, TrainingDivergedError


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db?timeout=60", "sqlite:////project/mlflow.db?timeout=60"),
        ("sqlite:///runs/mlflow.db", "sqlite:////project/runs/mlflow.db"),
        ("sqlite:////somewhere/mlflow.db", "sqlite:////somewhere/mlflow.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("http://tracking:5000", "http://tracking:5000"),
        (None, None),
    ],
)
def test_only_a_relative_database_file_is_moved_below_the_project(uri, expected):
    assert absolute_sqlite(uri, Path("/project")) == expected


@pytest.mark.parametrize(
    "error", [PhaseDiagramError("no such axis"), TrainingDivergedError("NaN at step 3")]
)
def test_on_the_command_line_alone_an_error_that_explains_itself_loses_its_traceback(error):
    ProjectChecks().on_pipeline_error(
        error
    )  # a notebook, a sweep's worker: the error goes on as it is
    with click.Context(click.Command("run")), pytest.raises(click.ClickException, match=str(error)):
        ProjectChecks().on_pipeline_error(error)


def test_any_other_error_keeps_its_traceback():
    with click.Context(click.Command("run")):
        ProjectChecks().on_pipeline_error(ValueError("a defect"))


def test_parameters_are_logged_field_by_field_and_no_longer_than_mlflow_takes_them():
    fields = _fields("baselines", {"mine": {"type": "Ridge", "penalties": list(range(5000))}})
    assert fields["baselines.mine.type"] == "Ridge"
    assert fields["baselines.mine.penalties"] == str(list(range(5000)))[:MAX_PARAM_VAL_LENGTH]
    assert _fields("seed", 3) == {"seed": "3"}
    assert _fields("task", TaskConfig(dim=2))["task.dim"] == "2"


def full_disk(path):
    error = OSError(errno.ENOSPC, "No space left on device", str(path))
    outer = DatasetError("Failed while saving data")
    outer.__cause__ = error
    return outer


def test_a_full_disk_is_one_line_with_the_path(tmp_path):
    with click.Context(click.Command("run")), pytest.raises(click.ClickException) as error:
        ProjectChecks().on_pipeline_error(full_disk(tmp_path / "a.parquet"))
    assert f"cannot write or read {tmp_path / 'a.parquet'}: No space left" in error.value.message
    assert "\n" not in error.value.message


def test_after_a_resume_a_log_file_gets_a_line_at_every_tenth_of_the_training(caplog):
    with caplog.at_level("INFO"), training_progress(1000) as report:
        for step in range(700, 1001, 10):  # gone on from step 690
            report(Progress(step, 1.0, 1.0, 0.1))
    assert [record.args[0] for record in caplog.records] == [700, 800, 900, 1000]


@pytest.mark.parametrize("raises", [False, True])
def test_mlflow_does_not_load_ipython_to_see_that_a_run_is_no_notebooks(monkeypatch, raises):
    for name in [name for name in sys.modules if name.partition(".")[0] == "IPython"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        with _outside_notebooks():
            assert not is_running_in_ipython_environment()
            assert not any(name.startswith("IPython.") for name in sys.modules)
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert "IPython" not in sys.modules


def test_in_a_notebook_mlflow_sees_it(monkeypatch):
    loaded = SimpleNamespace(get_ipython=lambda: "a shell")
    monkeypatch.setitem(sys.modules, "IPython", loaded)
    with _outside_notebooks():
        assert is_running_in_ipython_environment()
    assert sys.modules["IPython"] is loaded


@pytest.mark.parametrize("already", [None, "another", "ours"])
def test_a_node_opens_the_run_only_where_its_thread_has_it_not_open(monkeypatch, already):
    open_runs = [already] if already else []

    def active_run():
        facts = SimpleNamespace(run_id=open_runs[-1] if open_runs else None, run_name="")
        return SimpleNamespace(info=facts) if open_runs else None

    monkeypatch.setattr(mlflow, "active_run", active_run)
    monkeypatch.setattr(mlflow, "start_run", lambda run_id, nested: open_runs.append(run_id))
    hook: Any = Tracking()
    hook.run_id = "ours"
    hook.mlflow_config = SimpleNamespace(tracking=SimpleNamespace(run=SimpleNamespace(nested=True)))
    for _ in range(2):
        hook.before_node_run(node(lambda: 1, None, "one", name="one"), DataCatalog(), {}, False)
    assert open_runs == (["another", "ours"] if already == "another" else ["ours"])
