"""Several processes on our kernels, which the CPU interprets, against one without."""

import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import Transformer
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.training import TrainingStep
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.kernels import branches as branch_kernels
from incontext_linear.training.kernels.fused import FusedBlocks


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


def in_group(rank):
    """Of this process, within the group."""
    branch_kernels.NUM_NORM_SUMS, branch_kernels.NUM_GELU_SUMS = 3, 2
    return predictions(True, rank, torch.distributed.get_world_size())


def alone():
    """Of one process on all of every batch, once the group has ended."""
    return predictions(False, 0, 1)
