"""All that a training's result depends on, under one name."""

from dataclasses import dataclass

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.files import fingerprint
from incontext_linear.training.config import NO_EFFECT, TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, how, and from which seed.

    Args:
        task: what prompts are drawn.
        model: the learner's shape.
        training: steps, batch, optimiser, precision.
        seed: decides the initial weights and every batch.
    """

    task: TaskConfig
    model: ModelConfig
    training: TrainingConfig
    seed: int

    @property
    def fingerprint(self) -> str:
        """Names the training by all that its result depends on, not by compilation or
        checkpoints.
        """
        numerics = self.training.model_dump(mode="json", exclude=NO_EFFECT)
        described = (config.model_dump(mode="json") for config in (self.task, self.model))
        return fingerprint(*described, numerics, self.seed)
