"""The whole project in conf/test, as a user runs it: a copy of the tree, commands in a shell."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import load_file

from incontext_linear.config import TaskConfig
from incontext_linear.learner.saved import load_learner
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.tasks import draw_prompts

ROOT = Path(__file__).parents[2]
PIPELINES = [
    "data_generation",
    "model_training",
    "baseline_estimation",
    "behavioral_comparison",
    "probing",
    "construction",
]


def kedro(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"DO_NOT_TRACK": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "kedro", *arguments]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )


def copy_project(target: Path) -> Path:
    for name in ("conf", "src", "notebooks"):
        shutil.copytree(
            ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(ROOT / name, target)
    return target


def snapshot(project: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(project)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in project.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".log"
    }


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("finished"))
    result = kedro(project, "run", "--env", "test")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return project


@pytest.fixture(scope="module")
def runs(finished):
    mlflow.set_tracking_uri(f"sqlite:///{finished}/mlflow.db")
    return mlflow.search_runs(search_all_experiments=True)


def statuses(project: Path) -> list[str]:
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def table(project: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(project / "data/test/08_reporting" / f"{name}.parquet")


def test_one_run_of_kedro_is_one_run_of_mlflow(runs):
    assert len(runs) == 1
    assert runs.loc[0, "status"] == "FINISHED"
    assert runs.loc[0, "tags.pipeline"] == "__default__"
    assert runs.loc[0, "tags.git_commit"]


def test_a_run_that_fails_is_failed_in_mlflow(tmp_path):
    project = copy_project(tmp_path)
    settings = (
        "training.learning_rate=100000,training.gradient_clip=100000,training.optimizer=adamw"
    )
    result = kedro(
        project, "run", "--env", "test", "--pipelines", "model_training", "--params", settings
    )
    assert result.returncode != 0
    assert "training diverged at step" in " ".join((result.stdout + result.stderr).split())
    assert statuses(project) == ["FAILED"]


def test_every_parameter_is_a_column_of_its_own(runs):
    expected = {
        "params.task.dim": "2",
        "params.model.num_layers": "2",
        "params.training.num_steps": "40",
    }
    assert {name: runs.loc[0, name] for name in expected} == expected
    assert "params.task" not in runs
    assert "params.baselines.ols.type" in runs


def test_spd_curves_are_metric_histories_over_examples_seen(finished, runs):
    history = mlflow.MlflowClient().get_metric_history(runs.loc[0, "run_id"], "spd.ols")
    curve = (
        table(finished, "spd_curves").query("predictor == 'ols'").set_index("examples_seen")["mean"]
    )
    assert {m.step: m.value for m in history} == pytest.approx(curve.to_dict())


def test_figures_and_tables_are_artifacts(runs):
    client, run = mlflow.MlflowClient(), runs.loc[0, "run_id"]
    figures = {Path(a.path).name for a in client.list_artifacts(run, "figures")}
    tables = {Path(a.path).name for a in client.list_artifacts(run, "tables")}
    assert {"divergence.png", "risk.png", "training.png", "probe_score.png"} <= figures
    assert {"spd_curves.parquet", "ilwd_curves.parquet", "probe_scores.parquet"} <= tables


def test_tables_hold_every_predictor_prefix_layer_target_and_kind(finished):
    spd = table(finished, "spd_curves")
    assert spd.groupby("predictor").size().eq(6).all()
    assert {"ols", "ridge_1", "knn_3", "gd_1", "sgd"} <= set(spd["predictor"])
    assert (spd["low"] <= spd["mean"]).all()
    assert (spd["mean"] <= spd["high"]).all()


def test_probes_cover_every_layer_target_read_out_and_context_length(finished):
    scores, controls = table(finished, "probe_scores"), table(finished, "control_scores")
    num_probes = 3 * 4 * 3 * 2
    assert len(scores) == num_probes
    assert controls.groupby("source").size().to_dict() == dict.fromkeys(
        ["control_learner", "random_targets", "untrained_learner"], num_probes
    )
    assert len(table(finished, "selectivity")) == num_probes
    assert len(table(finished, "target_appearances")) == 4 * 3 * 2
    assert len(table(finished, "target_overlap")) == 4 * 3 * 2


def test_interventions_and_progress_cover_every_layer(finished):
    methods = table(finished, "causality").groupby(["method", "target"])["layer"].nunique()
    assert len(methods) == 5 * 2 + 1
    assert methods.eq(3).all()
    steps = table(finished, "layer_progress").groupby("algorithm")["steps"].nunique().to_dict()
    assert steps == {"gradient_descent": 3, "iterative_newton": 3, "least_squares": 1, "learner": 1}


def test_parts_of_the_probing_pipeline_are_chosen_by_tags(finished):
    result = kedro(
        finished, "run", "--env", "test", "--pipelines", "probing", "--tags", "layerwise"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "measure_progress" in result.stdout + result.stderr
    assert "train_probes" not in result.stdout + result.stderr


def test_checkpoints_are_gone_once_the_learner_is_saved(finished):
    learner = load_learner(finished / "data/test/06_models/learner.safetensors")
    assert learner.record["step"] == 40
    assert not list((finished / "data/test/06_models/checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_runs_alone_and_gives_the_same_numbers(finished, name):
    before = {path: pd.read_parquet(path) for path in (finished / "data/test").rglob("*.parquet")}
    learner = (finished / "data/test/06_models/learner.safetensors").read_bytes()
    result = kedro(finished, "run", "--env", "test", "--pipelines", name)
    assert result.returncode == 0, result.stderr[-3000:]
    for path, content in before.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), content)
    assert (finished / "data/test/06_models/learner.safetensors").read_bytes() == learner


@pytest.mark.parametrize(
    ("name", "missing", "command"),
    [
        ("probing", "learner", "kedro run --env test --pipelines model_training"),
        ("behavioral_comparison", "learner", "kedro run --env test --pipelines model_training"),
    ],
)
def test_where_input_has_not_been_made_the_error_says_which_command_makes_it(
    empty, name, missing, command
):
    before = snapshot(empty)
    result = kedro(empty, "run", "--env", "test", "--pipelines", name)
    assert result.returncode != 0
    assert f"- {missing}: make it with `{command}`" in result.stderr + result.stdout
    assert set(snapshot(empty)) - set(before) <= {"mlflow.db"}


def test_a_measurement_draws_its_own_prompts_and_says_that_they_are_new_to_the_learner(
    finished, tmp_path
):
    project = copy_project(tmp_path)
    shutil.copytree(finished / "data/test/06_models", project / "data/test/06_models")
    settings = ["--params", "task.noise_std=0.5,seed=1"]
    result = kedro(
        project, "run", "--env", "test", "--pipelines", "behavioral_comparison", *settings
    )
    says = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 0, says[-3000:]
    assert "trained with task.noise_std 0.0, not 0.5" in says
    drawn = load_file(project / "data/test/05_model_input/evaluation_prompts.safetensors")
    task = TaskConfig(dim=2, num_examples=6, noise_std=0.5)
    assert torch.equal(drawn["ys"], draw_prompts(task, 64, seed=1, stream="evaluation").ys)
    risk = (
        table(project, "risk_curves")
        .query("predictor == 'ols' and examples_seen == 5")["mean"]
        .item()
    )
    missed = OrdinaryLeastSquares()(drawn["xs"].double(), drawn["ys"].double()) - drawn["ys"]
    assert risk == pytest.approx(missed[:, 5].square().mean().item(), rel=1e-3)


def test_from_a_folder_of_the_project_the_same_files_are_read_and_written(finished):
    result = subprocess.run(
        [sys.executable, "-m", "kedro", "run", "--env", "test", "--pipelines", "data_generation"],
        cwd=finished / "notebooks",
        env=os.environ | {"DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert not list((finished / "notebooks").rglob("*.db"))
    assert not (finished / "notebooks/data").exists()


def test_only_missing_outputs_trains_where_only_the_shipped_learner_is_there(tmp_path):
    project = copy_project(tmp_path)
    pretrained = project / "data/06_models/pretrained"
    pretrained.mkdir(parents=True)
    shutil.copy(ROOT / "data/06_models/pretrained/small_learner.safetensors", pretrained)
    steps = ["--params", "training.num_steps=2,training.batch_size=2"]
    result = kedro(
        project, "run", "--pipelines", "model_training", "--only-missing-outputs", *steps
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert load_learner(project / "data/06_models/learner.safetensors").record["step"] == 2


def test_a_pipeline_that_does_not_exist_is_answered_by_those_that_do(empty):
    result = kedro(empty, "run", "--pipelines", "probign")
    assert result.returncode != 0
    assert (
        "there is no pipeline 'probign'; allowed: baseline_estimation"
        in result.stdout + result.stderr
    )


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("task.dim=-3", "task.dim: input should be greater than 0; given -3"),
        ("task.dimension=3", "task.dimension: unknown parameter (given 3); allowed here: dim"),
        ("model.num_heads=5", "num_heads=5 does not divide width=16"),
        ("training.batch_size=small", "training.batch_size: input should be a valid integer"),
    ],
)
def test_a_bad_parameter_fails_at_once_and_nothing_on_disk_changes(finished, setting, says):
    before = snapshot(finished)
    result = kedro(finished, "run", "--env", "test", "--params", setting)
    assert result.returncode != 0
    assert says in (result.stderr + result.stdout)
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_run_on_a_finished_run(finished, path, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setenv("KEDRO_ENV", "test")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=180,
        kernel_name="python3",
        resources={"metadata": {"path": str(finished)}},
    ).execute()
    assert any(cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")


def test_a_learner_of_another_shape_than_the_parameters_is_refused(finished):
    before = snapshot(finished)
    result = kedro(
        finished, "run", "--env", "test", "--pipelines", "probing", "--params", "model.width=32"
    )
    assert result.returncode != 0
    says = result.stderr + result.stdout
    assert "width=16" in says
    assert "width=32" in says
    assert snapshot(finished) == before


def test_an_interrupted_run_is_killed_in_mlflow_and_leaves_a_checkpoint_to_go_on_from(tmp_path):
    project = copy_project(tmp_path)
    settings = "training.num_steps=100000,training.checkpoint_every=5"
    command = [
        sys.executable,
        "-m",
        "kedro",
        "run",
        "--env",
        "test",
        "--pipelines",
        "model_training",
    ]
    process = subprocess.Popen(
        [*command, "--params", settings],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = project / "data/test/06_models/checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.rglob("step_*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert statuses(project) == ["KILLED"]
    assert list(checkpoints.rglob("step_*.safetensors"))
