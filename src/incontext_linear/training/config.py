"""Parameters of the training loop."""

from typing import Literal

from incontext_linear.config import (
    NO_EFFECT,
    Bool,
    Config,
    Fraction,
    ModerateFloat,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    SizedFloat,
)

__all__ = ["NO_EFFECT", "TrainingConfig"]


class TrainingConfig(Config):
    """The training loop: AdamW or Muon, linear warm-up, decay to zero, clipped gradients."""

    num_steps: PositiveInt = 4000
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 5e-4
    warmup_fraction: Fraction = 0.1
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls from its peak to zero, after the warm-up."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Of the blocks' matrices; all other parameters follow AdamW, with the same learning rate."""
    beta1: OpenFraction = 0.9
    beta2: OpenFraction = 0.98
    muon_momentum: OpenFraction = 0.95
    weight_decay: SizedFloat = 0.0
    gradient_clip: PositiveFloat = 1.0
    loss: Literal["uniform", "likelihood"] = "uniform"
    """How prefixes are weighted: evenly, as in the paper, or by their likelihood
    (`training.loss`).
    """
    loss_floor: ModerateFloat = 0.01
    """Of the loss ``likelihood``: added to each prefix's error, as a share of the labels' mean
    square.
    """
    loss_momentum: OpenFraction = 0.99
    """Of the loss ``likelihood``: how slowly the prefixes' running mean errors follow the
    batches.
    """
    log_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 1000
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the matrix products; auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: Bool | Literal["auto"] = "auto"
    """Compile the blocks with torch.compile; auto: on a GPU only."""
    own_kernels: Bool | Literal["auto"] = "auto"
    """Run the blocks on this project's kernels, on a GPU in bfloat16 and where they cover the
    learner's shape
    (`incontext_linear.fused`); auto: wherever ``compile`` holds."""
    cuda_graph: Bool | Literal["auto"] = "auto"
    """Replay each step as one captured CUDA graph; auto: on a GPU only."""

    def low_precision(self, on_gpu: bool) -> bool:
        """Whether matrix products are in bfloat16."""
        return self.precision == "bfloat16" or (self.precision == "auto" and on_gpu)
