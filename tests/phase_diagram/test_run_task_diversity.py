"""The `task_diversity` pipeline as a user runs it, on a made-up sweep of untrained learners."""

import json

import numpy as np
import pytest
from support.project import copy_project, report
from support.project import kedro as kedro_command

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.saved import Learner, save_learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import generator

# Kedro and MLflow run in this process, and warn of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    target = copy_project(tmp_path_factory.mktemp("diversity"))
    for size in (1, 4, 16, None):
        for seed in (0, 1):
            folder = target / f"data/test/sweeps/diversity/task.pool_size={size}/seed={seed}"
            status = "failed" if (size, seed) == (16, 1) else "done"
            record = {"axes": {"task.pool_size": size}, "seed": seed, "status": status}
            folder.mkdir(parents=True)
            (folder / "variant.json").write_text(json.dumps(record))
            task = TaskConfig(dim=2, num_examples=6, noise_std=0.5, pool_size=size)
            model = Transformer(2, 6, ModelConfig(num_layers=1, num_heads=1, width=4))
            model.initialize(generator(seed, "made up", size or 0))
            save_learner(folder / "06_models/learner.safetensors", Learner(model.eval(), task))
    return target


def test_a_sweep_over_pools_becomes_tables_and_a_figure(project):
    result = kedro_command(project, "run", "--env", "test", "--pipelines", "task_diversity")
    assert result.returncode == 0, result.output[-3000:]
    assert "Pool size 16 is left out: not all of its trainings are finished" in result.says
    curves = report(project, "diversity_curves")
    assert set(curves["prompts"]) == {"pool", "prior"}
    assert {1, 4} == set(curves["pool_size"].dropna())
    preference = curves[curves["quantity"] == "preference"]
    assert np.isnan(preference["mean"]).sum() == 2  # without a pool there is none
    assert (curves["seeds"] == 2).all()
    assert len(report(project, "diversity_thresholds")) == 2
    reports = project / "data/test/08_reporting"
    assert (reports / "diversity.png").stat().st_size > 10_000
    assert "2 trainings of each pool size" in (reports / "report.html").read_text()


def test_a_sweep_that_was_not_run_is_asked_for(tmp_path):
    target = copy_project(tmp_path)
    result = kedro_command(target, "run", "--env", "test", "--pipelines", "task_diversity")
    assert result.returncode != 0
    assert "kedro sweep run diversity" in result.says
