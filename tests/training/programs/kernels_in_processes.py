"""Two processes on our kernels, which the CPU interprets, against one without."""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import Transformer
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.training import TrainingStep
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.kernels import branches as branch_kernels
from incontext_linear.training.kernels.fused import FusedBlocks
from incontext_linear.training.processes import process_group


def predictions(on_kernels, rank, num_ranks):
    task = TaskConfig(dim=2, num_examples=4)
    model = Transformer(2, 4, ModelConfig(num_layers=3, num_heads=1, width=16))
    step = TrainingStep(model.initialize(generator(0, "weights")), TrainingConfig())
    if on_kernels:
        model.run_blocks = FusedBlocks(model.blocks, step.optimizer.gradients())
    for index in range(3):
        prompts = draw_prompts(task, 4, 0, index)
        step(Prompts(*(tensor[rank::num_ranks] for tensor in prompts)), 1e-2)
    fresh = draw_prompts(task, 4, 1)
    with torch.no_grad():
        return model(fresh.xs, fresh.ys)


branch_kernels.NUM_NORM_SUMS, branch_kernels.NUM_GELU_SUMS = 3, 2
with process_group("cpu") as rank:
    together = predictions(True, rank, 2)
torch.testing.assert_close(together, predictions(False, 0, 1), rtol=1e-4, atol=1e-5)
Path(sys.argv[1], f"{rank}.done").touch()
