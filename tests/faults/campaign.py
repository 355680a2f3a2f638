"""Faults made for real, many times over, and a table of what held.

    PYTHONPATH=tests python -m faults.campaign --trials 4 --seed 0

Each kind of fault is tried so often in a copy of the project (damage to files ten or a hundred
times as often, since that starts no process). A trial is held if what a user finds afterwards is
right: the files of an unbroken run, or the old ones, never a mixture; an exit status and one line
instead of a traceback; no run that MLflow thinks is still running once the next one has started;
and a project that goes on.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from kedro.config import OmegaConfigLoader
from support.project import copy_project, kedro_process, start, statuses

from incontext_linear.config import ModelConfig, TaskConfig, flatten
from incontext_linear.files import UnreadableFileError
from incontext_linear.learner.saved import Learner, load_learner, save_learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.parameters import check_parameters
from incontext_linear.runs.rehearsal import rehearse
from incontext_linear.runs.sizes import NEEDS
from incontext_linear.training import Recipe, train
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.config import TrainingConfig

RUN = ("run", "--env", "test", "--pipelines", "data_generation,model_training")
DRAW = ("run", "--env", "test", "--pipelines", "data_generation")
SWEEP = """
{name}:
  axes: {{model.num_layers: [1, 2]}}
  pipelines: [behavioral_comparison]
  parameters: {{training: {{num_steps: 600, checkpoint_every: 20, log_every: 5}}}}
