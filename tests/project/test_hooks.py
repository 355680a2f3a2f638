from pathlib import Path

import click
import pytest

from incontext_linear.hooks import ProjectChecks
from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.tracking import absolute_sqlite
from incontext_linear.training import TrainingDivergedError


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
