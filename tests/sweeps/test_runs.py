"""Whole sweeps of tiny learners: real Dask workers, which are killed, and a driver that is
interrupted.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from distributed import Client
from kedro.framework.startup import bootstrap_project
from rich.console import Console
from support.project import copy_project

from incontext_linear.learner.saved import load_learner
from incontext_linear.sweeps import engine
from incontext_linear.sweeps.config import SweepError
from incontext_linear.sweeps.driver import Cluster, run_sweep, show_list, show_status
from incontext_linear.sweeps.project import Project
from incontext_linear.sweeps.state import NOTHING_YET, VariantFolder
from incontext_linear.sweeps.variants import Variant, VariantTask
from incontext_linear.training import train

# The driver runs in this process, and with it Kedro, MLflow and Dask, who warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

LONG = "{num_steps: 300, checkpoint_every: 20, log_every: 5}"
SWEEPS = f"""
tiny:
  axes: {{model.num_layers: [1, 2]}}
  parameters: {{data_generation: {{num_probing_prompts: 64}}}}
broken: &long
  axes: {{model.num_layers: [2]}}
  seeds: [3]
  parameters: {{training: {LONG}}}
unbroken: *long
cancelled: *long
diverging:
  axes: {{training.learning_rate: [0.003, 1.0e+5]}}
  parameters: {{training: {{optimizer: adamw, gradient_clip: 1.0e+5}}}}
interrupted:  # longer: it is looked at while it runs
  axes: {{model.num_layers: [1, 2]}}
  parameters: {{training: {{num_steps: 600, checkpoint_every: 20, log_every: 5}}}}
invalid:
  axes: {{model.width: [16, 15]}}
"""
ENVIRONMENT = os.environ | {"DO_NOT_TRACK": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = copy_project(tmp_path_factory.mktemp("sweeps"))
    (target / "conf/test/sweeps.yml").write_text(SWEEPS)
    before = Path.cwd()
    os.chdir(target)  # MLflow's database is named relative to it
    yield target
    os.chdir(before)


@pytest.fixture(scope="module")
def scheduler(path):
    """A Dask cluster as a user starts one: a scheduler and two workers, in processes of their
    own.
    """
    dask, place = [sys.executable, "-m", "dask"], ["--scheduler-file", str(path / "scheduler.json")]
    # The workers declare a GPU, so that variants whose device is auto ask Dask for it.
    workers = ["worker", "--nworkers", "2", "--nthreads", "1", "--resources", "GPU=1"]
    ports = ["--port", "0", "--dashboard-address", ":0"]  # it listens there without a dashboard too
    starts = [["scheduler", *ports, "--no-dashboard"], workers]
    with (path / "dask.log").open("w") as log:
        arguments = {"cwd": path, "env": ENVIRONMENT, "stdout": log, "stderr": log}
        processes = [subprocess.Popen([*dask, *start, *place], **arguments) for start in starts]
        deadline = time.monotonic() + 60
        while not (path / "scheduler.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield json.loads((path / "scheduler.json").read_text())["address"]
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def run(path, scheduler):
    """Run a sweep on that cluster, driven from this process; gives the exit status and what it
    printed.
    """
    bootstrap_project(path)

    def run(name: str) -> tuple[int, str]:
        console = Console(file=io.StringIO(), width=200)
        status = run_sweep(Project(path, "test"), name, Cluster(scheduler), console)
        return status, console.file.getvalue()

    return run


def printed(function, *arguments) -> str:
    console = Console(file=io.StringIO(), width=200)
    function(*arguments, console)
    return console.file.getvalue()


def states(path: Path, sweep: str) -> dict[str, dict]:
    files = (path / "data/test/sweeps" / sweep).rglob("variant.json")
    return {state["variant"]: state for state in (json.loads(file.read_text()) for file in files)}


def runs(path: Path, sweep: str) -> tuple[mlflow.entities.Run, list[mlflow.entities.Run]]:
    """A sweep's run in MLflow and those of its variants, oldest first."""
    client = mlflow.MlflowClient(f"sqlite:///{path}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(
        experiments, f"tags.sweep = '{sweep}'", order_by=["attributes.start_time ASC"]
    )
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in found if run is not parents[0]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parents[0].info.run_id}
    return parents[0], children


