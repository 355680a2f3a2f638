"""The progress of training: a bar in a terminal, log lines where the output goes to a file, or
events for
whoever shows many runs at once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from incontext_linear.training import Progress as TrainingProgress

logger = logging.getLogger(__name__)

Report = Callable[[TrainingProgress], None]
Listener = Callable[[dict[str, Any]], None]

_listener: Listener | None = None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While the block runs, send this process's progress to ``listener``, and show none of it.

    Args:
        listener: called with ``{"stage": name}`` before each node, and while training also with
            ``step``, ``num_steps``, ``loss`` and ``spd_to_ols``. What it raises stops the run.
    """
    global _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = None


def announce(stage: str) -> None:
    """Tell the listener, if there is one, what begins now."""
    if _listener:
        _listener({"stage": stage})


@contextmanager
def training_progress(num_steps: int) -> Iterator[Report]:
    """Show the steps, the loss and the SPD to OLS while the block runs.

    Yields:
        The callback that `training.train` reports to.
    """
    if _listener:
        yield _events(num_steps, _listener)
        return
    console = Console()
    if not console.is_terminal:
        yield _log_lines(num_steps)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3g}  SPD to OLS {task.fields[spd]:.3g}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=num_steps, loss=float("nan"), spd=float("nan"))
        yield lambda progress: bar.update(
            task, completed=progress.step, loss=progress.loss, spd=progress.spd_to_ols
        )


def _events(num_steps: int, listener: Listener) -> Report:
    return lambda progress: listener(
        {
            "stage": "training",
            "step": progress.step,
            "num_steps": num_steps,
            "loss": progress.loss,
            "spd_to_ols": progress.spd_to_ols,
        }
    )


def _log_lines(num_steps: int) -> Report:
    """Log about every tenth of the run."""
    due = 0.0

    def report(progress: TrainingProgress) -> None:
        nonlocal due
        if progress.step >= due:
            due = progress.step + num_steps / 10  # also after a resume, which begins far on
            logger.info(
                "training step %d of %d: loss %.3g, SPD to OLS %.3g",
                progress.step,
                num_steps,
                progress.loss,
                progress.spd_to_ols,
            )

    return report
