from pathlib import Path

import pytest

from incontext_linear.hooks import absolute_sqlite


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
