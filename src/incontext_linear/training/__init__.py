"""Training a learner: fresh prompts at every step, on a CPU, a GPU or several.

config       parameters of the loop
recipe       all that a training's result depends on, under one name
step         forward, backward, clip, update
optimizers   AdamW and Muon over flat vectors of parameters
loop         the training loop
stacked      many learners of one shape, in one step
checkpoints  what it resumes from
snapshots    the learner as it was at chosen steps
processes    one learner on several processes
kernels/     the step's fast path on a GPU
"""

from incontext_linear.training.checkpoints import Checkpoint, CheckpointStore
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.loop import Progress, TrainingDivergedError, TrainingRun, train
from incontext_linear.training.recipe import Recipe
from incontext_linear.training.snapshots import SnapshotStore, log_spaced_steps
from incontext_linear.training.stacked import can_be_stacked, stack_key, train_stacked
from incontext_linear.training.step import TrainingStep

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "Progress",
    "Recipe",
    "SnapshotStore",
    "TrainingConfig",
    "TrainingDivergedError",
    "TrainingRun",
    "TrainingStep",
    "can_be_stacked",
    "log_spaced_steps",
    "stack_key",
    "train",
    "train_stacked",
]
