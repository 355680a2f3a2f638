"""Where a learner is measured: on which device, and on how many threads."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def on_device(model: Model, device: torch.device | str) -> Model:
    """The network on a device: itself if it lies there, else a copy; the one given never moves.

    Whoever shares the network (a catalog keeps one for all of a run's nodes) finds it as it was.
    """
    wanted = torch.device(device)
    tensors = itertools.chain(model.parameters(), model.buffers())
    if all(_same_device(tensor.device, wanted) for tensor in tensors):
        return model
    return copy.deepcopy(model).to(wanted)


def device_of(model: nn.Module) -> torch.device:
    """Where the network lies, and what it reads has to lie."""
    return next(model.parameters()).device


def _same_device(found: torch.device, wanted: torch.device) -> bool:
    """``cuda`` without a number is the current GPU."""
    if found.type != wanted.type or found.type != "cuda":
        return found.type == wanted.type
    current = torch.cuda.current_device()
    return (found.index or 0) == (current if wanted.index is None else wanted.index)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: on matrices as small as these, threads wait for each other more than they
    work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
