"""The losses of compiled and captured steps against those of plain ones."""

import sys

import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig


def losses(**changes):
    training = TrainingConfig(num_steps=20, batch_size=16, log_every=1, optimizer="muon", **changes)
    model = ModelConfig(num_layers=1, num_heads=2, width=32)
    learner = train(Recipe(TaskConfig(dim=2, num_examples=6), model, training, 0), sys.argv[1])
    return torch.tensor([row["loss"] for row in learner.record["history"]])


plain = {"compile": False, "cuda_graph": False}
for precision, tolerance in (("float32", 1e-4), ("bfloat16", 2e-2)):
    slow = losses(precision=precision, **plain)
    fast = losses(precision=precision, compile=True)
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=0)
    if sys.argv[1] == "cpu":
        break
    torch.testing.assert_close(slow, losses(precision="float32", **plain), rtol=2e-2, atol=0)
    # The blocks, which this shape lets run on the project's own kernels, compiled instead; and
    # uncaptured.
    for switches in ({"own_kernels": False}, {"cuda_graph": False}):
        torch.testing.assert_close(losses(precision=precision, **switches), slow, rtol=2e-2, atol=0)
