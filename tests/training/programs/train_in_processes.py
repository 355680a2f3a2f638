"""Train with each optimiser in one of several processes, and on our kernels where there is Triton;
every process saves what it ended with.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
from safetensors.torch import save_file

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import save_learner
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.processes import process_group

values = json.loads(sys.argv[1])
task, model = TaskConfig.model_validate(values[0]), ModelConfig.model_validate(values[1])
training = TrainingConfig.model_validate(values[2])
folder, predicted = Path(sys.argv[2]), {}
if find_spec("triton"):
    import on_kernels
with process_group("cpu") as rank:
    for optimizer in ("adamw", "muon"):
        chosen = training.model_copy(update={"optimizer": optimizer})
        learner = train(Recipe(task, model, chosen, 0), "cpu")
        save_learner(folder / f"{optimizer}_{rank}.safetensors", learner)
    if find_spec("triton"):
        predicted["together"] = on_kernels.in_group(rank)
if find_spec("triton"):
    predicted["alone"] = on_kernels.alone()
    save_file(predicted, folder / f"on_kernels_{rank}.safetensors")
