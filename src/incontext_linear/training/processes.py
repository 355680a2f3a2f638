"""One learner on several processes, data-parallel: joining the processes that ``torchrun`` started.

Inside `process_group`, `training.train` gives each process its share of every global batch, and
PyTorch's DistributedDataParallel averages their gradients.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from incontext_linear.config import resolve_device


@contextmanager
def process_group(device: str) -> Iterator[int]:
    """Join the processes that ``torchrun`` started, over NCCL on GPUs and Gloo on CPUs.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, as for `training.train`.

    Yields:
        This process's rank.
    """
    on_gpu = resolve_device(device).type == "cuda"
    if on_gpu:
        # The watchdog that it turns off cannot follow an all-reduce inside a captured graph.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
