"""The progress bar of training: steps, loss and SPD to OLS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from incontext_linear.training import Progress as TrainingProgress


@contextmanager
def training_progress(num_steps: int) -> Iterator[Callable[[TrainingProgress], None]]:
    """Show a bar while the block runs; yields the callback that `training.train` reports to."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3g}  SPD to OLS {task.fields[spd]:.3g}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=num_steps, loss=float("nan"), spd=float("nan"))

        def report(progress: TrainingProgress) -> None:
            bar.update(task, completed=progress.step, loss=progress.loss, spd=progress.spd_to_ols)

        yield report
