"""Where faults are made: a copy of the project, and what it gives when nothing disturbs it."""

import hashlib
import random
import time
from functools import cached_property
from pathlib import Path

from support.project import copy_project, kedro_process, statuses

RUN = ("run", "--env", "test", "--pipelines", "data_generation,model_training")
DRAW = ("run", "--env", "test", "--pipelines", "data_generation")
COMPARE = ("run", "--env", "test", "--pipelines", "behavioral_comparison")
SWEEP = """
{name}:
  axes: {{model.num_layers: [1, 2]}}
  pipelines: [behavioral_comparison]
  parameters: {{training: {{num_steps: 600, checkpoint_every: 20, log_every: 5}}}}
"""


class Laboratory:
    """A copy of the project; finished runs and sweeps are made in it the first time that a trial
    asks for one.
    """

    def __init__(self, folder: Path):
        self.project = copy_project(folder / "project")
        self.rng = random.Random()
        """What a trial draws from; each has a seed of its own."""
        self.tables: set[str] = set()
        """Files that `compared` adds to those of a run."""

    def prepare(self) -> None:
        """Finish a run, so that a fault finds files of an earlier one."""
        assert self.complete

    @cached_property
    def complete(self) -> dict[str, str]:
        """Hashes of what a run gives."""
        begin = time.monotonic()
        self.finish(*RUN)
        self.seconds = time.monotonic() - begin
        return files(self.project)

    @cached_property
    def drawn(self) -> dict[int, dict[str, str]]:
        """Hashes of the prompts, by seed."""
        found = {}
        for seed in (1, 0):
            self.finish(*DRAW, "--params", f"seed={seed}")
            found[seed] = prompts(self.project)
        assert found[0] != found[1]
        return found

    @cached_property
    def compared(self) -> dict[str, str]:
        """Hashes of all files after a comparison, which leaves tables."""
        self.prepare()
        self.finish(*COMPARE)
        found = files(self.project)
        self.tables = set(found) - set(self.complete)
        return found

    @cached_property
    def swept(self) -> dict[str, str]:
        """What a sweep gives that nothing disturbs."""
        with (self.project / "conf/test/sweeps.yml").open("a") as file:
            file.write(SWEEP.format(name="unbroken") + SWEEP.format(name="disturbed"))
        begin = time.monotonic()
        hashes = self.sweep("unbroken")
        self.sweep_seconds = time.monotonic() - begin
        return hashes

    def finish(self, *command: str) -> None:
        """Run a command that has to go through."""
        result = kedro_process(self.project, *command)
        assert result.returncode == 0, result.output

    def moment(self) -> float:
        """Seconds into a run: anywhere, starting and ending included."""
        return self.rng.uniform(0.02, 1.0) * self.seconds

    def sweep(self, name: str) -> dict[str, str]:
        """Run a sweep until it is whole; hashes of what its variants gave."""
        self.finish("sweep", "run", name, "--env", "test")
        return files(self.project, f"sweeps/{name}")

    def goes_on(self) -> str | None:
        """What is wrong with the project after a fault, if anything is."""
        result = kedro_process(self.project, *RUN)
        if result.returncode:
            return f"the next run fails: {result.says[-300:]}"
        found = files(self.project)
        names = (set(found) | set(self.complete)) - self.tables
        other = [name for name in names if found.get(name) != self.complete.get(name)]
        if other:
            return f"the next run gives other {', '.join(other)}"
        if "RUNNING" in statuses(self.project):
            return "MLflow says that a dead run is running"
        if list(self.project.rglob(".*.tmp*")) or list(self.project.rglob(".lock")):
            return "temporary files are left"
        return None


def files(project: Path, below: str = "") -> dict[str, str]:
    """Hashes of all outputs of a run, or of a sweep below its folder: learners and tables."""
    root = project / "data/test" / below
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.*"))
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix != ".html"  # which says when the run was
        and (path.suffix in (".safetensors", ".parquet") if below else "sweeps" not in path.parts)
    }


def prompts(project: Path) -> dict[str, str]:
    """Hashes of the prompts that a run has drawn."""
    return {name: hash_ for name, hash_ in files(project).items() if "05_model_input" in name}
