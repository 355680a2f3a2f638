"""Where the time of a run goes, node by node: ``python -m benchmarks.nodes --env base``.

Runs the project's pipelines in this process, in a copy of the project, and prints a Markdown table
of CPU and wall seconds: imports, everything before the first node, each node without and each
dataset's saving, and the rest. CPU seconds count all threads, so that a busy machine does not
change them much; where they exceed wall seconds, several threads were at work.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, cast

PROJECT = Path(__file__).parents[1]


class Clock:
    """CPU and wall seconds between one mark and the next, by what was done meanwhile."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []
        self._last = (time.process_time(), time.perf_counter())

    def mark(self, what: str) -> None:
        """Book everything since the last mark on ``what``."""
        now = (time.process_time(), time.perf_counter())
        cpu, wall = (new - old for new, old in zip(now, self._last, strict=True))
        self.rows.append((what, cpu, wall))
        self._last = now

    def table(self, least: float) -> str:
        """Markdown: what took ``least`` CPU seconds or more, the rest together."""
        totals: dict[str, list[float]] = {}
        for what, *seconds in self.rows:
            total = totals.setdefault(what, [0.0, 0.0])
            totals[what] = [a + b for a, b in zip(total, seconds, strict=True)]
        small = [what for what, (cpu, _) in totals.items() if cpu < least]
        rest = [sum(totals[what][i] for what in small) for i in (0, 1)]
        whole = [sum(row[i] for row in totals.values()) for i in (0, 1)]
        shown = {what: row for what, row in totals.items() if what not in small}
        shown |= {f"{len(small)} others": rest, "**all**": whole}
        rows = ["| | CPU s | wall s |", "|---|--:|--:|"]
        rows += [f"| {what} | {cpu:.1f} | {wall:.1f} |" for what, (cpu, wall) in shown.items()]
        return "\n".join(rows)


def run(project: Path, clock: Clock, env: str | None, pipelines: list[str] | None) -> None:
    """One Kedro run, each of whose steps is booked on the clock."""
    from kedro.framework.hooks import hook_impl
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    from incontext_linear.runs.session import ProjectSession

    class Marks:
        @hook_impl(tryfirst=True)
        def before_node_run(self, node: Any) -> None:
            clock.mark("between nodes: loading and copying")

        @hook_impl(trylast=True)
        def after_node_run(self, node: Any) -> None:
            clock.mark(f"`{node.name}`")

        @hook_impl(trylast=True)
        def after_dataset_saved(self, dataset_name: str) -> None:
            figure = dataset_name.endswith("_figure")
            metrics = dataset_name.endswith("_metrics")
            clock.mark(f"saving {'figures' if figure else 'metrics' if metrics else 'the rest'}")

        @hook_impl(trylast=True)
        def before_pipeline_run(self) -> None:
            clock.mark("session, checks, opening MLflow's run")

    bootstrap_project(project)
    with KedroSession.create(project, env=env) as made:
        session = cast(ProjectSession, made)
        session._hook_manager.register(Marks())
        clock.mark("imports")
        session.run(pipeline_names=pipelines)
    clock.mark("ending")


def main() -> None:
    """Read the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default=None)
    parser.add_argument("--pipelines", type=lambda names: names.split(","), default=None)
    parser.add_argument("--least", type=float, default=1.0, help="CPU seconds of a row of its own")
    arguments = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        ignore = shutil.ignore_patterns("data", "__pycache__")
        for name in ("conf", "src"):
            shutil.copytree(PROJECT / name, project / name, ignore=ignore)
        shutil.copy(PROJECT / "pyproject.toml", project)
        run(project, clock, arguments.env, arguments.pipelines)
    print(clock.table(arguments.least))


if __name__ == "__main__":
    main()
