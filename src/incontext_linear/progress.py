"""The progress of training: a bar in a terminal, log lines where the output goes to a file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from incontext_linear.training import Progress as TrainingProgress

logger = logging.getLogger(__name__)

Report = Callable[[TrainingProgress], None]


@contextmanager
def training_progress(num_steps: int) -> Iterator[Report]:
    """Show the steps, the loss and the SPD to OLS while the block runs.

    Yields:
        The callback that `training.train` reports to.
    """
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


def _log_lines(num_steps: int) -> Report:
    """Log about every tenth of the run."""
    due = 0.0

    def report(progress: TrainingProgress) -> None:
        nonlocal due
        if progress.step >= due:
            due += num_steps / 10
            logger.info(
                "training step %d of %d: loss %.3g, SPD to OLS %.3g",
                progress.step,
                num_steps,
                progress.loss,
                progress.spd_to_ols,
            )

    return report
