"""Small sweeps whose learners are planted: mixtures of textbook algorithms, so that the answer is
known.
"""

import json
from pathlib import Path

import numpy as np
import torch

from incontext_linear.comparison.curves import predict_with_baselines
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import Baselines, BayesPosteriorMean, build_predictors
from incontext_linear.tables import LEARNER, write_predictions
from incontext_linear.tasks import draw_prompts

BASELINES = {
    "ols": {"type": "OrdinaryLeastSquares"},
    "ridge_1": {"type": "Ridge", "penalty": 1.0},
    "gd_1": {"type": "GradientDescent", "step_size": 0.02, "num_steps": 1},
    "knn_3": {"type": "NearestNeighbors", "num_neighbors": 3},
}
RATIOS = {"0": 0.0, "1_16": 1 / 16, "1_9": 1 / 9, "1_4": 1 / 4, "4_9": 4 / 9}
RIDGES = {"ols": BASELINES["ols"]} | {
    f"ridge_{name}": {"type": "Ridge", "penalty": ratio} for name, ratio in RATIOS.items() if ratio
}


def mixture(parts, jitter, seed):
    """Predictions of a weighted mixture of predictors, with a deviation of its own."""

    def learner(xs, ys):
        mixed = torch.stack([weight * predictor(xs, ys) for predictor, weight in parts]).sum(0)
        rng = torch.Generator().manual_seed(seed)
        return mixed + jitter * torch.randn(mixed.shape, generator=rng, dtype=mixed.dtype)

    return learner


def write_variant(root, axes, seed, learner, baselines, task, num_prompts=64, status="done"):
    """One variant's folder, as a sweep leaves it."""
    folder = Path(root, *(f"{name}={value}" for name, value in axes.items()), f"seed={seed}")
    (folder / "07_model_output").mkdir(parents=True)
    record = {
        "sweep": Path(root).name,
        "variant": ",".join([*(f"{name}={value}" for name, value in axes.items()), f"seed={seed}"]),
        "axes": axes,
        "seed": seed,
        "status": status,
        "fingerprint": "f",
        "seconds": 1.0,
        "mlflow_run_id": None,
        "error": None if status == "done" else "training diverged",
        "parameters": {"task": task.model_dump(mode="json"), "baselines": baselines},
    }
    (folder / "variant.json").write_text(json.dumps(record))
    if status == "done":
        prompts = draw_prompts(task, num_prompts, seed, stream="evaluation").to(torch.float64)
        predictions = {
            "learner": {LEARNER: learner(prompts.xs, prompts.ys)},
            "baseline": predict_with_baselines(prompts._asdict(), Baselines(**baselines), task),
        }
        for who, tensors in predictions.items():
            write_predictions(folder / f"07_model_output/{who}_predictions.parquet", tensors)
    return folder


def write_depth_sweep(
    root, depths=(1, 2, 4, 8), seeds=(0, 1), change=3.0, jitter=0.01, num_prompts=64, **task
):
    """Learners that go from one step of gradient descent to least squares, half-way at the depth
    `change`.

    The share t of least squares has logit 2 log(L / change), so that but for the jitter
    log SPD_gd − log SPD_ols = 4 log(L / change): linear in log L, and zero at `change`.
    """
    task = TaskConfig.model_validate({"dim": 2, "num_examples": 6} | task)
    built = build_predictors(BASELINES, task)
    for depth in depths:
        t = 1 / (1 + np.exp(-2 * np.log(depth / change)))
        for seed in seeds:
            learner = mixture(
                [(built["gd_1"], 1 - t), (built["ols"], t)], jitter, 100 * depth + seed
            )
            write_variant(
                root,
                {"model.num_layers": depth},
                seed,
                learner,
                BASELINES,
                task,
                num_prompts=num_prompts,
            )
    return root


def write_noise_sweep(root, seeds=(0, 1), acts_like=None, num_prompts=64, **task):
    """Learners that predict like the Bayes predictor of their noise, or of the ratio
    `acts_like`.
    """
    for ratio in RATIOS.values():
        config = TaskConfig(**{"dim": 2, "num_examples": 6, "noise_std": ratio**0.5} | task)
        own = BayesPosteriorMean((ratio if acts_like is None else acts_like) ** 0.5, 1.0)
        for seed in seeds:
            learner = mixture([(own, 1.0)], 0.003, seed)
            axes = {"task.noise_std": round(config.noise_std, 4)}
            write_variant(root, axes, seed, learner, RIDGES, config, num_prompts=num_prompts)
    return root


def record(status="done", seed=0, error=None, **axes):
    """What a variant's ``variant.json`` says; ``model__num_layers=1`` stands for the dotted
    name.
    """
    named = {name.replace("__", "."): value for name, value in axes.items()}
    parameters = {"task": TaskConfig().model_dump(mode="json"), "baselines": BASELINES}
    return {"axes": named, "seed": seed, "status": status, "error": error, "parameters": parameters}