def await_(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_variant_is_a_run_under_its_sweeps_with_outputs_of_its_own(path, run):
    status, output = run("tiny")
    assert status == 0, output + (path / "dask.log").read_text()[-3000:]
    assert "tiny: 2 done, 0 failed; in data/test/sweeps/tiny" in output
    parent, children = runs(path, "tiny")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["sweep.axes"] == "model.num_layers: 1, 2"
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        layers = child.data.params["model.num_layers"]
        assert child.data.tags["sweep.model.num_layers"] == layers
        assert child.info.run_name == f"tiny model.num_layers={layers},seed=0"
        assert "behaviour/spd.ols" in child.data.metrics
        folder = path / f"data/test/sweeps/tiny/model.num_layers={layers}/seed=0"
        state = json.loads((folder / "variant.json").read_text())
        assert state["mlflow_run_id"] == child.info.run_id
        assert state["parameters"]["model"]["num_layers"] == int(layers)
        for output in (
            "06_models/learner.safetensors",
            "08_reporting/spd_curves.parquet",
            "run.log",
        ):
            assert (folder / output).exists()
    assert len(children) == 2
    assert [place.name for place in (path / "data/test").iterdir()] == ["sweeps"]


def test_again_it_runs_only_what_is_missing_or_has_changed(path, run):
    before = states(path, "tiny")
    assert run("tiny") == (0, "tiny: 2 of 2 variants are done\n")
    sweeps = path / "conf/test/sweeps.yml"
    sweeps.write_text(SWEEPS.replace("num_layers: [1, 2]", "num_layers: [1, 3]", 1))
    status, output = run("tiny")
    assert status == 0
    assert "1 of 2 variants are done" in output
    after = states(path, "tiny")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"model.num_layers=3,seed=0"}
    assert len(runs(path, "tiny")[1]) == 3
    sweeps.write_text(SWEEPS.replace("num_probing_prompts: 64", "num_probing_prompts: 96"))
    table = printed(show_status, Project(path, "test"), "tiny")
    assert table.count("changed") == 2
    assert "missing" in printed(show_status, Project(path, "test"), "broken")


def test_what_does_not_concern_training_is_run_again_without_training(path, run):
    folder = path / "data/test/sweeps/tiny/model.num_layers=1/seed=0"
    learner, log = folder / "06_models/learner.safetensors", folder / "run.log"
    before, trained, lines = states(path, "tiny"), learner.stat().st_mtime_ns, len(log.read_text())
    checkpoint = Path(
        shutil.copy(learner, checkpoint_folder(path, "tiny") / "step_000000001.safetensors")
    )
    status, output = run("tiny")
    assert status == 0, output
    assert "0 of 2 variants are done" in output
    assert learner.stat().st_mtime_ns == trained
    again = log.read_text()[lines:]
    assert "behavioral_comparison: " in again
    assert (
        not checkpoint.parent.exists()
    )  # left by a run that was killed once its learner was saved
    state, before = (
        json.loads((folder / "variant.json").read_text()),
        before["model.num_layers=1,seed=0"],
    )
    assert state["status"] == "done"
    assert state["fingerprint"] != before["fingerprint"]
    assert state["spd_to_ols"] == before["spd_to_ols"] > 0
    (path / "conf/test/sweeps.yml").write_text(SWEEPS)


def first_variant(path: Path, sweep: str) -> tuple[Variant, VariantFolder]:
    project = Project(path, "test")
    variant = project.variants(sweep, project.sweep(sweep))[0]
    return variant, project.folder(sweep).of(variant.folder)


def checkpoint_folder(path: Path, sweep: str) -> Path:
    """Where its first variant keeps its checkpoints."""
    variant, folder = first_variant(path, sweep)
    place = folder.path / "06_models/checkpoints" / variant.parameters.recipe.fingerprint
    place.mkdir(parents=True, exist_ok=True)
    return place


def test_a_damaged_learner_is_trained_again_and_so_is_one_of_other_threads(path, run):
    from incontext_linear.sweeps.variant_run import _learner, is_trained

    variant, folder = first_variant(path, "tiny")
    learner, recipe = (
        _learner(VariantTask(variant, folder, "test", None)),
        variant.parameters.recipe,
    )
    assert learner.load().record["num_threads"] == 1
    assert is_trained(learner, recipe, 1)
    assert not is_trained(learner, recipe, 2)
    file = folder.path / "06_models/learner.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert not is_trained(learner, recipe, 1)
    file.write_bytes(content)


def test_a_variants_learner_is_the_one_that_training_alone_gives(path, run):
    variant, folder = first_variant(path, "tiny")
    swept = load_learner(folder.path / "06_models/learner.safetensors")
    before = torch.get_num_threads()
    torch.set_num_threads(variant.num_threads)
    alone = train(variant.parameters.recipe, "cpu")
    torch.set_num_threads(before)
    assert alone.record == swept.record
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, swept.model.state_dict()[name])


