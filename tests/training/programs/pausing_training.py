"""Train, and pause at a moment that the caller waits for."""

import sys
import time
from pathlib import Path

import torch

from incontext_linear import files
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.training import CheckpointStore, Recipe, TrainingRun, train
from incontext_linear.training.config import TrainingConfig

torch.set_num_threads(1)
folder, moment = Path(sys.argv[1]), sys.argv[2]
recipe = Recipe(
    TaskConfig.model_validate_json(sys.argv[3]),
    ModelConfig.model_validate_json(sys.argv[4]),
    TrainingConfig.model_validate_json(sys.argv[5]),
    seed=0,
)
advance, flush = TrainingRun.advance, files.os.fsync


def pause(now):
    if now == moment:
        print("here", flush=True)
        time.sleep(60)


def advance_slowly(run):
    report = advance(run)
    pause(f"step {run.step}")
    return report


def flush_slowly(file):
    pause(f"writing {len(list(folder.rglob('step_*')))}")
    flush(file)


TrainingRun.advance, files.os.fsync = advance_slowly, flush_slowly
train(recipe, "cpu", CheckpointStore(folder))
