"""Train with each optimiser in one of several processes; every process saves what it ended with."""

import json
import sys
from pathlib import Path

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import save_learner
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.processes import process_group

values = json.loads(sys.argv[1])
task, model = TaskConfig.model_validate(values[0]), ModelConfig.model_validate(values[1])
training = TrainingConfig.model_validate(values[2])
with process_group("cpu") as rank:
    for optimizer in ("adamw", "muon"):
        chosen = training.model_copy(update={"optimizer": optimizer})
        learner = train(Recipe(task, model, chosen, 0), "cpu")
        save_learner(Path(sys.argv[2]) / f"{optimizer}_{rank}.safetensors", learner)