def test_the_learner_is_looked_for_where_the_catalog_keeps_it(path, run):
    from incontext_linear.sweeps.variant_run import _learner, is_trained

    variant, folder = first_variant(path, "tiny")
    catalog = path / "conf/base/catalog.yml"
    before = catalog.read_text()
    catalog.write_text(
        before.replace("06_models/learner.safetensors", "06_models/moved.safetensors")
    )
    try:
        learner = _learner(VariantTask(variant, folder, "test", None))
        assert not is_trained(learner, variant.parameters.recipe, 1)
        models = folder.path / "06_models"
        shutil.copy(models / "learner.safetensors", models / "moved.safetensors")
        assert is_trained(learner, variant.parameters.recipe, 1)
    finally:
        catalog.write_text(before)


def test_a_variant_that_fails_before_its_first_node_leaves_no_run_to_the_next_one(
    path, run, monkeypatch
):
    from incontext_linear.sweeps.variant_run import run_variant

    variant, _ = first_variant(path, "broken")
    client = mlflow.MlflowClient(f"sqlite:///{path}/mlflow.db")
    parent = client.create_run("0", tags={"sweep": "refused"}).info.run_id
    folder = VariantFolder(path, Path("data/test/sweeps/refused"))
    task = VariantTask(replace(variant, sweep="refused"), folder, "test", parent)

    def refuse(tags):
        raise mlflow.MlflowException("no answer")

    monkeypatch.setattr(mlflow, "set_tags", refuse)  # what follows right on the start of a run
    answer = run_variant(task, lambda event: None)
    assert (answer["status"], answer["error"]) == ("failed", "MlflowException: no answer")
    assert mlflow.active_run() is None
    (child,) = runs(path, "refused")[1]
    assert child.info.status == "FAILED"
    assert child.info.run_id == answer["mlflow_run_id"]
    assert child.data.tags["variant"] == variant.name


def test_a_variant_whose_worker_is_killed_goes_on_from_its_checkpoint_to_the_same_result(
    path, run, scheduler
):
    folder = path / "data/test/sweeps/broken/model.num_layers=2/seed=3"
    killed = []

    def kill_worker_in_mid_training():
        with Client(scheduler) as client:
            await_(lambda: list(folder.rglob("step_*.safetensors")))
            busy = [address for address, tasks in client.processing().items() if tasks]
            killed.extend(client.run(os.getpid, workers=busy).values())
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_worker_in_mid_training)
    thread.start()
    status, output = run("broken")
    thread.join()
    assert status == 0, output
    assert len(killed) == 1
    assert output.count("seed=3: starts") == 2
    log = (folder / "run.log").read_text()
    assert log.count("Training goes on from the checkpoint at step ") == 1
    parent, children = runs(path, "broken")
    assert [child.info.status for child in children] == ["KILLED", "FINISHED"]
    assert parent.info.status == "FINISHED"
    assert run("unbroken")[0] == 0
    for file in ("06_models/learner.safetensors", "08_reporting/spd_curves.parquet"):
        unbroken = Path(str(folder).replace("broken", "unbroken")) / file
        assert (folder / file).read_bytes() == unbroken.read_bytes()


def test_a_variant_that_fails_is_reported_while_the_others_finish(path, run):
    status, output = run("diverging")
    assert status == 1
    assert "1 done, 1 failed" in output
    assert "TrainingDivergedError: training diverged at step" in output
    by_status = {state["status"]: state for state in states(path, "diverging").values()}
    assert by_status["failed"]["axes"] == {"training.learning_rate": 1e5}
    assert by_status["failed"]["error"].startswith(
        "TrainingDivergedError: training diverged at step"
    )
    assert by_status["done"]["error"] is None
    log = path / "data/test/sweeps/diverging/training.learning_rate=100000.0/seed=0/run.log"
    assert "Traceback" in log.read_text()
    parent, children = runs(path, "diverging")
    assert parent.info.status == "FAILED"
    assert sorted(child.info.status for child in children) == ["FAILED", "FINISHED"]
    assert "failed" in printed(show_status, Project(path, "test"), "diverging")


