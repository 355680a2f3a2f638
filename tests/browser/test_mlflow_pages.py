"""MLflow's pages over a run of ours: what a person who opens them sees."""

import re

import mlflow
import pytest
from support.project import ROOT

from incontext_linear.runs.run_table import HEADLINE

MODEL_TRAINING = "workflowType=machine_learning"


@pytest.fixture
def run(small_run):
    """The run, as MLflow's client gives it."""
    client = mlflow.MlflowClient(f"sqlite:///{small_run}/mlflow.db")
    experiment = client.get_experiment_by_name("incontext-linear")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]


def test_the_link_of_make_mlflow_opens_the_run_table_with_verdicts_and_distances(
    browser, mlflow_ui, run
):
    (link,) = re.findall(r"http://127.0.0.1:5000(/\S+)\"", (ROOT / "Makefile").read_text())
    browser.open(mlflow_ui + link)
    names = HEADLINE, "identification/num_survivors", "verdict"
    browser.wait_for(run.info.run_name.split()[0][:20], "Which algorithm", *names)


def test_a_runs_page_shows_its_numbers_by_group_and_its_prompts(browser, mlflow_ui, run):
    browser.open(f"{mlflow_ui}/#/experiments/1/runs/{run.info.run_id}?{MODEL_TRAINING}")
    browser.wait_for("behaviour/spd_to_ols_at_2d", "evaluation_prompts", "nearest")


def test_a_runs_metrics_are_charts_that_begin_with_its_behaviour(browser, mlflow_ui, run):
    address = f"{mlflow_ui}/#/experiments/1/runs/{run.info.run_id}/model-metrics"
    browser.open(f"{address}?{MODEL_TRAINING}")
    browser.wait_for("behaviour", "ilwd.averaging")  # charts below are drawn as one scrolls
    browser.wait("document.querySelector('.js-plotly-plot') !== null")


def test_the_compare_page_opens_with_a_chart_of_the_distance(browser, mlflow_ui, run):
    settings = f"runs=[%22{run.info.run_id}%22]&experiments=[%221%22]&{MODEL_TRAINING}"
    browser.open(f"{mlflow_ui}/#/compare-runs?{settings}")
    browser.wait("document.querySelector('.js-plotly-plot') !== null")
    plots = "[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data || [])"
    browser.wait(f"{plots}.some(t => (t.dimensions || []).some(d => d.label === '{HEADLINE}'))")
    browser.wait_for("Parallel Coordinates Plot", "Run details")


def test_the_models_page_shows_its_signature(browser, mlflow_ui, run):
    browser.open(f"{mlflow_ui}/#/models/seen/versions/1?{MODEL_TRAINING}")
    browser.wait_for("Schema", "Inputs (2)", "Outputs (1)")
