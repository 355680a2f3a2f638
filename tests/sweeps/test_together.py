"""Variants that are trained together in one worker, here in this process, without Dask."""

import os
from pathlib import Path

import pytest
from kedro.framework.startup import bootstrap_project
from support.project import copy_project, forget_runs

from incontext_linear.learner.saved import load_learner
from incontext_linear.sweeps.project import Project
from incontext_linear.sweeps.variant_run import run_group
from incontext_linear.sweeps.variants import GroupTask, VariantTask

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SWEEPS = """
together:
  axes: {training.learning_rate: [0.003, 0.002, 1.0e+5]}
  stacked: true
  parameters: {training: {optimizer: adamw, gradient_clip: 1.0e+5, num_steps: 20}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    target = copy_project(tmp_path_factory.mktemp("together"))
    (target / "conf/test/sweeps.yml").write_text(SWEEPS)
    before = Path.cwd()
    bootstrap_project(target)
    found = Project(target, "test")
    with found.mlflow():  # makes the database
        pass
    yield found
    forget_runs()
    os.chdir(before)


def test_one_that_diverges_fails_alone_and_what_is_done_is_not_run_again(project):
    variants = project.variants("together", project.sweep("together"))
    folder = project.folder("together")
    tasks = tuple(VariantTask(v, folder.of(v.folder), "test", None) for v in variants)
    events: list[dict] = []
    trained = run_group(GroupTask(tasks), events.append)
    assert trained["variants"] == {}  # each is still to be measured, by whichever worker is free
    assert trained["seconds"] > 0
    ended = [run_group(GroupTask((task,)), events.append)["variants"] for task in tasks]
    answers = {name: answer for one in ended for name, answer in one.items()}
    assert [answers[v.name]["status"] for v in variants] == ["done", "done", "failed"]
    assert "TrainingDivergedError: training diverged" in answers[variants[2].name]["error"]
    training = [event for event in events if "together" in event]
    assert {event["variant"] for event in training} == {variants[0].name}  # it speaks for all
    assert {event["together"] for event in training} == {3}
    steps = [event["step"] for event in training if "step" in event]
    assert steps == sorted(set(steps))
    assert steps[-1] == 20
    for task in tasks:
        assert task.folder.read() == answers[task.variant.name]
    learner = tasks[0].folder.path / "06_models/learner.safetensors"
    assert load_learner(learner).record["stack"] == 3
    assert not (tasks[0].folder.path / "06_models/checkpoints").exists() or not list(
        (tasks[0].folder.path / "06_models/checkpoints").rglob("step_*")
    )
    reports = tasks[0].folder.path / "08_reporting"
    assert (reports / "spd_curves.parquet").exists()
    assert not list(reports.glob("*.png"))  # no figures unless asked
    events.clear()
    again = run_group(GroupTask(tasks[:1]), events.append)["variants"]
    assert events == []
    assert again == {variants[0].name: tasks[0].folder.read()}
