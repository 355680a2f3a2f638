"""Runs beside each other and runs that are stopped: what is written, and what MLflow says."""

import os
import signal

import pytest
from support.project import (
    await_,
    copy_project,
    kedro,
    runs,
    snapshot,
    start,
    statuses,
)

# The runs beside those in processes are Kedro's and MLflow's in this one, which warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TEST = ("run", "--env", "test")
ENDLESS = (
    *TEST,
    "--pipelines",
    "model_training",
    "--params",
    "training.num_steps=100000,training.checkpoint_every=5",
)
OTHER = (*TEST, "--pipelines", "data_generation", "--params", "seed=1")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def begun():
    """The process of the training that was begun last, if any."""
    processes = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def training(project, begun):
    """A run in the middle of its training: one that the test before has left, or a new one."""
    if not begun or begun[-1].poll() is not None:
        for checkpoint in checkpoints(project):
            checkpoint.unlink()
        begun.append(start(project, *ENDLESS))
        await_(lambda: checkpoints(project), begun[-1])
    return begun[-1]


def checkpoints(project):
    return list((project / "data/test/06_models/checkpoints").rglob("step_*.safetensors"))


def test_environments_do_not_wait_for_each_other(project, training):
    other = project / "conf/other"
    if not other.exists():
        other.mkdir()
        for file in (project / "conf/test").iterdir():
            text = file.read_text().replace("data: data/test", "data: data/other")
            (other / file.name).write_text(text)
    result = kedro(project, "run", "--env", "other", "--pipelines", "data_generation")
    assert result.returncode == 0, result.output
    assert (project / "data/other/05_model_input/probing_prompts.safetensors").exists()
    assert training.poll() is None
    assert statuses(project)[-2:] == ["RUNNING", "FINISHED"]
    result = kedro(project, "catalog", "list-patterns", "--env", "test")  # only reads
    assert result.returncode == 0, result.output


def test_a_second_run_is_refused_before_it_writes_and_a_terminated_one_is_killed_in_mlflow(
    project, training
):
    def others():  # all but what the first run goes on to write
        return {k: v for k, v in snapshot(project).items() if "06_models" not in k}

    before, known = others(), statuses(project)
    result = kedro(project, *OTHER)
    assert result.returncode == 1
    assert f"data/test is in use by `python -m kedro {' '.join(ENDLESS)}`" in result.says
    assert f"(process {training.pid} on {os.uname().nodename}, since 20" in result.says
    assert "--env NAME" in result.says
    assert "kedro sweep run" in result.says
    assert "Traceback" not in result.says
    assert set(others()) == set(before)
    assert not (project / "data/test/05_model_input").exists()
    assert statuses(project) == known
    training.send_signal(signal.SIGTERM)
    training.send_signal(signal.SIGTERM)
    training.wait(timeout=120)
    output = training.stdout.read()
    assert training.returncode == 130, output
    assert "Traceback" not in output
    assert "goes on from the last checkpoint" in output
    assert known.count("RUNNING") == 1
    assert statuses(project) == [{"RUNNING": "KILLED"}.get(status, status) for status in known]
    assert not (project / "data/test/.lock").exists()


def test_a_run_whose_terminal_is_closed_is_killed_in_mlflow(project, training):
    training.send_signal(signal.SIGHUP)
    training.wait(timeout=120)
    assert training.returncode == 130
    assert statuses(project)[-1] == "KILLED"


def test_the_next_run_ends_in_mlflow_what_a_killed_one_left_running_and_removes_its_temporaries(
    project, training
):
    training.kill()
    training.wait()
    assert statuses(project)[-1] == "RUNNING"
    dead = runs(project)[0].info.run_id
    models = project / "data/test/06_models"
    half = models / ".learner.0123456789abcdef0123456789abcdef.tmp.safetensors"
    half.touch()
    kept = models / ".of_the_users_own.tmp"
    kept.touch()
    result = kedro(project, *OTHER)
    assert result.returncode == 0, result.output
    assert [(run.info.run_id, run.info.status) for run in runs(project)[1:2]] == [(dead, "KILLED")]
    assert statuses(project)[-1] == "FINISHED"
    assert not half.exists()
    assert kept.exists()
