"""The kinds of fault, each made for real: a function of the laboratory that says what was wrong.

A trial is held, and its function gives None, if what a user finds afterwards is right: the files of
an unbroken run, or the old ones, never a mixture; an exit status and one line instead of a
traceback; no run that MLflow thinks is still running once the next one has started; and a project
that goes on.
"""

import contextlib
import itertools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from kedro.config import OmegaConfigLoader
from support.project import ENVIRONMENT, Outcome, await_, kedro_process, start, statuses

from faults.laboratory import COMPARE, DRAW, RUN, Laboratory, files, prompts
from incontext_linear.config import ModelConfig, TaskConfig, flatten
from incontext_linear.files import UnreadableFileError
from incontext_linear.learner.saved import Learner, load_learner, save_learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.parameters import check_parameters
from incontext_linear.runs.rehearsal import rehearse
from incontext_linear.runs.session import SIDE_BY_SIDE
from incontext_linear.runs.sizes import NEEDS
from incontext_linear.training import Recipe, train
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.config import TrainingConfig


def killed(lab: Laboratory, number: int, *more: str) -> str | None:
    """A run is sent a signal at any moment; then the same command is given once more."""
    lab.prepare()
    (lab.project / "data/test/06_models/learner.safetensors").unlink()
    process = start(lab.project, *RUN, *more)
    time.sleep(lab.moment())
    below = children(process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    _, alive = psutil.wait_procs(below, timeout=60)
    if any(child.status() != psutil.STATUS_ZOMBIE for child in alive):
        return "processes are left"
    if number == signal.SIGKILL:
        return lab.goes_on()
    return interrupted_badly(process, output, number) or lab.goes_on()


def interrupted_badly(process: subprocess.Popen, output: str, number: int) -> str | None:
    """What is wrong with how a run ended that was sent a signal."""
    # Before the project's first line runs, a signal does what it does to any Python program.
    if process.returncode not in (0, 130, -number):
        return f"exit status {process.returncode}: {output[-300:]}"
    if "Traceback" in output and process.returncode != -signal.SIGINT:
        return traceback_in(output)
    return None


def traceback_in(output: str) -> str:
    """The first traceback of an output, cut in the middle if it is long."""
    words = " ".join(output[output.index("Traceback") :].split()).replace("\u2500", "")
    return f"a traceback: {words if len(words) < 3000 else words[:1000] + ' … ' + words[-2000:]}"


def children(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that a process has started, and those that they have."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            return psutil.Process(process.pid).children(recursive=True)
    return []


def beside(lab: Laboratory) -> str | None:
    """Two runs with different seeds in one environment, the second a moment after the first."""
    lab.prepare()
    assert lab.drawn
    first = start(lab.project, *DRAW, "--params", "seed=0")
    time.sleep(lab.rng.uniform(0.0, 0.3) * lab.seconds)
    second = start(lab.project, *DRAW, "--params", "seed=1")
    ends = [(p.communicate(timeout=600)[0], p.returncode) for p in (first, second)]
    done = [seed for seed, (_, status) in enumerate(ends) if status == 0]
    found = prompts(lab.project)
    if not done or found not in [lab.drawn[seed] for seed in done]:
        return f"of the seeds {done} that say they are done, the files are of none"
    if any("is in use by" not in " ".join(out.split()) for out, status in ends if status):
        return f"refused without saying why: {[out[-200:] for out, _ in ends]}"
    return None


@contextlib.contextmanager
def set_aside(path: Path) -> Iterator[Path]:
    """A file or folder is moved away, and put back in place of what has taken its place."""
    kept = path.rename(path.with_name(f"kept_{path.name}"))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        kept.rename(path)


def first_run_killed(lab: Laboratory) -> str | None:
    """The run that makes MLflow's database is killed while it does."""
    lab.prepare()
    with set_aside(lab.project / "mlflow.db"):
        process = start(lab.project, *DRAW)
        while process.poll() is None and not list(lab.project.glob(".mlflow*.tmp.db")):
            time.sleep(0.02)
        time.sleep(lab.rng.uniform(0.0, 0.25) * lab.seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return lab.goes_on()


def first_run_interrupted(lab: Laboratory) -> str | None:
    """An impatient user: Ctrl-C three times while the run that makes MLflow's database starts."""
    lab.prepare()
    with set_aside(lab.project / "mlflow.db"):
        process = start(lab.project, *DRAW)
        for _ in range(3):
            time.sleep(lab.rng.uniform(0.0, 0.4) * lab.seconds)
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
        return interrupted_badly(process, output, signal.SIGINT) or lab.goes_on()


def first_runs_at_once(lab: Laboratory) -> str | None:
    """Two first runs in two environments: MLflow's database is made once."""
    with set_aside(lab.project / "mlflow.db") as database:
        runs = [
            start(lab.project, *DRAW),
            start(lab.project, "run", "--pipelines", "data_generation"),
        ]
        ends = [(run.communicate(timeout=600)[0], run.returncode) for run in runs]
        found = statuses(lab.project) if database.exists() else []
    if [status for _, status in ends] != [0, 0] or found != ["FINISHED", "FINISHED"]:
        return f"{found}: {[out[-300:] for out, _ in ends]}"
    return None


def refused_badly(result: Outcome, *names: str) -> str | None:
    """What is wrong with how a command ended that cannot be carried out."""
    if result.returncode not in (1, 2):
        return f"exit status {result.returncode}: {result.says[-300:]}"
    if "Traceback" in result.output:
        return traceback_in(result.output)
    if result.output.count("Error: ") != 1:
        return f"not one line: {result.says[-600:]}"
    missing = [name for name in names if name not in result.output]
    return f"{missing} not named: {result.says[-300:]}" if missing else None


def damaged_database(lab: Laboratory) -> str | None:
    """MLflow's database has lost its end, or a page of it holds rubbish; later it is put back."""
    lab.prepare()
    with set_aside(lab.project / "mlflow.db") as database:
        content = bytearray(database.with_name("kept_mlflow.db").read_bytes())
        place = lab.rng.randrange(len(content)) // 4096 * 4096
        if lab.rng.random() < 0.3:
            del content[place:]
        else:
            content[place : place + 4096] = lab.rng.randbytes(4096)
        database.write_bytes(content)
        result = kedro_process(lab.project, *DRAW)
    # A page that this run reads nothing of, or an empty file, is no hindrance.
    problem = refused_badly(result, "mlflow.db") if result.returncode else None
    return (problem and f"page {place // 4096}: {problem}") or lab.goes_on()


def folder_unwritable(lab: Laboratory) -> str | None:
    """A file lies where a folder of results should: nobody, not even root, can write there."""
    lab.prepare()
    name = lab.rng.choice(("05_model_input", "06_models"))
    with set_aside(lab.project / "data/test" / name) as folder:
        folder.touch()
        result = kedro_process(lab.project, *RUN, "--params", "seed=1")
    return refused_badly(result, name) or lab.goes_on()


def cut_off(lab: Laboratory) -> str | None:
    """A table or a file of tensors has lost its end, as a broken copy leaves it, and is read."""
    before = lab.compared
    name = lab.rng.choice(
        (
            "05_model_input/evaluation_prompts.safetensors",
            "07_model_output/learner_predictions.parquet",
            "07_model_output/baseline_predictions.parquet",
        )
    )
    with set_aside(lab.project / "data/test" / name) as path:
        content = path.with_name(f"kept_{path.name}").read_bytes()
        path.write_bytes(content[: lab.rng.randrange(len(content))])
        node = "behavioral_comparison.measure_risk"
        result = kedro_process(lab.project, *COMPARE, "--nodes", node)
    problem = refused_badly(result, path.name)
    return problem or (None if files(lab.project) == before else "other files have changed")


REFUSED: dict[str, tuple[str, ...]] = {
    "--env": ("tset", "broken", "unknown", "tagged", "bomb"),
    "--nodes": ("trian", "data_generation", "a,b"),
    "--tags": ("no_such_tag",),
    "--pipelines": ("probign", "data_generation,x"),
    "--from-inputs": ("nothing",),
    "--runner": ("ParallelRunner", "no.such.Runner", "os.system"),
    "--params": ("task.dim=x", "tsak.dim=1", "task.dim", "variant.folder=/tmp", "=", "seed=-1"),
    "--load-versions": ("learner",),
}
"""Options of a run, and values that they cannot have."""
_NESTED = "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, this in itertools.pairwise("abcdefghi")
)
CONFIGURATIONS = {
    "broken": "task: [1,\nmodel: {",
    "unknown": "task: {dim: '${globals:no_such_key}'}",
    "tagged": "task: !!python/object/apply:os.system ['touch made']",
    "bomb": f"a: &a [x, x]\n{_NESTED}",
}
"""Files of parameters, by the environment whose they are."""


def refused_command(lab: Laboratory) -> str | None:
    """An option that does not exist or a configuration that cannot be read: nothing is written."""
    for name, text in CONFIGURATIONS.items():
        path = lab.project / "conf" / name / "parameters.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    option = lab.rng.choice(list(REFUSED))
    value = lab.rng.choice(REFUSED[option])
    before, known = files(lab.project), statuses(lab.project)
    result = kedro_process(lab.project, *DRAW, option, value)
    problem = refused_badly(result)
    if (files(lab.project), statuses(lab.project)) != (before, known):
        problem = "something was written"
    if (lab.project / "made").exists():
        problem = "the configuration ran a command"
    return problem and f"{option} {value}: {problem}"


def full_disk(lab: Laboratory) -> str | None:
    """No file can grow beyond a random size."""
    lab.prepare()
    before = files(lab.project)
    size = int(10 ** lab.rng.uniform(3.0, 6.0))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    result = kedro_process(lab.project, *RUN, "--params", "seed=1", preexec_fn=limit)
    after = files(lab.project)
    if result.returncode and "Traceback" in result.output:
        return f"at {size} bytes, {traceback_in(result.output)}"
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
    expected = lab.swept
    shutil.rmtree(lab.project / "data/test/sweeps/disturbed", ignore_errors=True)
    process = start(lab.project, "sweep", "run", "disturbed", "--env", "test")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(lab.rng.uniform(0.05, 0.9) * lab.sweep_seconds)
    below = children(process)
    problem = disturb(lab, process)
    if problem:
        return problem
    output, _ = process.communicate(timeout=600)
    if "Traceback" in output and process.returncode != -signal.SIGINT:
        return traceback_in(output)
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


def faulty_cluster(lab: Laboratory) -> str | None:
    """A running cluster that has no worker, one with two threads, or one that dies; or none."""
    assert lab.swept
    shutil.rmtree(lab.project / "data/test/sweeps/disturbed", ignore_errors=True)
    fault = lab.rng.choice(("no scheduler", "no worker", "two threads", "it dies"))
    address = "tcp://127.0.0.1:1"
    command = ("sweep", "run", "disturbed", "--env", "test", "--worker-timeout", "5")
    with contextlib.ExitStack() as stack:
        if fault != "no scheduler":
            place = lab.project / "scheduler.json"
            place.unlink(missing_ok=True)
            parts = ["scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(place)]
            await_(place.exists, stack.enter_context(dask(lab, *parts)))
            address = json.loads(place.read_text())["address"]
        if fault in ("two threads", "it dies"):
            threads = "2" if fault == "two threads" else "1"
            parts = ["worker", address, "--no-nanny", "--nthreads", threads, "--no-dashboard"]
            worker = stack.enter_context(dask(lab, *parts))
        process = start(lab.project, *command, "--scheduler", address)
        if fault == "it dies":
            time.sleep(lab.rng.uniform(0.2, 0.9) * lab.sweep_seconds)
            worker.kill()
        output, _ = process.communicate(timeout=600)
    if process.returncode == 0 and fault == "it dies":  # too late
        return None
    wrong = process.returncode != 1 or "Traceback" in output or address not in output
    return f"{fault}: exit status {process.returncode}: {output[-600:]}" if wrong else None


@contextlib.contextmanager
def dask(lab: Laboratory, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A part of a cluster, as a user starts it."""
    with (lab.project / "dask.log").open("a") as log:
        known = {"cwd": lab.project, "env": ENVIRONMENT, "stdout": log, "stderr": log}
        process = subprocess.Popen([sys.executable, "-m", "dask", *command], text=True, **known)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


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


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        trial: makes it once; says what was wrong afterwards.
        factor: how many trials there are for each that is asked for.
    """

    trial: Callable[[Laboratory], str | None]
    factor: int = 1


def _killed(number: int, *more: str) -> Kind:
    return Kind(lambda lab: killed(lab, number, *more))


def _swept(disturb: Callable[[Laboratory, subprocess.Popen], str | None]) -> Kind:
    return Kind(lambda lab: disturbed_sweep(lab, disturb))


KINDS: dict[str, Kind] = {
    "a run killed at any moment (SIGKILL)": _killed(signal.SIGKILL),
    "a run interrupted at any moment (SIGINT)": _killed(signal.SIGINT),
    "a run terminated at any moment (SIGTERM)": _killed(signal.SIGTERM),
    "the terminal closed at any moment (SIGHUP)": _killed(signal.SIGHUP),
    "a run of two nodes at once killed": _killed(signal.SIGKILL, "--runner", SIDE_BY_SIDE),
    "a run of two nodes at once interrupted": _killed(signal.SIGINT, "--runner", SIDE_BY_SIDE),
    "two runs in one environment": Kind(beside),
    "a first run killed while it makes mlflow.db": Kind(first_run_killed),
    "a first run interrupted three times as it starts": Kind(first_run_interrupted),
    "two first runs at once": Kind(first_runs_at_once),
    "no file can grow (full disk)": Kind(full_disk),
    "a folder that cannot be written to": Kind(folder_unwritable),
    "mlflow.db damaged": Kind(damaged_database),
    "a table or tensors cut off": Kind(cut_off),
    "an option or a configuration that cannot be": Kind(refused_command),
    "a sweep's driver killed at any moment": _swept(kill_driver),
    "a sweep's worker killed at any moment": _swept(kill_worker),
    "a sweep terminated twice in a row": _swept(terminate_twice),
    "what a sweep listens on": _swept(reached_from_elsewhere),
    "a cluster without a usable worker, or none": Kind(faulty_cluster),
    "a learner's file damaged": Kind(damaged, 100),
    "the newest checkpoint damaged": Kind(damaged_checkpoint, 10),
    "parameters at the edge of sense": Kind(impossible, 100),
}
"""By name."""
