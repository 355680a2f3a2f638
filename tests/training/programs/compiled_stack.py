"""Losses of a stack whose layers are traced and differentiated ahead of time, against plain ones.

The backend is PyTorch's own for this purpose: all of torch.compile but the code generation, which
takes a minute.
"""

from functools import partial

import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import Learner
from incontext_linear.training import Recipe, train_stacked
from incontext_linear.training.config import TrainingConfig


def losses(**changes):
    training = TrainingConfig(num_steps=4, batch_size=8, log_every=1, optimizer="muon", **changes)
    model = ModelConfig(num_layers=2, num_heads=2, width=8)
    recipes = [Recipe(TaskConfig(dim=2, num_examples=5), model, training, seed) for seed in (0, 1)]
    ended = [one for one in train_stacked(recipes, "cpu") if isinstance(one, Learner)]
    return torch.tensor([[row["loss"] for row in one.record["history"]] for one in ended])


plain = losses(compile=False)
torch.compile = partial(torch.compile, backend="aot_eager")
torch.testing.assert_close(losses(compile=True), plain, rtol=1e-4, atol=0)
