"""How fast recipes reach least squares: ``python -m benchmarks.speedrun``.

Trains learners of one shape by several recipes, in one process, and writes one line of JSON a
learner: seconds of training (compilation and capture not counted), prompts seen, and the SPD to OLS
and the squared error at several numbers of examples on 4,096 prompts that training has not seen.
``--table`` makes a table of these lines.

    python -m benchmarks.speedrun --env paper --seeds 3 --set loss=uniform,likelihood steps=2500
    python -m benchmarks.speedrun --table speedrun.jsonl

``--set name=value,value …`` crosses the values given for each field of the training parameters,
laid over those of the environment; ``rate``, ``steps`` and ``batch`` are short for the obvious
ones. ``--task name=value …`` changes the task.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.environment import read_environment
from incontext_linear.learner import Learner, save_learner
from incontext_linear.parameters import Parameters
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.tasks import draw_prompts
from incontext_linear.training import Recipe, TrainingConfig, TrainingRun

PROJECT = Path(__file__).parents[1]
NUM_PROMPTS = 4096
SHORT = {"rate": "learning_rate", "steps": "num_steps", "batch": "batch_size"}
TARGETS = (1e-3, 2e-4, 5e-5)
"""SPD to OLS at k = 2d that the table asks the seconds for."""


def crossed(settings: list[str]) -> list[dict[str, Any]]:
    """Every combination of the values given: ``["loss=uniform,likelihood", "steps=2500"]``."""
    named = [setting.partition("=")[::2] for setting in settings]
    values = [[yaml.safe_load(value) for value in text.split(",")] for _, text in named]
    names = [SHORT.get(name, name) for name, _ in named]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def told(settings: list[str]) -> dict[str, Any]:
    """``["noise_std=0.5"]`` as a dictionary."""
    pairs = (setting.partition("=") for setting in settings)
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def spd_and_risk(learner: Learner, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """SPD to OLS, and squared error against the labels, on prompts of their own: (n,) each."""
    prompts = draw_prompts(learner.task, NUM_PROMPTS, seed=12345, stream="speedrun", device=device)
    ols = OrdinaryLeastSquares()(prompts.xs.double(), prompts.ys.double())
    model = learner.model.to(device)
    parts = zip(prompts.xs.split(512), prompts.ys.split(512), strict=True)
    with torch.no_grad():
        predictions = torch.cat([model(xs, ys) for xs, ys in parts]).double()
    spd, risk = (predictions - ols).square(), (predictions - prompts.ys).square()
    return spd.mean(0), risk.mean(0)


def measure(recipe: Recipe, device: str, save: Path | None) -> dict[str, Any]:
    """Train one learner and say what it cost and where it got."""
    run = TrainingRun(recipe, device)
    run.start(None)
    wait = torch.cuda.synchronize if run.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    while run.step < recipe.training.num_steps:
        run.advance()
    wait()
    seconds = time.perf_counter() - start
    learner = run.learner()
    if save:
        save_learner(save / f"{recipe.fingerprint}.safetensors", learner)
    spd, risk = spd_and_risk(learner, run.device)
    dim, last = recipe.task.dim, recipe.task.num_examples - 1
    ks = sorted({1, dim // 2, dim - 1, dim, dim + 1, min(2 * dim, last), last} - {0})
    return {
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
        "fingerprint": recipe.fingerprint,
        "dim": dim,
        "seed": recipe.seed,
        "training": recipe.training.model_dump(mode="json"),
        "seconds": seconds,
        "prompts": recipe.training.num_steps * recipe.training.batch_size,
        "task": recipe.task.model_dump(mode="json"),
        "spd": {k: spd[k].item() for k in ks},
        "risk": {k: risk[k].item() for k in ks},
        "history": [[row.step, row.spd_to_ols] for row in run.history],
    }


def spd_at_end(row: dict[str, Any]) -> float:
    """SPD to OLS at k = 2d, or behind the longest prompt where that is shorter."""
    return row["spd"][str(min(2 * row["dim"], max(map(int, row["spd"]))))]


def seconds_to(row: dict[str, Any], target: float) -> float:
    """Seconds of training until a report has an SPD of no more than ``target`` at k = 2d; the end,
    in float32 on other prompts, is a report too. NaN: never.
    """
    num_steps = row["training"]["num_steps"]
    reports = [*row["history"], (num_steps, spd_at_end(row))]
    reached = [step for step, spd in reports if spd <= target]
    return row["seconds"] * reached[0] / num_steps if reached else float("nan")


def table(path: Path) -> str:
    """One row a recipe: the mean over seeds of log SPD, the worst seed at k = 2d, and the mean of
    the seconds to each of `TARGETS`.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    default = TrainingConfig().model_dump(mode="json")
    names = [
        name for name in default if len({json.dumps(row["training"][name]) for row in rows}) > 1
    ]
    frame = pd.DataFrame(
        {name: str(row["training"][name]) for name in names}
        | {"seconds": row["seconds"], "steps": row["training"]["num_steps"]}
        | {f"k={k}": value for k, value in row["spd"].items()}
        | {"target": spd_at_end(row)}
        | {f"s to {target:g}": seconds_to(row, target) for target in TARGETS}
        for row in rows
    )
    keys = [name for name in names if name != "num_steps"]
    lines = []
    for key, part in frame.groupby([*keys, "steps"], sort=False):
        spd = part[[name for name in part if name.startswith("k=")]]
        geometric = (
            spd.map(torch.tensor)
            .map(torch.log)
            .astype(float)
            .mean()
            .map(lambda value: f"{2.718281828459045**value:.2g}")
        )
        worst = part["target"].max()
        shown = [*map(str, key), len(part), f"{part['seconds'].mean():.1f}", *geometric]
        times = part[[f"s to {target:g}" for target in TARGETS]].mean(skipna=False)
        lines.append([*shown, f"{worst:.2g}", *times.map("{:.1f}".format)])
    heads = [*keys, "steps", "seeds", "s", *spd.columns, "worst at 2d", *times.index]
    return pd.DataFrame(lines, columns=heads).to_string(index=False)


def main() -> None:
    """Read the command line, train, and write as learners finish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default=None, help="a Kedro environment, such as paper")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="name=value,value …")
    parser.add_argument("--task", nargs="*", default=[], help="name=value … of the task")
    parser.add_argument("--model", nargs="*", default=[], help="name=value … of the model")
    parser.add_argument("--device", default=None, help="in place of the environment's")
    parser.add_argument("--output", type=Path, default=Path("speedrun.jsonl"))
    parser.add_argument("--save", type=Path, default=None, help="a folder for the learners")
    parser.add_argument("--table", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    parameters: Parameters = read_environment(PROJECT, arguments.env)[0]
    task = TaskConfig.model_validate(parameters.task.model_dump() | told(arguments.task))
    model = ModelConfig.model_validate(parameters.model.model_dump() | told(arguments.model))
    for changes in crossed(arguments.set):
        training = TrainingConfig.model_validate(parameters.training.model_dump() | changes)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            recipe = Recipe(task, model, training, seed)
            row = measure(recipe, arguments.device or parameters.device, arguments.save)
            with arguments.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            shown = " ".join(f"{k}:{value:.2g}" for k, value in row["spd"].items())
            print(f"{changes} seed {seed}: {row['seconds']:.1f} s  {shown}", flush=True)


if __name__ == "__main__":
    main()
