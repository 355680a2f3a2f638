"""A disk that is full, and one that cannot be written to."""

import contextlib
import resource

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from kedro.io import DatasetError
from matplotlib.figure import Figure
from support.project import ROOT, copy_project, kedro, statuses

from incontext_linear import datasets
from incontext_linear.files import write_text

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TEST = ("run", "--env", "test", "--pipelines", "data_generation")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("full"))
    result = kedro(project, *TEST)
    assert result.returncode == 0, result.output
    return project


@contextlib.contextmanager
def no_file_larger_than(size):
    """What the system answers is an error, as on a full disk, as soon as a file would grow beyond
    that size.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def outputs(project):
    return {path: path.read_bytes() for path in (project / "data/test").rglob("*.safetensors")}


@pytest.mark.slow
def test_where_a_file_cannot_be_written_one_line_says_so_and_the_old_one_stays(project):
    before = outputs(project)
    more = ("--params", "data_generation.num_probing_prompts=100000")
    with no_file_larger_than(4_000_000):
        result = kedro(project, *TEST, *more)
    assert result.returncode == 1
    path = project / "data/test/05_model_input/probing_prompts.safetensors"
    assert (
        f"Error: cannot write or read {path}: File too large; what was there before" in result.says
    )
    assert "Traceback" not in result.says
    assert outputs(project)[path] == before[path]
    assert not list((project / "data").rglob(".*.tmp*"))
    assert not (project / "data/test/.lock").exists()
    assert statuses(project) == ["FINISHED", "FAILED"]


@pytest.mark.slow
def test_where_mlflows_database_cannot_be_made_one_line_says_so_and_none_is_left(project):
    database = project / "mlflow.db"
    kept = database.rename(project / "kept.db")
    with no_file_larger_than(200_000):
        result = kedro(project, *TEST)
    assert result.returncode == 1
    assert f"MLflow's database {database} cannot be made" in result.says
    assert "Traceback" not in result.says
    assert not database.exists()
    assert not list(project.glob(".mlflow*"))
    kept.rename(database)


@pytest.mark.slow
def test_where_mlflow_cannot_write_to_its_database_one_line_says_so(project):
    known = statuses(project)
    with no_file_larger_than(100_000):
        result = kedro(project, *TEST)
    assert result.returncode == 1
    assert "Error: MLflow's database cannot be used: " in result.says
    assert "Traceback" not in result.says
    assert statuses(project) == known


@pytest.mark.slow
def test_a_folder_that_is_a_file_is_named(project):
    other = project / "conf/other"
    other.mkdir()
    (other / "globals.yml").write_text("data: pyproject.toml\nshipped_learner: null\n")
    result = kedro(project, "run", "--env", "other", "--pipelines", "data_generation")
    assert result.returncode == 1
    assert f"cannot write to {project / 'pyproject.toml'}" in result.says
    assert "Traceback" not in result.says


def test_a_folder_of_results_that_is_a_file_is_named(project):
    folder = project / "data/test/05_model_input"
    kept = folder.rename(folder.with_name("kept"))
    folder.touch()
    result = kedro(project, *TEST)
    folder.unlink()
    kept.rename(folder)
    assert result.returncode == 1
    assert f"Error: cannot write or read {folder}" in result.says
    assert "Not a directory" in result.says
    assert "Traceback" not in result.says


@pytest.mark.parametrize("below", ["a.txt", "deeper/a.txt", "deeper/and/deeper/a.txt"])
def test_a_file_in_the_place_of_a_folder_at_any_depth_is_a_refusal_of_the_file_written(
    tmp_path, below
):
    (tmp_path / "results").touch()
    path = tmp_path / "results" / below
    with pytest.raises(NotADirectoryError) as error:
        write_text(path, "text")
    assert error.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["results"]


def noise(size):
    figure = Figure()
    figure.subplots().imshow(np.random.default_rng(0).random((size, size)))
    return figure


@pytest.mark.parametrize(
    ("kind", "ending", "small", "large"),
    [
        ("AtomicCSVDataset", "csv", pd.DataFrame({"a": [1]}), pd.DataFrame({"a": range(9999)})),
        (
            "AtomicParquetDataset",
            "parquet",
            pd.DataFrame({"a": [1]}),
            pd.DataFrame({"a": np.random.default_rng(0).random(9999)}),
        ),
        ("AtomicSafetensorsDataset", "safetensors", {"a": torch.ones(1)}, {"a": torch.ones(9999)}),
        ("AtomicFigureDataset", "png", None, noise(300)),
    ],
)
def test_whatever_is_written_to_a_full_disk_the_old_file_stays_and_no_other(
    tmp_path, kind, ending, small, large
):
    path = tmp_path / f"file.{ending}"
    dataset = getattr(datasets, kind)(filepath=str(path))
    if small is None:
        path.write_bytes(b"an old figure")
    else:
        dataset.save(small)
    before = path.read_bytes()
    with no_file_larger_than(4096), pytest.raises((DatasetError, OSError)) as error:
        dataset.save(large)
    assert str(path) in str(error.value.__cause__ or error.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    dataset.save(large)
    assert path.stat().st_size > 4096
    plt.close("all")


OTHER_WRITERS = ("Curves", "Predictions", "Snapshots")
"""Datasets of other names that write by the atomic writer."""


def test_every_dataset_that_a_run_writes_passes_through_the_atomic_writer():
    kinds = set()
    for path in (ROOT / "conf").rglob("catalog*.yml"):
        for entry in yaml.safe_load(path.read_text()).values():
            if not isinstance(entry, dict) or "sweeps/" in str(entry.get("path")):
                continue  # an anchor; what the phase diagram only reads
            inner = entry.get("dataset", entry)
            if "filepath" in inner or "path" in inner:
                kinds.add(inner["type"])
    own = {
        f"incontext_linear.datasets.{name}Dataset"
        for name in ("Learner", "Checkpoints", *OTHER_WRITERS)
    }
    others = kinds - own
    assert len(others) > 3
    assert all(kind.startswith("incontext_linear.datasets.Atomic") for kind in others), others
