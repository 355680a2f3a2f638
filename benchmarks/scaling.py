"""Milliseconds a training step on one GPU and on several, at the same global batch.

    torchrun --nproc-per-node 1 -m benchmarks.scaling
    torchrun --nproc-per-node 2 -m benchmarks.scaling

The paper's model, AdamW, the fast path; with and without the captured graph.
"""

import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.training import TrainingStep
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.processes import process_group


def time_step(batch_size: int, steps: int, cuda_graph: bool) -> float:
    """Seconds a step: the median of five stretches."""
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
    task = TaskConfig(dim=8, num_examples=40)
    model = ModelConfig() if on_gpu else ModelConfig(num_layers=2, num_heads=2, width=32)
    torch._dynamo.reset()
    learner = Transformer(task.dim, task.num_examples, model).initialize(generator(0, "benchmark"))
    step = TrainingStep(
        learner.to(device), TrainingConfig(batch_size=batch_size, cuda_graph=cuda_graph)
    )
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def draw(index: int) -> Prompts:
        prompts = draw_prompts(task, batch_size, 0, index, "benchmark", device)
        return Prompts(*(tensor[rank::ranks] for tensor in prompts))

    step.prepare(draw(0))
    times = []
    for _ in range(6):
        dist.barrier()
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(steps):
            step(draw(index), 1e-4)
        if on_gpu:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times[1:])


def main() -> None:
    """Print one line a batch size and setting; each process takes part, the first prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--graph", choices=["on", "off", "both"], default="both")
    arguments = parser.parse_args()
    settings = {"on": [True], "off": [False], "both": [True, False]}[arguments.graph]
    with process_group("auto") as rank:
        for graph in settings:
            for batch in arguments.batch_sizes:
                seconds = time_step(batch, arguments.steps, graph)
                if rank == 0:
                    print(
                        f"processes {dist.get_world_size()} | global batch {batch} | "
                        f"graph {'on' if graph else 'off'} | {seconds * 1e3:.2f} ms a step | "
                        f"{batch / seconds:,.0f} prompts a second",
                        flush=True,
                    )
    # A captured graph that holds NCCL calls may not outlive its communicator in peace.
    os._exit(0) if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
