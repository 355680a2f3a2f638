"""How the behavioural comparison grows with the number of prompts: ``python -m
benchmarks.comparison``.

Runs the pipeline `behavioral_comparison`, on one thread and with the catalog's own files for
prompts, predictions and weights, once a size in a process of its own, and writes a page and a
figure: CPU seconds, those of the learner's own passes apart, and the peak of the process's memory.
Prompts of 40 examples in 8 dimensions, ten baselines; the learner is untrained, which costs what a
trained one does.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.nodes import Clock

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
LEARNER = ("`predict_with_learner`", "`estimate_learner_weights`")
# NumPy's products too: its library reads this as it is loaded.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
GOAL = {"prompts": 100_000, "gigabytes": 2.0, "seconds": 60.0}


def measure(num_prompts: int) -> dict[str, float]:
    """Run the pipeline in this process; what it took."""
    import torch

    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder), num_prompts, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = {what: sum(row[1] for row in clock.rows if row[0] == what) for what in LEARNER}
    learner, total = sum(seconds.values()), sum(row[1] for row in clock.rows)
    print(clock.table(0.5), file=sys.stderr)
    return {
        "prompts": num_prompts,
        "seconds": total - learner,
        "learner": learner,
        "gigabytes": peak,
    }


def _run(folder: Path, num_prompts: int, clock: Clock) -> None:
    from kedro.framework.hooks import hook_impl
    from kedro.framework.hooks.manager import _create_hook_manager
    from kedro.io import DataCatalog, MemoryDataset
    from kedro.runner import SequentialRunner

    from incontext_linear.config import ModelConfig, TaskConfig
    from incontext_linear.datasets import AtomicSafetensorsDataset, PredictionsDataset
    from incontext_linear.environment import read_environment
    from incontext_linear.learner import Learner, Transformer
    from incontext_linear.pipelines import behavioral_comparison
    from incontext_linear.predictors import Baselines
    from incontext_linear.tasks import generator

    class Marks:
        @hook_impl
        def before_node_run(self, node: Any) -> None:
            clock.mark("loading")

        @hook_impl
        def after_node_run(self, node: Any) -> None:
            clock.mark(f"`{node.name.rpartition('.')[2]}`")

        @hook_impl
        def after_dataset_saved(self, dataset_name: str) -> None:
            clock.mark("saving")

    base, _ = read_environment(Path(__file__).parents[1], None)
    task, model = TaskConfig(dim=8, num_examples=40), ModelConfig(num_layers=4, width=64)
    network = Transformer(8, 40, model).initialize(generator(0, "initial weights")).eval()
    sizes = base.data_generation.model_copy(update={"num_evaluation_prompts": num_prompts})
    active = base.baselines.active
    ten = {name: spec for name, spec in active.items() if name not in ("zero", "bayes")}
    parameters = base.model_copy(
        update={
            "task": task,
            "model": model,
            "data_generation": sizes,
            "baselines": Baselines(**ten),
            "device": "cpu",
        }
    )
    pipeline = behavioral_comparison.create_pipeline()
    entries: dict[str, Any] = {
        name: MemoryDataset(getattr(parameters, name.removeprefix("params:")), copy_mode="assign")
        for name in pipeline.inputs()
        if name.startswith("params:")
    }
    entries["learner"] = MemoryDataset(Learner(network, task), copy_mode="assign")
    for name in ("evaluation_prompts", "evaluation_queries", "learner_weights", "baseline_weights"):
        entries[name] = AtomicSafetensorsDataset(str(folder / f"{name}.safetensors"))
    for name in ("learner_predictions", "baseline_predictions"):
        entries[name] = PredictionsDataset(str(folder / f"{name}.parquet"))
    hooks = _create_hook_manager()
    hooks.register(Marks())
    clock.mark("imports")
    SequentialRunner().run(pipeline, DataCatalog(entries), hooks)


def report(rows: list[dict[str, float]]) -> str:
    """The page."""
    lines = [
        f"| {row['prompts']:,} | {row['seconds']:.0f} | {row['learner']:.0f} "
        f"| {row['gigabytes']:.2f} |"
        for row in rows
    ]
    (largest,) = [row for row in rows if row["prompts"] == GOAL["prompts"]]
    met = [
        f"{name}: asked at most {GOAL[name]:g}, measured {largest[name]:.3g} "
        f"({'met' if largest[name] <= GOAL[name] else 'missed'})"
        for name in ("seconds", "gigabytes")
    ]
    return "\n".join(
        [
            "# How the behavioural comparison grows",
            "",
            "Written by `python -m benchmarks.comparison`: the pipeline `behavioral_comparison`",
            "with ten baselines on prompts of 40 examples in 8 dimensions, 1,000 resamples, one",
            "thread, a process a size, its figures included. *CPU s* is everything, imports",
            "included, but for the learner's own passes (4 layers, width 64), which depend on its",
            "size.",
            "",
            "| prompts | CPU s | CPU s of the learner | peak memory, GB |",
            "|--:|--:|--:|--:|",
            *lines,
            "",
            f"At {GOAL['prompts']:,} prompts:",
            "",
            *[f"- {goal}" for goal in met],
            "",
            "![CPU seconds and peak memory against the number of prompts]"
            "(../figures/benchmark_comparison.png)",
            "",
        ]
    )


def plot(rows: list[dict[str, float]]) -> Any:
    """CPU seconds and peak memory against the number of prompts."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    prompts = [row["prompts"] for row in rows]
    left.plot(prompts, [row["seconds"] for row in rows], "o-")
    right.plot(prompts, [row["gigabytes"] for row in rows], "o-")
    for axes, name, goal in (
        (left, "CPU seconds", GOAL["seconds"]),
        (right, "peak memory (GB)", GOAL["gigabytes"]),
    ):
        axes.axhline(goal, linestyle="--", color="0.6")
        axes.set(xscale="log", xlabel="prompts", ylabel=name, ylim=(0, None))
    return figure


def main() -> None:
    """Read the command line; measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--one", type=int, help="measure this size here, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, "-m", "benchmarks.comparison", "--one", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=ONE_THREAD)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    (arguments.output / "results" / "comparison_growth.md").write_text(report(rows))
    plot(rows).savefig(arguments.output / "figures" / "benchmark_comparison.png", dpi=110)


if __name__ == "__main__":
    main()
