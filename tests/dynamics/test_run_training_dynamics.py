"""The `training_dynamics` pipeline as a user runs it, at the smallest size, with a pool."""

import pytest
from support.project import copy_project, report
from support.project import kedro as kedro_command

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

POOL = "task.pool_size=4,task.noise_std=0.5"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("dynamics"))


def run(project, *arguments):
    result = kedro_command(
        project, "run", "--env", "test", "--pipelines", "training_dynamics", *arguments
    )
    assert result.returncode == 0, result.output[-3000:]


def test_every_seed_is_followed_and_measured_on_its_pool_and_on_the_prior(project):
    run(project, "--params", POOL)
    single = report(project, "dynamics_seeds")
    assert set(single["seed"]) == {0, 1}
    assert sorted(set(single["step"])) == [0, 1, 40]
    assert set(single["prompts_of"]) == {"home", "prior"}
    assert {"zero", "bayes", "discrete_mmse", "labels"} <= set(single["predictor"])
    families = report(project, "dynamics_families")
    assert {"ridge", "gradient_flow", "discrete_mmse"} <= set(families["family"])
    for figure in ("distances", "nearest", "plane", "families", "heads", "states"):
        file = project / f"data/test/08_reporting/dynamics_{figure}.png"
        assert file.stat().st_size > 10_000
    page = (project / "data/test/08_reporting/report.html").read_text()
    assert "Along training" in page
    assert "Nearest at the last step, mean of 2 trainings: prompts as in training:" in page


def test_snapshots_that_are_there_are_not_made_again(project):
    folder = project / "data/test/06_models/snapshots"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(before) == 6
    run(project, "--nodes", "training_dynamics.train_seeds", "--params", POOL)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert after == before
