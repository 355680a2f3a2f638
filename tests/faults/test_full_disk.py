"""A disk that is full, and one that cannot be written to."""

import resource

import pytest
from support.projects import copy_project, kedro, statuses

TEST = ("run", "--env", "test", "--pipelines", "data_generation")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("full"))
    status, says = kedro(project, *TEST)
    assert status == 0, says
    return project


def no_file_larger_than(size):
    """What a process that is started with it gets from the system is an error, as on a full
    disk, as soon as a file would grow beyond that size.
    """
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


def outputs(project):
    return {path: path.read_bytes() for path in (project / "data/test").rglob("*.safetensors")}


def test_where_a_file_cannot_be_written_one_line_says_so_and_the_old_one_stays(project):
    before = outputs(project)
    more = ("--params", "data_generation.num_probing_prompts=100000")
    status, says = kedro(project, *TEST, *more, **no_file_larger_than(4_000_000))
    assert status == 1
    path = project / "data/test/05_model_input/probing_prompts.safetensors"
    assert f"Error: cannot write or read {path}: File too large; what was there before" in says
    assert "Traceback" not in says
    assert outputs(project)[path] == before[path]
    assert not list((project / "data").rglob(".*.tmp*"))
    assert not (project / "data/test/.lock").exists()
    assert statuses(project) == ["FINISHED", "FAILED"]


def test_where_mlflows_database_cannot_be_made_one_line_says_so_and_none_is_left(project):
    database = project / "mlflow.db"
    kept = database.rename(project / "kept.db")
    status, says = kedro(project, *TEST, **no_file_larger_than(200_000))
    assert status == 1
    assert f"MLflow's database {database} cannot be made" in says
    assert "Traceback" not in says
    assert not database.exists()
    assert not list(project.glob(".mlflow*"))
    kept.rename(database)


def test_a_folder_that_is_a_file_is_named(project):
    other = project / "conf/other"
    other.mkdir()
    (other / "globals.yml").write_text("data: pyproject.toml\nshipped_learner: null\n")
    status, says = kedro(project, "run", "--env", "other", "--pipelines", "data_generation")
    assert status == 1
    assert f"cannot write to {project / 'pyproject.toml'}" in says
    assert "Traceback" not in says
