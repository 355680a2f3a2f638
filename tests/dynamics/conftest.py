"""Two short trainings with snapshots, and prompts, shared by the tests of the dynamics."""

import pytest
import torch

from incontext_linear.config import EvaluationConfig, ModelConfig, TaskConfig
from incontext_linear.dynamics import Trajectories, draw_prompt_sets, train_trajectories
from incontext_linear.dynamics.trajectories import HOME
from incontext_linear.tasks import Prompts
from incontext_linear.training import Recipe, SnapshotStore, TrainingConfig

TASK = TaskConfig(dim=2, num_examples=6)
MODEL = ModelConfig(num_layers=2, num_heads=2, width=16)
RECIPE = Recipe(
    TASK,
    MODEL,
    TrainingConfig(num_steps=12, batch_size=8, log_every=4),
    0,
)


@pytest.fixture(scope="session")
def trajectories(tmp_path_factory) -> Trajectories:
    torch.set_num_threads(1)
    store = SnapshotStore(tmp_path_factory.mktemp("snapshots"))
    return train_trajectories(RECIPE, (0, 3), 3, store, "cpu")


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    task = TaskConfig(dim=3, num_examples=10)
    return draw_prompt_sets(task, EvaluationConfig(), 240, 0)[HOME]
