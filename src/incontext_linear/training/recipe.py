"""All that a training's result depends on, under one name."""

from dataclasses import dataclass

import torch

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.files import recipe_fingerprint
from incontext_linear.training.config import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, how, and from which seed.

    Args:
        task: what prompts are drawn.
        model: the learner's architecture and sizes.
        training: steps, batch, optimiser, precision.
        seed: decides the initial weights and every batch.
    """

    task: TaskConfig
    model: LearnerConfig
    training: TrainingConfig
    seed: int

    @property
    def fingerprint(self) -> str:
        """Names the training by all that its result depends on, not by compilation or
        checkpoints.
        """
        task, training = (part.model_dump(mode="json") for part in (self.task, self.training))
        return recipe_fingerprint(task, self.model.numerics(), training, self.seed)

    def run_name(self, device: torch.device) -> str:
        """Names one training's checkpoints: the prompts differ by device, the sums by precision."""
        on_gpu = device.type == "cuda"
        precision = "bfloat16" if self.training.low_precision(on_gpu) else "float32"
        return f"{self.fingerprint}-{device.type}-{precision}"
