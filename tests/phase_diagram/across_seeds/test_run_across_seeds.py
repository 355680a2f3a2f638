"""The `across_seeds` pipeline as a user runs it, on a sweep whose learners are made up."""

import json

import mlflow
import pytest
from safetensors.torch import save_file
from support.project import copy_project, report
from support.project import kedro as kedro_command
from support.synthetic_sweep import BASELINES, mixture, write_variant

from incontext_linear.config import TaskConfig
from incontext_linear.predictors import build_predictors
from incontext_linear.runs.database import ensure_database
from incontext_linear.tables import LEARNER
from incontext_linear.tasks import draw_prompts

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SEEDS = range(3)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    target = copy_project(tmp_path_factory.mktemp("seeds"))
    sweep, task = target / "data/test/sweeps/seeds", TaskConfig(dim=2, num_examples=6)
    built = build_predictors(BASELINES, task)
    for seed in SEEDS:
        learner = mixture([(built["ols"], 1.0)], 0.1 * (1 + seed), seed)
        folder = write_variant(sweep, {}, seed, learner, BASELINES, task, num_prompts=32)
        prompts = draw_prompts(task, 32, seed, stream="evaluation")
        (folder / "05_model_input").mkdir()
        tensors = {"ys": prompts.ys}
        save_file(tensors, folder / "05_model_input/evaluation_prompts.safetensors")
    database = target / "mlflow.db"
    ensure_database(database, "incontext_linear")
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    (experiment, *_) = client.search_experiments()
    parent = client.create_run(experiment.experiment_id).info.run_id
    (sweep / "sweep.json").write_text(json.dumps({"parent_run_id": parent}))
    return target, client, parent


def test_a_sweep_becomes_means_over_seeds_on_its_own_run(project):
    path, client, parent = project
    result = kedro_command(path, "run", "--env", "test", "--pipelines", "across_seeds")
    assert result.returncode == 0, result.output[-3000:]
    assert "3 seeds (fewer than 5" in result.says
    table = report(path, "seeds_over_seeds_means")
    ols = table[(table["measure"] == "SPD") & (table["series"] == "ols")]
    # The planted deviation has the mean square 0.01 (1 + 4 + 9) / 3 = 0.047.
    assert ols["mean"].mean() == pytest.approx(0.047, rel=0.2)
    assert set(ols["over"]) == {"seeds and prompts"}
    assert len(report(path, "seeds_over_seeds_singles")) == 3 * len(table)
    for figure in ("curves", "layers"):
        assert (path / f"data/test/08_reporting/seeds_over_seeds_{figure}.png").exists()
    page = (path / "data/test/08_reporting/report.html").read_text()
    assert "Nearest in the mean over k and 3 trainings, among the algorithms listed: " in page
    own = table[(table["measure"] == "squared error") & (table["series"] == LEARNER)]
    assert (own.set_index("position")["mean"][5], len(own)) == (pytest.approx(0.047, rel=0.5), 5)
    metrics = client.get_run(parent).data.metrics
    assert metrics["seeds/number"] == 3
    assert metrics["seeds/SPD/ols/mean"] == pytest.approx(ols["mean"].iloc[-1])
    assert {"seeds/SPD/ols/sd", "seeds/SPD/ols/low", "seeds/SPD/ols/high"} <= set(metrics)


def test_another_sweep_is_named_on_the_command_line_and_one_that_is_not_there_refused(project):
    path, *_ = project
    more = ("--params", "across_seeds.sweep=depth")
    result = kedro_command(path, "run", "--env", "test", "--pipelines", "across_seeds", *more)
    assert result.returncode == 1
    assert "make it with `kedro sweep run depth --env test`" in result.says
