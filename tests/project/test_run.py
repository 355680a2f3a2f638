"""The whole project in conf/test, as a user runs it: a copy of the tree, and Kedro's commands."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from safetensors.torch import load_file
from support.project import (
    ROOT,
    client,
    copy_project,
    kedro,
    kedro_process,
    report,
    runs,
    snapshot,
    statuses,
)

from incontext_linear.config import TaskConfig
from incontext_linear.learner.saved import load_learner
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.tasks import draw_prompts

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

PIPELINES = [
    "data_generation",
    "model_training",
    "baseline_estimation",
    "behavioral_comparison",
    "probing",
    "construction",
]


# `make interop` executes the one on other people's tools.
NOTEBOOKS = sorted(set((ROOT / "notebooks").glob("*.ipynb")) - {ROOT / "notebooks/interop.ipynb"})


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("finished"), "notebooks", database=False)
    result = kedro(project, "run", "--env", "test")
    assert result.returncode == 0, result.output[-3000:]
    return project


@pytest.fixture(scope="module")
def first_run(finished):
    """What MLflow holds of that run."""
    return runs(finished)[-1]


def test_one_run_of_kedro_is_one_run_of_mlflow(finished, first_run):
    assert first_run.info.status == "FINISHED"
    assert first_run.data.tags["pipeline"] == "__default__"
    assert first_run.data.tags["git_commit"]


def test_a_run_that_fails_is_failed_in_mlflow(tmp_path):
    project = copy_project(tmp_path)
    settings = (
        "training.learning_rate=100000,training.gradient_clip=100000,training.optimizer=adamw"
    )
    result = kedro(
        project, "run", "--env", "test", "--pipelines", "model_training", "--params", settings
    )
    assert result.returncode != 0
    assert "training diverged at step" in result.says
    assert "Traceback" not in result.output
    assert statuses(project) == ["FAILED"]


def test_every_parameter_is_a_column_of_its_own(first_run):
    expected = {"task.dim": "2", "model.num_layers": "2", "training.num_steps": "40"}
    assert first_run.data.params.items() >= expected.items()
    assert "task" not in first_run.data.params
    assert "baselines.ols.type" in first_run.data.params


def test_spd_curves_are_metric_histories_over_examples_seen(finished, first_run):
    history = client(finished).get_metric_history(first_run.info.run_id, "behaviour/spd.ols")
    curve = (
        report(finished, "spd_curves")
        .query("predictor == 'ols'")
        .set_index("examples_seen")["mean"]
    )
    assert {m.step: m.value for m in history} == pytest.approx(curve.to_dict())


def test_figures_and_tables_are_artifacts(finished, first_run):
    listed = client(finished).list_artifacts
    figures, tables = (
        {Path(artifact.path).name for artifact in listed(first_run.info.run_id, folder)}
        for folder in ("figures", "tables")
    )
    assert {"divergence.png", "risk.png", "training.png", "probe_score.png"} <= figures
    assert {"spd_curves.parquet", "ilwd_curves.parquet", "probe_scores.parquet"} <= tables


def test_tables_hold_every_predictor_prefix_layer_target_and_kind(finished):
    spd = report(finished, "spd_curves")
    assert spd.groupby("predictor").size().eq(6).all()
    assert {"ols", "ridge_1", "knn_3", "gd_1", "sgd"} <= set(spd["predictor"])
    assert (spd["low"] <= spd["mean"]).all()
    assert (spd["mean"] <= spd["high"]).all()


def test_probes_cover_every_layer_target_read_out_and_context_length(finished):
    scores, controls = report(finished, "probe_scores"), report(finished, "control_scores")
    num_probes = 3 * 4 * 3 * 2
    assert len(scores) == num_probes
    assert controls.groupby("source").size().to_dict() == dict.fromkeys(
        ["control_learner", "random_targets", "untrained_learner"], num_probes
    )
    assert len(report(finished, "selectivity")) == num_probes
    assert len(report(finished, "target_appearances")) == 4 * 3 * 2 * 3
    assert len(report(finished, "target_overlap")) == 4 * 3 * 2


def test_interventions_and_progress_cover_every_layer(finished):
    methods = report(finished, "causality").groupby(["method", "target"])["layer"].nunique()
    assert len(methods) == 5 * 2 + 1
    assert methods.eq(3).all()
    steps = report(finished, "layer_progress").groupby("algorithm")["steps"].nunique().to_dict()
    assert steps == {"gradient_descent": 3, "iterative_newton": 3, "least_squares": 1, "learner": 1}


def test_parts_of_the_probing_pipeline_are_chosen_by_tags(finished):
    result = kedro(
        finished,
        "run",
        "--env",
        "test",
        "--pipelines",
        "probing",
        "--tags",
        "layerwise",
        drawn=False,
    )
    assert result.returncode == 0, result.output[-3000:]
    assert "probing: 5 nodes" in result.says
    made = client(finished).list_artifacts(runs(finished)[0].info.run_id, "tables")
    assert {Path(table.path).stem for table in made} == {"layer_progress", "nearest_steps"}


def test_checkpoints_are_gone_once_the_learner_is_saved(finished):
    learner = load_learner(finished / "data/test/06_models/learner.safetensors")
    assert learner.record["step"] == 40
    assert not list((finished / "data/test/06_models/checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_runs_alone_and_gives_the_same_numbers(finished, name):
    before = {path: pd.read_parquet(path) for path in (finished / "data/test").rglob("*.parquet")}
    learner = (finished / "data/test/06_models/learner.safetensors").read_bytes()
    result = kedro(finished, "run", "--env", "test", "--pipelines", name, drawn=False)
    assert result.returncode == 0, result.output[-3000:]
    for path, content in before.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), content)
    assert (finished / "data/test/06_models/learner.safetensors").read_bytes() == learner


@pytest.mark.parametrize(
    ("name", "command"), [("probing", kedro_process), ("behavioral_comparison", kedro)]
)
def test_where_input_has_not_been_made_the_error_says_which_command_makes_it(empty, name, command):
    before = snapshot(empty)
    result = command(empty, "run", "--env", "test", "--pipelines", name)
    assert result.returncode == 1
    makes = "- learner: make it with `kedro run --env test --pipelines model_training`"
    assert makes in result.output
    assert "Traceback" not in result.output
    assert set(snapshot(empty)) - set(before) <= {"mlflow.db"}


@pytest.mark.parametrize("changed", ["task.noise_std", "evaluation.task.noise_std"])
def test_a_measurement_draws_its_own_prompts_and_says_that_they_are_new_to_the_learner(
    finished, tmp_path, changed
):
    project = copy_project(tmp_path)
    shutil.copytree(finished / "data/test/06_models", project / "data/test/06_models")
    command = ("run", "--env", "test", "--pipelines", "behavioral_comparison")
    result = kedro(project, *command, "--params", f"{changed}=0.5,seed=1", drawn=False)
    assert result.returncode == 0, result.output[-3000:]
    says = "out of distribution: trained with task.noise_std = 0.0, these prompts have 0.5"
    assert says in result.says
    drawn = load_file(project / "data/test/05_model_input/evaluation_prompts.safetensors")
    task = TaskConfig(dim=2, num_examples=6, noise_std=0.5)
    assert torch.equal(drawn["ys"], draw_prompts(task, 64, seed=1, stream="evaluation").ys)
    risk = (
        report(project, "risk_curves")
        .query("predictor == 'ols' and examples_seen == 5")["mean"]
        .item()
    )
    missed = OrdinaryLeastSquares()(drawn["xs"].double(), drawn["ys"].double()) - drawn["ys"]
    assert risk == pytest.approx(missed[:, 5].square().mean().item(), rel=1e-3)


def test_from_a_folder_of_the_project_the_same_files_are_read_and_written(finished):
    names = ("--env", "test", "--pipelines", "data_generation")
    result = kedro_process(finished / "notebooks", "run", *names)
    assert result.returncode == 0, result.output[-3000:]
    assert runs(finished)[0].data.tags["mlflow.runName"] == "test data_generation"
    assert statuses(finished)[-1] == "FINISHED"
    assert not list((finished / "notebooks").rglob("*.db"))
    assert not (finished / "notebooks/data").exists()
    # Nothing of libraries about each other, and no colours where the output is no terminal.
    for noise in ("Add type hints", "AnyType", "register_new_resolver", "\x1b["):
        assert noise not in result.output


def test_only_missing_outputs_trains_where_only_the_shipped_learner_is_there(tmp_path):
    project = copy_project(tmp_path)
    pretrained = project / "data/06_models/pretrained"
    pretrained.mkdir(parents=True)
    shutil.copy(ROOT / "data/06_models/pretrained/small_learner.safetensors", pretrained)
    steps = ["--params", "training.num_steps=2,training.batch_size=2"]
    result = kedro(
        project, "run", "--pipelines", "model_training", "--only-missing-outputs", *steps
    )
    assert result.returncode == 0, result.output[-3000:]
    assert load_learner(project / "data/06_models/learner.safetensors").record["step"] == 2


def test_a_pipeline_that_does_not_exist_is_answered_by_those_that_do(empty):
    result = kedro(empty, "run", "--pipelines", "probign")
    assert result.returncode == 1
    assert "there is no pipeline 'probign'; allowed: across_seeds" in result.output


def test_a_bad_parameter_fails_at_once_and_nothing_on_disk_changes(finished):
    before = snapshot(finished)
    result = kedro(
        finished, "run", "--env", "test", "--params", "task.dimension=3,model.num_heads=5"
    )
    assert result.returncode == 1
    assert "task.dimension: unknown parameter (given 3); allowed here: dim" in result.output
    assert "Traceback" not in result.output
    assert snapshot(finished) == before


@pytest.fixture(scope="module")
def told(finished, tmp_path_factory):
    """A copy of the finished run whose ``conf`` has changed since."""
    project = tmp_path_factory.mktemp("told") / "project"
    shutil.copytree(finished, project)
    file = project / "conf/test/parameters.yml"
    file.write_text(file.read_text().replace("dim: 2\n", "dim: 2\n  noise_std: 0.5\n", 1))
    return project


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks, whose cells take less time than a kernel's imports."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=os.environ | {"KEDRO_ENV": "test"})
    yield manager
    manager.shutdown_kernel(now=True)


def execute(
    kernel: KernelManager, project: Path, notebook: nbformat.NotebookNode
) -> list[nbformat.NotebookNode]:
    """Run a notebook's cells, which find no name of another's; their outputs, one after another."""
    first = nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {project / 'notebooks'}")
    notebook.cells.insert(0, first)
    running = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        running.execute()
    finally:
        if running.kc:
            running.kc.stop_channels()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output for cell in cells for output in cell.outputs]


def without_colors(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_their_figures_and_the_parameters_of_the_run(told, kernel, path):
    notebook = nbformat.read(path, as_version=4)
    drawn = sum(cell.source.count("plot_") > 0 for cell in notebook.cells)
    outputs = execute(kernel, told, notebook)
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == drawn >= 3
    says = "\n".join(without_colors(data["text/plain"]) for data in shown)
    if path.stem == "read_a_run":
        assert re.search(r"task\.noise_std +0\.0 ", says)


def test_a_notebook_refuses_results_of_different_runs_in_one_line(told, kernel, tmp_path):
    project = tmp_path / "mixed"
    shutil.copytree(told, project)
    causality = report(project, "causality")
    causality["fraction"] /= 2
    causality.to_parquet(project / "data/test/08_reporting/causality.parquet")
    notebook = nbformat.read(ROOT / "notebooks/hidden_states.ipynb", as_version=4)
    with pytest.raises(CellExecutionError) as caught:
        execute(kernel, project, notebook)
    assert re.fullmatch(
        r"no single run made .*causality.* as they are on disk: "
        r"make them together with `kedro run --pipelines probing`",
        caught.value.evalue,
    )


def test_a_learner_of_another_shape_than_the_parameters_is_refused(finished):
    before = snapshot(finished)
    result = kedro(
        finished, "run", "--env", "test", "--pipelines", "probing", "--params", "model.width=32"
    )
    assert result.returncode != 0
    assert "width=16" in result.output
    assert "width=32" in result.output
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


def documented_columns() -> dict[str, list[str]]:
    """Table → columns, as the page of the tables lists them."""
    page = (ROOT / "docs/reference/tables.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (`[^|]*`) \|$", page, re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", columns) for name, columns in rows}


def test_every_table_of_a_run_and_its_columns_are_documented(finished):
    folder = finished / "data/test"
    tables = {path.stem: pd.read_parquet(path) for path in folder.glob("0[78]_*/*.parquet")}
    tables |= {path.stem: pd.read_csv(path) for path in folder.glob("08_reporting/*.csv")}
    written = {name: sorted(table.columns) for name, table in tables.items()}
    assert written == {name: sorted(columns) for name, columns in documented_columns().items()}
