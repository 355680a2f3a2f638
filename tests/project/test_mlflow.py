"""What MLflow holds of a run: a model that predicts, prompts by digest, tables that it can show."""

import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from support.project import client, copy_project, kedro, report, runs

from incontext_linear.learner.saved import load_learner
from incontext_linear.logged_learner import fetch_learner, requirement
from incontext_linear.runs.run_table import HEADLINE
from incontext_linear.tasks import draw_prompts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

RUN = ("run", "--env", "test", "--pipelines", "model_training,behavioral_comparison")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two trainings, one after the other: of the second the learner lies on the disk."""
    project = copy_project(tmp_path_factory.mktemp("tracked"))
    for settings in ("registered_model=mine", "seed=1,training.num_steps=10"):
        result = kedro(project, *RUN, "--params", settings, drawn=False)
        assert result.returncode == 0, result.output[-3000:]
    return project


@pytest.fixture
def first(project):
    return runs(project)[-1]


@pytest.fixture
def tracked(project):
    """MLflow's own functions, on the project's database."""
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    yield
    mlflow.set_tracking_uri("")


def test_the_learner_is_a_model_that_predicts_as_ours(project, tracked):
    learner = load_learner(project / "data/test/06_models/learner.safetensors")
    prompts = draw_prompts(learner.task, 4, seed=2)
    with torch.no_grad():
        ours = learner.model(prompts.xs, prompts.ys).numpy()
    run = runs(project)[0].info.run_id
    model = mlflow.pyfunc.load_model(f"runs:/{run}/learner")
    asked = {"xs": prompts.xs.numpy(), "ys": prompts.ys.numpy()}
    assert np.array_equal(model.predict(asked), ours)
    assert model.metadata.signature.inputs.input_names() == ["xs", "ys"]
    with pytest.raises(MlflowException):
        model.predict({"xs": asked["xs"]})


def test_the_saved_view_of_the_run_table_shows_what_runs_have(project, first):
    tags = client(project).get_experiment(first.info.experiment_id).tags
    view = json.loads(tags["mlflow.sharedViewState.algorithms"])
    state = json.loads(view["state"])
    assert state["orderByKey"] in state["selectedColumns"]
    held = first.data.to_dictionary()
    for column in state["selectedColumns"]:
        kind, name = column.replace("`", "").split(".", 1)
        assert name in held[kind] or name.startswith(("identification", "verdict"))


def test_a_model_is_safetensors_and_no_pickle(project, tracked, first):
    (model,) = client(project).search_logged_models([first.info.experiment_id], max_results=9)[-1:]
    files = [path for path in (project / "mlruns").rglob("*") if path.is_file()]
    ours = [path.name for path in files if model.model_id in str(path)]
    assert "learner.safetensors" in ours
    assert "input_example.json" in ours
    assert not [name for name in ours if name.endswith((".pkl", ".pickle", ".pt"))]


def test_a_second_training_loses_nothing(project, tracked, first):
    kept = fetch_learner(f"runs:/{first.info.run_id}/learner")
    assert kept.record["step"] == 40
    saved = project / "data/test/06_models/learner.safetensors"
    assert load_learner(saved).record["step"] == 10
    result = kedro(project, "learner", "restore", first.info.run_id, "--env", "test")
    assert result.returncode == 0, result.output
    assert load_learner(saved).record["step"] == 40


def test_a_run_without_a_learner_is_answered_in_one_line(project):
    result = kedro(project, "learner", "restore", "0" * 32, "--env", "test")
    assert result.returncode == 1
    assert "allowed: a run that trained a learner" in result.says
    assert "Traceback" not in result.output


def test_a_learner_is_registered_where_that_is_asked_for(project, tracked):
    versions = client(project).search_model_versions("name = 'mine'")
    assert [version.version for version in versions] == [1]


def test_prompts_are_inputs_whose_digest_changes_with_the_seed(project):
    inputs = [run.inputs for run in runs(project)]
    second, first = ([i.dataset for i in given.dataset_inputs] for given in inputs if given)
    assert [dataset.name for dataset in first] == ["evaluation_prompts"]
    assert first[0].digest != second[0].digest


def test_the_run_table_tells_which_run_is_better(project, first):
    spd = report(project, "spd_curves")  # of the second run
    at = spd[(spd["predictor"] == "ols") & (spd["examples_seen"] == 4)]["mean"].item()
    metrics = runs(project)[0].data.metrics
    assert metrics["behaviour/spd_to_ols_at_2d"] == pytest.approx(at)
    assert 0 < metrics[HEADLINE] < 10
    assert metrics["behaviour/nearest_margin"] >= 1
    assert metrics["run/seconds"] > 0
    assert metrics["training/num_parameters"] > 1000
    assert first.data.tags["nearest"] in set(spd["predictor"])


def test_the_compare_page_opens_on_the_first_metric_which_is_the_distance(first):
    assert next(iter(first.data.metrics)) == HEADLINE


def test_metrics_are_in_groups(first):
    groups = {name.partition("/")[0] for name in first.data.metrics if "/" in name}
    assert {"behaviour", "training", "run"} <= groups
    assert all("/" in name for name in first.data.metrics)


def test_tables_are_also_there_in_a_form_that_mlflow_shows(project, tracked):
    run = runs(project)[0].info.run_id
    path = download_artifacts(f"runs:/{run}/tables/spd_curves.csv")
    shown, table = pd.read_csv(path), report(project, "spd_curves")
    pd.testing.assert_frame_equal(shown, table, check_dtype=False, check_exact=False)


def test_a_run_ends_with_its_report_as_file_and_artifact(project, first):
    names = [artifact.path for artifact in client(project).list_artifacts(first.info.run_id)]
    assert "report.html" in names
    page = (project / "data/test/08_reporting/report.html").read_text()
    assert "This run trained the learner." in page
    assert "kedro run --pipelines identification" in page


def test_a_report_shows_nothing_of_another_run(project):
    result = kedro(project, "run", "--env", "test", "--pipelines", "data_generation")
    assert result.returncode == 0, result.output[-3000:]
    page = (project / "data/test/08_reporting/report.html").read_text()
    assert (project / "data/test/08_reporting/spd_curves.parquet").exists()
    assert "kedro run --pipelines behavioral_comparison" in page
    assert "SPD to least squares" not in page
    assert HEADLINE not in runs(project)[0].data.metrics


def test_a_run_says_in_few_lines_what_it_did(project):
    result = kedro(project, *RUN, drawn=False)
    # What is logged comes once wrapped as in a terminal, and once more as it is.
    lines = result.output[result.output.rindex("Kedro project") :].splitlines()
    assert len(lines) <= 40, result.output
    says = " ".join(lines[-6:])
    assert all(part in says for part in ("Verdict: After 4 examples", "report.html", "make mlflow"))


def test_a_package_that_is_imported_without_being_installed_asks_for_any_version():
    assert requirement("pandas") == f"pandas=={pd.__version__}"
    assert requirement("no-such-package-here") == "no-such-package-here"
