"""Milliseconds a training step, one change at a time: ``python -m benchmarks.training``.

The paper's model (L = 16, H = 512, M = 4; d = 8, 40 examples) is trained for a few steps in each
variant, in one process, on fresh prompts every step. On a machine without a GPU a small model is
timed instead. Needs no more than PyTorch and this package; writes ``training_speed.md`` into the
folder ``--output``.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.training import TrainingStep
from incontext_linear.training.config import TrainingConfig

PLAIN = {"precision": "float32", "compile": False, "cuda_graph": False}
# name, settings, batch size, where prompts are drawn: each row adds one change to the row before.
GPU_VARIANTS = (
    ("eager float32, prompts drawn on the host", PLAIN, 64, "cpu"),
    ("+ prompts drawn on the device", PLAIN, 64, "cuda"),
    ("+ bfloat16 matrices, float32 masters", {**PLAIN, "precision": "bfloat16"}, 64, "cuda"),
    (
        "+ compiled blocks and optimiser",
        {**PLAIN, "precision": "bfloat16", "compile": True, "own_kernels": False},
        64,
        "cuda",
    ),
    ("+ one captured CUDA graph a step", {"own_kernels": False}, 64, "cuda"),
    ("+ blocks on our own kernels (the default)", {}, 64, "cuda"),
    ("the default, batch 128", {}, 128, "cuda"),
    ("the default, batch 256", {}, 256, "cuda"),
    ("the default, batch 1024", {}, 1024, "cuda"),
    ("the default, float32 matrices", {"precision": "float32"}, 64, "cuda"),
    ("the default, Muon", {"optimizer": "muon"}, 64, "cuda"),
    ("the default, Muon, batch 256", {"optimizer": "muon"}, 256, "cuda"),
)
CPU_VARIANTS = (("eager float32 (the default)", PLAIN, 64, "cpu"), ("batch 256", PLAIN, 256, "cpu"))


def step_flops(task: TaskConfig, model: ModelConfig, batch_size: int) -> float:
    """Floating-point operations of one step: forward and twice that backward, matrix products
    only.
    """
    tokens, width = task.num_tokens, model.width
    matrices = model.num_layers * (4 * width**2 + 2 * width * model.mlp_units)
    attention = model.num_layers * 2 * tokens * width
    return 3 * 2 * batch_size * tokens * (matrices + attention)


def matrix_peak(size: int = 8192, repeats: int = 10) -> float:
    """Measured FLOP/s of a large bfloat16 product on this GPU, random data."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        torch.matmul(left, right)
    return 2 * size**3 / _median_seconds(lambda: left @ right, repeats)


def _median_seconds(action, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_variant(
    task: TaskConfig,
    model: ModelConfig,
    training: TrainingConfig,
    source: str,
    device: str,
    steps: int,
) -> float:
    """Seconds a step: the median of five stretches of ``steps`` steps, sampling included."""
    learner = Transformer(task.dim, task.num_examples, model).initialize(generator(0, "benchmark"))
    step = TrainingStep(learner.to(device), training)

    def draw(index: int) -> Prompts:
        prompts = draw_prompts(task, training.batch_size, 0, index, "benchmark", source)
        return prompts.to(device, non_blocking=True)

    step.prepare(draw(0))

    def stretch() -> None:
        for index in range(steps):
            step(draw(index), 1e-4)

    stretch()
    return _median_seconds(stretch, 5) / steps


def measure(steps: int | None) -> tuple[str, list[tuple]]:
    """Time every variant; returns a line that says of what and where, and the table's rows."""
    on_gpu = torch.cuda.is_available()
    task = TaskConfig(dim=8, num_examples=40) if on_gpu else TaskConfig(dim=2, num_examples=10)
    model = ModelConfig() if on_gpu else ModelConfig(num_layers=3, num_heads=2, width=64)
    device, peak = ("cuda", matrix_peak()) if on_gpu else ("cpu", None)
    rows, first = [], None
    for name, settings, batch, source in GPU_VARIANTS if on_gpu else CPU_VARIANTS:
        torch._dynamo.reset()
        training = TrainingConfig.model_validate({"batch_size": batch} | settings)
        seconds = time_variant(
            task, model, training, source, device, steps or (20 if on_gpu else 10)
        )
        first = first or seconds / batch
        share = f"{step_flops(task, model, batch) / seconds / peak:.0%}" if peak else "—"
        speed_up = f"{first * batch / seconds:.1f}"
        rows.append(
            (name, batch, f"{seconds * 1e3:.2f}", f"{batch / seconds:,.0f}", share, speed_up)
        )
        print(*rows[-1], sep=" | ", flush=True)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    sizes = f"L={model.num_layers}, H={model.width}, d={task.dim}, {task.num_examples} examples"
    measured = f" Measured matrix peak {peak / 1e12:.0f} TFLOP/s (bfloat16, 8192³)." if peak else ""
    return f"Model {sizes}. {where}, torch {torch.__version__}.{measured}", rows


def main() -> None:
    """Print the table and write it as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--steps", type=int, default=None, help="steps a stretch")
    arguments = parser.parse_args()
    what, rows = measure(arguments.steps)
    lines = [
        what,
        "",
        "| variant | batch | ms a step | prompts a second | share of matrix peak | speed-up a "
        "prompt |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "training_speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
