"""How far a sweep is: live in a terminal, as lines where the output goes to a file; and the other
tables.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table


class LiveDisplay:
    """One bar for the sweep, and one for each variant that runs."""

    def __init__(self, console: Console, name: str, num_variants: int):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._sweep = self._progress.add_task(
            f"[bold]{name}", total=num_variants, note="starting workers"
        )
        self._bars: dict[str, TaskID] = {}
        self._ended: set[str] = set()
        self._lock = Lock()

    def __enter__(self) -> "LiveDisplay":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def report(self, variant: str, event: dict[str, Any]) -> None:
        """Draw the steps while the variant trains, and else the name of its node."""
        with self._lock:
            if variant in self._ended:  # a report that was overtaken by the end
                return
            if variant not in self._bars:
                self._bars[variant] = self._progress.add_task(escape(variant), total=None, note="")
            bar = self._bars[variant]
            if "step" in event:
                self._progress.update(
                    bar, completed=event["step"], total=event["num_steps"], note=describe(event)
                )
            else:
                self._progress.update(bar, note=describe(event))
            self._progress.update(self._sweep, note=f"{len(self._bars)} running")

    def end(self, variant: str, state: dict[str, Any]) -> None:
        """Take the variant's bar away, and leave a line."""
        with self._lock:
            self._ended.add(variant)
            if variant in self._bars:
                self._progress.remove_task(self._bars.pop(variant))
            self._progress.update(self._sweep, advance=1, note=f"{len(self._bars)} running")
            self._progress.console.print(summarize(variant, state), markup=False, highlight=False)


class LineDisplay:
    """A line when a variant starts, at every tenth of its training, and when it ends."""

    def __init__(self, console: Console, name: str, num_variants: int):
        self._console, self._name, self._total = console, name, num_variants
        self._due: dict[str, float] = {}
        self._ended: set[str] = set()
        self._lock = Lock()

    def __enter__(self) -> "LineDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def report(self, variant: str, event: dict[str, Any]) -> None:
        """A line, if one is due."""
        with self._lock:
            if variant in self._ended:  # a report that was overtaken by the end
                return
            if "step" not in event:
                if event["stage"] == "starting":
                    self._due[variant] = 0.0
                    self._print(f"{variant}: {_start(event)}")
            elif event["step"] >= self._due.get(variant, 0.0):
                self._due[variant] = event["step"] + event["num_steps"] / 10
                self._print(f"{variant}: {describe(event)}")

    def end(self, variant: str, state: dict[str, Any]) -> None:
        """A line, with how many have ended."""
        with self._lock:
            self._ended.add(variant)
            self._print(f"[{len(self._ended)}/{self._total}] {summarize(variant, state)}")

    def _print(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)


def open_display(console: Console, name: str, num_variants: int) -> LiveDisplay | LineDisplay:
    """The display that suits the console; its reports may come from another thread.

    Args:
        console: what to write to.
        name: the sweep's.
        num_variants: how many will run.
    """
    return (LiveDisplay if console.is_terminal else LineDisplay)(console, name, num_variants)


def describe(event: dict[str, Any]) -> str:
    """A report in words."""
    if "step" not in event:
        return event["stage"]
    step, of, loss, spd = event["step"], event["num_steps"], event["loss"], event["spd_to_ols"]
    told = f"training step {step} of {of}{_beside(event)}"
    return f"{told}: loss {loss:.3g}, SPD to OLS {spd:.3g}"


def _start(event: dict[str, Any]) -> str:
    """What begins: a training, alone or with others, or the measurements of a trained learner."""
    return "trained, starts measuring" if event.get("trained") else f"starts{_beside(event)}"


def _beside(event: dict[str, Any]) -> str:
    """How many variants train in the same step."""
    others = event.get("together", 1) - 1
    return f" (with {others} more in the same step)" if others else ""


def summarize(variant: str, state: dict[str, Any]) -> str:
    """How a variant ended, in one line."""
    if state["status"] != "done":
        return f"{variant}: {state['status']}: {state.get('error') or ''}".rstrip(": ")
    figure = "" if state["spd_to_ols"] is None else f", SPD to OLS {state['spd_to_ols']:.3g}"
    return f"{variant}: done in {state['seconds']:.0f} s{figure}"


def failures_table(failures: Iterable[tuple[str, Path, str]]) -> Table:
    """What went wrong: (variant, its log, error) each."""
    table = Table(title="Failed variants", title_justify="left")
    for name in ("variant", "error", "log"):
        table.add_column(name, overflow="fold")
    for variant, log, error in failures:
        table.add_row(*map(escape, (variant, error, str(log))))
    return table


def status_table(name: str, rows: Iterable[tuple[str, str, dict[str, Any]]]) -> Table:
    """Where a sweep stands: (variant, standing, what its folder says) each."""
    table = Table(title=name, title_justify="left")
    for heading in ("variant", "state", "seconds", "SPD to OLS", "error"):
        table.add_column(heading, overflow="fold")
    for variant, stands, state in rows:
        seconds, spd = state.get("seconds"), state.get("spd_to_ols")
        table.add_row(
            escape(variant),
            stands,
            "" if seconds is None else f"{seconds:.0f}",
            "" if spd is None else f"{spd:.3g}",
            escape((state.get("error") or "").partition("\n")[0]),
        )
    return table


def list_table(rows: Iterable[Sequence[str]]) -> Table:
    """The sweeps: (name, axes, seeds, number of variants, how many are done) each."""
    table = Table("sweep", "axes", "seeds", "variants", "done")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
