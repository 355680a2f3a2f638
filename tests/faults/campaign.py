"""Faults made for real, many times over, and a table of what held.

    PYTHONPATH=src:tests python -m faults.campaign --trials 4 --seed 0 --jobs 2

Each kind of fault (`faults.kinds`) is tried so often in a copy of the project; damage to files and
odd parameters ten or a hundred times as often, since they start no process. ``--jobs`` spreads the
trials over processes, each with a copy of its own. A trial draws from a seed made of the
campaign's, its kind and its number, so ``--only KIND --number 3`` repeats one alone (the moment of
a signal is a share of what a run takes here, so not to the millisecond). With ``--records FILE``
what each trial gave is written as soon as it is known, a line of JSON each. What the file holds
already is not tried again: a campaign that was stopped goes on, and ``--trials 0`` only prints its
table.
"""

import argparse
import json
import multiprocessing
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from faults.kinds import KINDS
from faults.laboratory import Laboratory

LONGEST = 900
"""Seconds after which a trial is lost: what it tries hangs."""


@dataclass(frozen=True)
class Record:
    """What a trial gave."""

    kind: str
    seed: int
    number: int
    problem: str | None
    """None if it held."""
    seconds: float

    @property
    def trial(self) -> tuple[str, int, int]:
        """Which one it is."""
        return self.kind, self.seed, self.number


class Workplace:
    """A process's laboratory, made anew after a trial that was lost."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.laboratory: Laboratory | None = None

    def attempt(self, kind: str, seed: int, number: int) -> Record:
        """Make one trial; an error of its own is one that was lost."""
        begin = time.monotonic()
        signal.alarm(LONGEST)
        try:
            if self.laboratory is None:
                self.laboratory = Laboratory(Path(tempfile.mkdtemp(dir=self.folder)))
            self.laboratory.rng = random.Random(f"{seed} {kind} {number}")
            problem = KINDS[kind].trial(self.laboratory)
        except Exception as error:
            problem = f"the trial ended with {type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        if problem:
            self.laboratory = None
        return Record(kind, seed, number, problem, round(time.monotonic() - begin, 2))


_workplaces: list[Workplace] = []


def _give_up(number: int, frame: object) -> None:
    raise TimeoutError(f"not ended after {LONGEST} s")


def _begin(folder: str) -> None:
    """In each process, once."""
    signal.signal(signal.SIGALRM, _give_up)
    # What is ignored here, as under nohup or behind an `&`, the runs would ignore too.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    _workplaces.append(Workplace(folder))


def _attempt(kind: str, seed: int, number: int, deadline: float) -> Record | None:
    return _workplaces[0].attempt(kind, seed, number) if time.time() < deadline else None


def run_campaign(
    trials: list[tuple[str, int, int]], jobs: int, deadline: float = float("inf")
) -> Iterator[Record]:
    """Try everything; gives what each trial gave, as soon as it is known.

    Args:
        trials: kind, seed and number of each, in the order in which they are begun.
        jobs: processes, each with a laboratory of its own.
        deadline: seconds since the epoch after which none is begun.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ProcessPoolExecutor(jobs, spawn, _begin, (folder,)) as pool,
    ):
        futures = [pool.submit(_attempt, *trial, deadline) for trial in trials]
        for future in as_completed(futures):
            if record := future.result():
                yield record


def plan(num_trials: int, seed: int, only: str = "") -> list[tuple[str, int, int]]:
    """The trials of a campaign: one round of all kinds after the other, so that one that is stopped
    has tried each kind about equally often.
    """
    chosen = {name: kind.factor for name, kind in KINDS.items() if only in name}
    return [
        (name, seed, number)
        for around in range(num_trials)
        for name, factor in chosen.items()
        for number in range(around * factor, (around + 1) * factor)
    ]


def table(records: list[Record]) -> str:
    """How many trials of each kind were made, held and were lost."""
    rows = ["| fault | tried | held | lost |", "|---|--:|--:|--:|"]
    for name in [*KINDS, ""]:
        mine = [record for record in records if name in ("", record.kind)]
        lost = sum(record.problem is not None for record in mine)
        if mine:
            rows.append(f"| {name or 'all'} | {len(mine)} | {len(mine) - lost} | {lost} |")
    return "\n".join(rows)


def read_records(path: Path | None) -> list[Record]:
    """What a file holds; a last line that was not finished is left out."""
    if path is None or not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Record(**json.loads(line)) for line in lines]


def main() -> None:
    """Read the command line, run the campaign, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=4, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--number", type=int, help="only the trials of this number")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then begin no more")
    parser.add_argument("--records", type=Path, help="file to add what each trial gave to")
    arguments = parser.parse_args()
    deadline = time.time() + 60 * arguments.minutes
    records = read_records(arguments.records)
    done = {record.trial for record in records}
    trials = [
        trial
        for trial in plan(arguments.trials, arguments.seed, arguments.only)
        if trial not in done and arguments.number in (None, trial[2])
    ]
    for record in run_campaign(trials, arguments.jobs, deadline):
        records.append(record)
        if arguments.records:
            with arguments.records.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        if record.problem or record.seconds > 1:
            print(time.strftime("%H:%M:%S"), record.kind, record.number, record.problem or "held")
    lost = [record for record in records if record.problem]
    print(table(records))
    for record in lost:
        print(f"{record.kind}, seed {record.seed}, number {record.number}: {record.problem}")
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
