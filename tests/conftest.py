"""Shapes in the signatures are checked at run time in every test: jaxtyping with beartype.

Without a GPU, Triton's kernels are run by its interpreter; without Triton, which Linux alone has,
not at all.
"""

import gc
import os
import pkgutil
import re
import signal

# Threads that wait for each other sleep instead of spinning, which costs tiny networks many times
# their own work once anything else wants the cores. Must be set before PyTorch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DO_NOT_TRACK", "1")

# Under nohup SIGHUP is ignored, also by the processes that tests start; a handler is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)
# Behind a shell's `&` so is SIGINT: tests of interruptions failed, and one waited for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import jaxtyping
import support.checks

import incontext_linear

# Triton reads the source of its kernels, and shall find in it no checks that were put in.
_TRITON = ["training.kernels.attention", "training.kernels.branches"]


def _checked(path: list[str], prefix: str = "") -> list[str]:
    """The modules and packages below a folder, by packages where that leaves nothing out."""
    names = []
    for module in pkgutil.iter_modules(path):
        name = prefix + module.name
        if any(kernels.startswith(f"{name}.") for kernels in _TRITON):
            names += _checked([f"{path[0]}/{module.name}"], f"{name}.")
        elif name not in _TRITON:
            names.append(name)
    return names


# Must come before any other import of the package. The hook writes `@jaxtyping.jaxtyped(…)` at
# every function and class.
jaxtyping.jaxtyped = lambda typechecker: support.checks.checked  # pyright: ignore
jaxtyping.install_import_hook(
    [f"incontext_linear.{name}" for name in _checked([*incontext_linear.__path__])], None
)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Hardly anything is garbage of what is imported and collected, and little of what runs make.
gc.disable()
gc.set_threshold(50_000)

# Results must not depend on the number of threads. A worker of `pytest -n 2` has one core.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
hypothesis.settings.register_profile("project", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.get_profile("project"), max_examples=8
)
hypothesis.settings.load_profile("project")

_LONGEST = [
    "test_runs.py",
    "test_run.py",
    "test_distributed.py",
    "test_interrupted_runs.py",
    "test_side_by_side.py",
    "test_stacked.py",
    "test_training.py",
    "test_mlflow.py",
    "test_campaign.py",
]
_SLOW_FILE = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.slow", re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    """`make quick` tries fewer examples of each property."""
    if config.getoption("markexpr") == "not slow":
        hypothesis.settings.load_profile("quick")


def pytest_ignore_collect(collection_path, config: pytest.Config) -> bool | None:
    """Of files whose tests are all slow `make quick` does not even import what they use."""
    if config.getoption("markexpr") != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(_SLOW_FILE.search(collection_path.read_text("utf-8"))) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that a worker begins last leaves the other core idle."""
    rank = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish() -> None:
    """Garbage is searched for from here on, and not in the million objects that are there."""
    gc.freeze()
    gc.enable()
