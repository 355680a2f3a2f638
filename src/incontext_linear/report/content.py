"""What a chapter of the report is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from incontext_linear.config import LearnerConfig, TaskConfig
from incontext_linear.figures.interactive import interval
from incontext_linear.figures.words import describe_run
from incontext_linear.learner.saved import Learner

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURE = ("mean", "low", "high")
PROMPTS, SEEDS = "over prompts", "over seeds"
"""What an interval is about: how precisely one training was measured, or how trainings differ."""


@dataclass(frozen=True)
class Results:
    """What one run made, and nothing of another run.

    Attributes:
        tables: catalog name → table, text or tensors, of the datasets that this run has written.
        task: that prompts are drawn from.
        model: shape of the learner.
        seed: of the run.
        learner: that was measured; None: the run has none.
    """

    tables: Mapping[str, Any]
    task: TaskConfig
    model: LearnerConfig
    seed: int
    learner: Learner | None = None

    def has(self, *names: str) -> bool:
        """Whether this run has made all of these."""
        return all(name in self.tables for name in names)

    def table(self, name: str) -> pd.DataFrame:
        """A table by its catalog name."""
        return self.tables[name]

    @property
    def run(self) -> str:
        """Which size and seed is shown, as in the figures."""
        return describe_run(self.task, self.model, self.seed)

    @property
    def context_length(self) -> int:
        """The number of examples at which numbers are quoted: k = min(2d, n − 1)."""
        return min(2 * self.task.dim, self.task.num_examples - 1)


@dataclass(frozen=True)
class Number:
    """One number of the summary.

    Attributes:
        label: what it is.
        value, low, high: the number and its interval; no interval: None.
        over: `PROMPTS` or `SEEDS`: what the interval is about.
        percent: whether it is a share that is written in per cent.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    over: str = PROMPTS
    percent: bool = False

    @classmethod
    def of(
        cls,
        label: str,
        row: Mapping[str, Any],
        columns: Sequence[str] = MEASURE,
        unit: float = 1.0,
        **settings: Any,
    ) -> "Number":
        """From a table's row: its columns of the value and the interval's ends, over a unit."""
        value, low, high = (float(row[name]) / unit for name in columns)
        return cls(label, value, low, high, **settings)

    @property
    def words(self) -> str:
        """``0.41 [0.33, 0.80] %``."""
        factor, unit = (100, " %") if self.percent else (1, "")
        if self.low is None or self.high is None:
            return interval(*[self.value * factor] * 3).partition(" ")[0] + unit
        return interval(self.value * factor, self.low * factor, self.high * factor) + unit


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, each by its columns."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def with_interval(row: Mapping[str, Any], columns: Sequence[str] = MEASURE) -> str:
    """A row's value with its interval, as a cell of a table."""
    return interval(*(float(row[name]) for name in columns))


@dataclass(frozen=True)
class Answer:
    """What a chapter says to the run's question; of several the one of the highest rank is told."""

    words: str
    rank: int


@dataclass(frozen=True)
class Shown:
    """A figure or a table in a chapter.

    Attributes:
        title: its heading.
        caption: what it shows and how to read it.
        definition: key of `definitions.DEFINITIONS`.
        figure: an interactive chart.
        table: a small table, its cells as they are written; instead of a figure.
    """

    title: str
    caption: str
    definition: str
    figure: "Figure | None" = None
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Chapter:
    """One part of the page.

    Attributes:
        lead: paragraphs before the figures.
        shown: figures and tables, in order.
        numbers: candidates for the five numbers of the summary.
        answer: to the run's question.
    """

    lead: tuple[str, ...] = ()
    shown: tuple[Shown, ...] = ()
    numbers: tuple[Number, ...] = ()
    answer: Answer | None = None


@dataclass(frozen=True)
class Part:
    """An entry of `chapters.CHAPTERS`.

    Attributes:
        key: the anchor in the page.
        title: of the chapter.
        make: gives the chapter, or None where its tables are not in the results.
        command: the pipeline that makes what the chapter needs.
        always: whether the page says so where the chapter was not run; others are left out.
    """

    key: str
    title: str
    make: Callable[[Results], Chapter | None]
    command: str
    always: bool = field(default=True)
