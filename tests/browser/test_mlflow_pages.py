"""MLflow's pages over a run of ours: what a person who opens them sees."""

import mlflow
import pytest

MODEL_TRAINING = "workflowType=machine_learning"


@pytest.fixture
def run(small_run):
    """The run, as MLflow's client gives it."""
    client = mlflow.MlflowClient(f"sqlite:///{small_run}/mlflow.db")
    experiment = client.get_experiment_by_name("incontext-linear")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]


def test_the_run_table_opens_in_the_model_training_view(browser, mlflow_ui, run):
    # The link that `make mlflow` prints.
    assert run.info.experiment_id == "1"
    browser.open(f"{mlflow_ui}/#/experiments/1/runs?{MODEL_TRAINING}")
    browser.wait_for(run.info.run_name.split()[0][:20], "Metrics", "Columns")


def test_a_runs_page_shows_its_numbers_by_group_and_its_prompts(browser, mlflow_ui, run):
    browser.open(f"{mlflow_ui}/#/experiments/1/runs/{run.info.run_id}?{MODEL_TRAINING}")
    browser.wait_for("behaviour/spd_to_ols_at_2d", "evaluation_prompts", "nearest")


def test_the_compare_page_shows_a_metric_that_means_something(browser, mlflow_ui, run):
    browser.open(
        f"{mlflow_ui}/#/metric?runs=[%22{run.info.run_id}%22]"
        f"&metric=%22behaviour/spd.ols%22&experiments=[%221%22]"
    )
    browser.wait("document.querySelector('.js-plotly-plot, .plot-container') !== null")
    browser.wait_for("behaviour/spd.ols")


def test_the_models_page_shows_its_signature(browser, mlflow_ui, run):
    browser.open(f"{mlflow_ui}/#/models/seen/versions/1?{MODEL_TRAINING}")
    browser.wait_for("Schema", "xs", "ys")
