"""Trainings with snapshots: each seed its own, none trained twice, prompts shared by all."""

import torch

from incontext_linear.config import EvaluationConfig, TaskConfig
from incontext_linear.dynamics import draw_prompt_sets, predict_along_training, train_trajectories
from incontext_linear.dynamics.trajectories import HOME, PRIOR
from incontext_linear.tasks import task_pool
from tests.dynamics.conftest import RECIPE, TASK


def test_each_seed_has_its_own_learner_at_every_step(trajectories):
    prompts = draw_prompt_sets(TASK, EvaluationConfig(), 8, 0)[HOME]
    predictions = predict_along_training(trajectories, prompts.xs, prompts.ys, "cpu", 3)
    assert trajectories.steps == [0, 1, 3, 12]
    assert predictions.shape == (2, 4, 8, 6)
    for s, seed in enumerate((0, 3)):
        for t, (_, learner) in enumerate(trajectories.learners(seed)):
            assert learner.record["seed"] == seed
            with torch.no_grad():
                alone = learner.model(prompts.xs, prompts.ys)
            torch.testing.assert_close(predictions[s, t], alone)


def test_a_training_whose_snapshots_are_there_is_not_repeated(trajectories, monkeypatch):
    monkeypatch.setattr("incontext_linear.dynamics.trajectories.train", None)
    again = train_trajectories(RECIPE, (3,), 3, trajectories.store, "cpu")
    assert again.runs == {3: trajectories.runs[3]}


def test_a_task_with_a_pool_is_measured_on_the_pool_and_on_its_prior():
    task = TaskConfig(dim=2, num_examples=3, pool_size=4)
    sets = draw_prompt_sets(task, EvaluationConfig(), 50, 0)
    pool = {tuple(w) for w in task_pool(task).tolist()}
    assert {tuple(w) for w in sets[HOME].ws.tolist()} == pool
    assert len({tuple(w) for w in sets[PRIOR].ws.tolist()}) == 50
    assert list(draw_prompt_sets(TASK, EvaluationConfig(), 5, 0)) == [HOME]