"""


class Laboratory:
    """A copy of the project with a finished run, and what such a run gives."""

    def __init__(self, folder: Path, rng: random.Random):
        self.project, self.rng = copy_project(folder / "project"), rng

    def prepare(self) -> None:
        """Make the finished run; trials that start no process need none."""
        begin = time.monotonic()
        self._complete(*RUN)
        self.seconds = time.monotonic() - begin
        self.complete = files(self.project)
        self.drawn = {0: {n: h for n, h in self.complete.items() if "05_model_input" in n}}
        self._complete(*DRAW, "--params", "seed=1")
        self.drawn[1] = {n: h for n, h in files(self.project).items() if "05_model_input" in n}
        assert self.drawn[0] != self.drawn[1]

    def _complete(self, *command: str) -> None:
        result = kedro_process(self.project, *command)
        assert result.returncode == 0, result.output

    def moment(self) -> float:
        """Seconds into a run: anywhere, starting and ending included."""
        return self.rng.uniform(0.02, 1.0) * self.seconds

    def sweep(self, name: str) -> dict[str, str]:
        """Run a sweep until it is whole; hashes of what its variants gave."""
        self._complete("sweep", "run", name, "--env", "test")
        return files(self.project, f"sweeps/{name}")

    def unbroken_sweep(self) -> dict[str, str]:
        """What a sweep gives that nothing disturbs; run the first time that it is asked for."""
        if not hasattr(self, "swept"):
            with (self.project / "conf/test/sweeps.yml").open("a") as file:
                file.write(SWEEP.format(name="unbroken") + SWEEP.format(name="disturbed"))
            begin = time.monotonic()
            self.swept = self.sweep("unbroken")
            self.sweep_seconds = time.monotonic() - begin
        return self.swept

    def goes_on(self) -> str | None:
        """What is wrong with the project after a fault, if anything is."""
        result = kedro_process(self.project, *RUN)
        if result.returncode:
            return f"the next run fails: {result.says[-300:]}"
        if files(self.project) != self.complete:
            return "the next run gives other files"
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
        and (path.suffix in (".safetensors", ".parquet") if below else "sweeps" not in path.parts)
    }


def killed(lab: Laboratory, number: int) -> str | None:
    """A run is sent a signal at any moment; then the same command is given once more."""
    (lab.project / "data/test/06_models/learner.safetensors").unlink()
    process = start(lab.project, *RUN)
    time.sleep(lab.moment())
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    if number == signal.SIGKILL:
        return lab.goes_on()
    # Before the project's first line runs, a signal does what it does to any Python program.
    if process.returncode not in (0, 130, -number):
        return f"exit status {process.returncode}: {output[-300:]}"
    if "Traceback" in output and process.returncode != -signal.SIGINT:
        return f"a traceback: {output[-600:]}"
    if "RUNNING" in statuses(lab.project):
        return "MLflow says that the interrupted run is running"
    return lab.goes_on()


def beside(lab: Laboratory) -> str | None:
    """Two runs with different seeds in one environment, the second a moment after the first."""
    first = start(lab.project, *DRAW, "--params", "seed=0")
    time.sleep(lab.rng.uniform(0.0, 0.3) * lab.seconds)
    second = start(lab.project, *DRAW, "--params", "seed=1")
    ends = [(p.communicate(timeout=600)[0], p.returncode) for p in (first, second)]
    done = [seed for seed, (_, status) in enumerate(ends) if status == 0]
    found = {n: h for n, h in files(lab.project).items() if "05_model_input" in n}
    if not done or found not in [lab.drawn[seed] for seed in done]:
        return f"of the seeds {done} that say they are done, the files are of none"
    if any("is in use by" not in " ".join(out.split()) for out, status in ends if status):
        return f"refused without saying why: {[out[-200:] for out, _ in ends]}"
    return None


def first_run_killed(lab: Laboratory) -> str | None:
    """The run that makes MLflow's database is killed while it does."""
    database = lab.project / "mlflow.db"
    database.rename(lab.project / "kept.db")
    process = start(lab.project, *DRAW)
    while process.poll() is None and not list(lab.project.glob(".mlflow*.tmp.db")):
        time.sleep(0.02)
    time.sleep(lab.rng.uniform(0.0, 0.25) * lab.seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    problem = lab.goes_on()
    (lab.project / "kept.db").rename(database)
    return problem


def first_runs_at_once(lab: Laboratory) -> str | None:
    """Two first runs in two environments: MLflow's database is made once."""
    database = lab.project / "mlflow.db"
    database.rename(lab.project / "kept.db")
    runs = [
        start(lab.project, *DRAW),
        start(lab.project, "run", "--pipelines", "data_generation"),
    ]
    ends = [(run.communicate(timeout=600)[0], run.returncode) for run in runs]
    found = statuses(lab.project) if database.exists() else []
    (lab.project / "kept.db").rename(database)
    if [status for _, status in ends] != [0, 0] or found != ["FINISHED", "FINISHED"]:
        return f"{found}: {[out[-300:] for out, _ in ends]}"
    return None


def full_disk(lab: Laboratory) -> str | None:
    """No file can grow beyond a random size."""
    before = files(lab.project)
    size = int(10 ** lab.rng.uniform(3.0, 6.0))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    result = kedro_process(lab.project, *RUN, "--params", "seed=1", preexec_fn=limit)
    after = files(lab.project)
    if result.returncode and "Traceback" in result.output:
        return f"a traceback at {size} bytes: {result.says[-600:]}"
    if list((lab.project / "data").rglob(".*.tmp*")):
        return "temporary files are left"
    if any(path not in after for path in before):
        return "a file is gone"
    return lab.goes_on()


def damaged(lab: Laboratory) -> str | None:
    """A bit of a learner's file is flipped, or its end is cut off."""
    path = lab.project / "damaged.safetensors"
    torch.manual_seed(0)
    model = ModelConfig(num_layers=1, num_heads=2, width=8)
    save_learner(path, Learner(Transformer(2, 4, model), TaskConfig(dim=2, num_examples=4), {}))
    path.write_bytes(_damage(path.read_bytes(), lab.rng))
    try:
        load_learner(path)
    except UnreadableFileError as error:
        return "more than one line" if "\n" in str(error) else None
    return "read without a word"


def _damage(content: bytes, rng: random.Random) -> bytes:
    """Without its end, or with one bit flipped, half of the time in the header."""
    if rng.random() < 0.2:
        return content[: rng.randrange(len(content))]
    header = 8 + int.from_bytes(content[:8], "little")
    place = rng.randrange(rng.choice((header, len(content))))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def damaged_checkpoint(lab: Laboratory) -> str | None:
    """As `damaged`, to the newest checkpoint of a training that then goes on."""
    recipe = Recipe(
        TaskConfig(dim=2, num_examples=4),
        ModelConfig(num_layers=1, num_heads=2, width=8),
        TrainingConfig(num_steps=12, batch_size=4, log_every=3, checkpoint_every=4),
        seed=0,
    )
    expected = train(recipe, "cpu").model.state_dict()
    store = CheckpointStore(lab.project / "checkpoints")

    def stop(progress: Any) -> None:
        if progress.step >= 9:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        train(recipe, "cpu", store, stop)
    newest = max(store.directory.rglob("step_*.safetensors"))
    newest.write_bytes(_damage(newest.read_bytes(), lab.rng))
    found = train(recipe, "cpu", store).model.state_dict()
    shutil.rmtree(store.directory)
    same = all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return None if same else "training gave another learner"


def disturbed_sweep(lab: Laboratory, disturb: Callable[[Laboratory, subprocess.Popen], str | None]):
    """A sweep of two variants is disturbed at any moment; then the same command is given again."""
    expected = lab.unbroken_sweep()
    shutil.rmtree(lab.project / "data/test/sweeps/disturbed", ignore_errors=True)
    process = start(lab.project, "sweep", "run", "disturbed", "--env", "test")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(lab.rng.uniform(0.05, 0.9) * lab.sweep_seconds)
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    problem = disturb(lab, process)
    if problem:
        return problem
    output, _ = process.communicate(timeout=600)
    if "Traceback" in output and process.returncode != -signal.SIGINT:
        return f"a traceback: {output[-600:]}"
    _, alive = psutil.wait_procs(below, timeout=60)
    if any(child.status() != psutil.STATUS_ZOMBIE for child in alive):
        return "processes are left"
    if lab.sweep("disturbed") != expected:
        return "the next sweep gives other files"
    return "MLflow says that a dead run is running" if "RUNNING" in statuses(lab.project) else None


def kill_driver(lab: Laboratory, process: subprocess.Popen) -> str | None:
    """The process that gives the variants to workers."""
    process.send_signal(signal.SIGKILL)
    return None


def kill_worker(lab: Laboratory, process: subprocess.Popen) -> str | None:
    """Any process that computes variants, or watches over one that does; the sweep then ends."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in below if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            lab.rng.choice(workers).kill()
    return None


def terminate_twice(lab: Laboratory, process: subprocess.Popen) -> str | None:
    """As a batch system does that is in a hurry."""
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(lab.rng.uniform(0, 0.2))
    status = process.wait(timeout=120)
    # Before the project's first line runs, a signal does what it does to any Python program.
    return None if status in (0, 130, -signal.SIGTERM) else f"exit status {status}"


def reached_from_elsewhere(lab: Laboratory, process: subprocess.Popen) -> str | None:
    """Nothing is done to it: whatever a sweep's processes listen on until its end is noted."""
    found = set()
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(process.pid)
            for one in (top, *top.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found |= {c.laddr.ip for c in one.net_connections("inet") if not c.raddr}
        time.sleep(0.2)
    others = found - {"127.0.0.1", "::1"}
    return f"it listens on {sorted(others)}" if others else None


def impossible(lab: Laboratory) -> str | None:
    """One to three parameters are given values at the edge of sense, or beyond it.

    Held is a run that may begin, and one line for each parameter that is refused; the small runs of
    `tests/project/test_parameter_matrix.py` say how those end that begin.
    """
    loader = OmegaConfigLoader(
        str(lab.project / "conf"),
        base_env="base",
        default_run_env="base",
        env="test",
        merge_strategy={"parameters": "soft"},
    )
    tree = loader["parameters"]
    fields = sorted(name for name in flatten(tree) if name.partition(".")[0] != "phase_diagram")
    changes = {lab.rng.choice(fields): lab.rng.choice(EDGES) for _ in range(lab.rng.randint(1, 3))}
    for name, value in changes.items():
        _put(tree, name, value)
    try:
        rehearse(check_parameters(tree), list(NEEDS), ["probed", "baseline_predictions"])
    except ValueError as error:
        lines = str(error).splitlines()
        named = all(":" in line for line in lines)
        return None if named else f"{changes}: {error}"
    except Exception as error:  # a traceback, which is what the trial looks for
        return f"{changes}: {type(error).__name__}: {error}"
    return None


EDGES = (
    *(0, 1, 2, -1, 10**9, 10**30, 1e-300, 1e300, 0.5, 0.999, True, None),
    *("x", "../../x", "normal*0+0", "cuda", [], [1, 1], [0], {}, {"type": "os.system"}),
)


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a parameter by its dotted name, whose keys may hold dots themselves."""
    for key, below in tree.items():
        if name == key:
            tree[key] = value
            return
        if name.startswith(f"{key}.") and isinstance(below, dict):
            _put(below, name[len(key) + 1 :], value)


TRIALS: dict[str, tuple[int, Callable[[Laboratory], str | None]]] = {
    "a run killed at any moment (SIGKILL)": (1, lambda lab: killed(lab, signal.SIGKILL)),
    "a run interrupted at any moment (SIGINT)": (1, lambda lab: killed(lab, signal.SIGINT)),
    "a run terminated at any moment (SIGTERM)": (1, lambda lab: killed(lab, signal.SIGTERM)),
    "the terminal closed at any moment (SIGHUP)": (1, lambda lab: killed(lab, signal.SIGHUP)),
    "two runs in one environment": (1, beside),
    "a first run killed while it makes mlflow.db": (1, first_run_killed),
    "two first runs at once": (1, first_runs_at_once),
    "no file can grow (full disk)": (1, full_disk),
    "a sweep's driver killed at any moment": (1, lambda lab: disturbed_sweep(lab, kill_driver)),
    "a sweep's worker killed at any moment": (1, lambda lab: disturbed_sweep(lab, kill_worker)),
    "a sweep terminated twice in a row": (1, lambda lab: disturbed_sweep(lab, terminate_twice)),
    "what a sweep listens on": (1, lambda lab: disturbed_sweep(lab, reached_from_elsewhere)),
    "a learner's file damaged": (100, damaged),
    "the newest checkpoint damaged": (10, damaged_checkpoint),
    "parameters at the edge of sense": (100, impossible),
}
"""By name: how often for each trial that is asked for, and what is tried."""
ALONE = tuple(name for name in TRIALS if any(w in name for w in ("damaged", "edge", "a sweep")))
"""Trials that need no finished run."""


def run_campaign(num_trials: int, seed: int, only: str = "") -> tuple[str, list[str]]:
    """Try everything; gives the table and what was lost."""
    rng, lost = random.Random(seed), []
    rows = ["| fault | tried | held | lost |", "|---|--:|--:|--:|"]
    with tempfile.TemporaryDirectory() as folder:
        lab = Laboratory(Path(folder), rng)
        chosen = {name: trial for name, trial in TRIALS.items() if only in name}
        if not set(chosen) <= set(ALONE):
            lab.prepare()
        for name, (factor, trial) in chosen.items():
            problems = [trial(lab) for _ in range(factor * num_trials)]
            mine = [f"{name}: {problem}" for problem in problems if problem]
            lost += mine
            held = len(problems) - len(mine)
            rows.append(f"| {name} | {len(problems)} | {held} | {len(mine)} |")
            logging.info("%s", rows[-1])
    return "\n".join(rows), lost


def main() -> None:
    """Read the command line, run the campaign, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    table, lost = run_campaign(arguments.trials, arguments.seed, arguments.only)
    print(table)
    print(*lost, sep="\n")
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
