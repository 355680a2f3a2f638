"""Train with each optimiser in one of several processes; every process saves what it ended with."""

import json
import sys
from pathlib import Path

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import save_learner
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.processes import process_group

task, model, training = (
    kind.model_validate(values)
    for kind, values in zip(
        (TaskConfig, ModelConfig, TrainingConfig), json.loads(sys.argv[1]), strict=True
    )
)
with process_group("cpu") as rank:
    for optimizer in ("adamw", "muon"):
        chosen = training.model_copy(update={"optimizer": optimizer})
        learner = train(Recipe(task, model, chosen, 0), "cpu")
        save_learner(Path(sys.argv[2]) / f"{optimizer}_{rank}.safetensors", learner)