def test_after_ctrl_c_no_process_is_left_and_the_same_command_goes_on(path, run):
    command = [sys.executable, "-m", "kedro", "sweep", "run", "interrupted", "--env", "test"]
    with subprocess.Popen(
        command,
        cwd=path,
        env=ENVIRONMENT,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
    ) as process:
        folder = path / "data/test/sweeps/interrupted"
        await_(lambda: len({file.parent for file in folder.rglob("step_*.safetensors")}) == 2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        for child in children:  # so that the variants do not end while they are looked at
            child.suspend()
        assert "running" in printed(show_status, Project(path, "test"), "interrupted")
        with pytest.raises(SweepError, match="another `kedro sweep run` is at work"):
            run("interrupted")
        for child in children:
            child.resume()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        process.send_signal(signal.SIGTERM)  # as a batch system that is in a hurry
        output = process.stdout.read()
        assert process.wait(timeout=30) == 130, output
    _, alive = psutil.wait_procs(children, timeout=5)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)
    assert "Traceback" not in output
    assert "0 of 2 variants are done; `kedro sweep run interrupted --env test` goes on" in output
    assert {state["status"] for state in states(path, "interrupted").values()} == {"interrupted"}
    parent, children = runs(path, "interrupted")
    assert [run.info.status for run in (parent, *children)] == ["KILLED"] * 3
    assert run("interrupted")[0] == 0
    for log in folder.rglob("run.log"):
        assert "Training goes on from the checkpoint at step" in log.read_text()


def test_ctrl_c_lets_the_variants_on_a_running_cluster_stop_at_their_next_report(
    path, run, scheduler
):
    folder = path / "data/test/sweeps/cancelled"

    def interrupt():
        await_(lambda: list(folder.rglob("step_*.safetensors")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, output = run("cancelled")
    thread.join()
    assert status == 130, output
    assert (
        f"`kedro sweep run cancelled --env test --scheduler {scheduler}` goes on from here"
        in output
    )
    (log,) = folder.rglob("run.log")
    assert [state["status"] for state in states(path, "cancelled").values()] == ["interrupted"]
    with Client(scheduler) as client:
        await_(
            lambda: not any(client.run(lambda dask_worker: len(dask_worker.active_keys)).values())
        )
    parent, children = runs(path, "cancelled")
    assert [run.info.status for run in (parent, *children)] == ["KILLED"] * 2
    assert [state["status"] for state in states(path, "cancelled").values()] == ["interrupted"]
    assert run("cancelled")[0] == 0
    assert "Training goes on from the checkpoint at step" in log.read_text()


def test_what_cannot_run_is_said_before_anything_starts(path, run, monkeypatch):
    monkeypatch.setattr(engine, "_CONNECT_TIMEOUT", 1)
    with pytest.raises(
        SweepError, match=r"there is no sweep 'other'; allowed: depth, width, noise, "
    ):
        run("other")
    with pytest.raises(
        SweepError, match=r"variant model.width=15: model: num_heads=2 does not divide"
    ):
        run("invalid")
    with pytest.raises(SweepError, match="no Dask scheduler answers there"):
        run_sweep(
            Project(path, "test"),
            "diverging",
            Cluster("tcp://127.0.0.1:9"),
            Console(file=io.StringIO()),
        )


def test_what_a_killed_driver_left_as_running_was_interrupted(path, run, monkeypatch):
    monkeypatch.setattr(engine, "_CONNECT_TIMEOUT", 1)
    variant, folder = first_variant(path, "unbroken")
    folder.write(variant.record | NOTHING_YET)
    with pytest.raises(SweepError, match="no Dask scheduler answers there"):
        run_sweep(
            Project(path, "test"),
            "unbroken",
            Cluster("tcp://127.0.0.1:9"),
            Console(file=io.StringIO()),
        )
    assert folder.read()["status"] == "interrupted"


def test_a_sweep_that_cannot_be_run_does_not_hide_the_others_in_the_list(path, run):
    (path / "conf/test/sweeps.yml").write_text(SWEEPS + "malformed: {axes: 3}\n")
    console = Console(width=250, file=io.StringIO())
    with pytest.raises(SweepError, match=r"(?s)invalid.*malformed\.axes: "):
        show_list(Project(path, "test"), console)
    lines = console.file.getvalue().splitlines()
    assert any("invalid" in line and "not valid" in line for line in lines)
    assert any("malformed" in line and "not valid" in line for line in lines)
    assert any("diverging" in line and "not valid" not in line for line in lines)


def test_all_sweeps_are_listed_with_how_much_of_them_is_done(path, run):
    (path / "conf/test/sweeps.yml").write_text(SWEEPS.partition("invalid:")[0])
    (line,) = [
        line
        for line in printed(show_list, Project(path, "test")).splitlines()
        if "diverging" in line
    ]
    assert [cell.strip() for cell in line.split("│")[2:-1]] == [
        "training.learning_rate: 0.003, 100000.0",
        "0",
        "2",
        "1",
    ]
