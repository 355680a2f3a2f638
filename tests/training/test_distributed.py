"""Two real processes, over Gloo, train as one does at the same global batch."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from kedro.io import DataCatalog
from safetensors.torch import load_file

from incontext_linear import distributed
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.saved import load_learner
from incontext_linear.parameters import Parameters
from incontext_linear.training import Recipe, train
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.loop import TrainingDivergedError, TrainingRun

TASK = TaskConfig(dim=2, num_examples=6)
MODEL = ModelConfig(num_layers=2, num_heads=2, width=16)
TRAINING = TrainingConfig(num_steps=20, batch_size=16, learning_rate=2e-3, log_every=2)

WORKER = Path(__file__).parent / "programs" / "train_in_processes.py"


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory) -> Path:
    """A folder with what each of two processes ended with."""
    folder = tmp_path_factory.mktemp("two_processes")
    configs = json.dumps([config.model_dump(mode="json") for config in (TASK, MODEL, TRAINING)])
    done = torchrun(str(WORKER), configs, str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_give_the_losses_of_one(optimizer, trained_by_two):
    alone = train(
        Recipe(TASK, MODEL, TRAINING.model_copy(update={"optimizer": optimizer}), 0), "cpu"
    )
    first, second = (
        load_learner(trained_by_two / f"{optimizer}_{rank}.safetensors") for rank in range(2)
    )
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for together, single in zip(first.record["history"], alone.record["history"], strict=True):
        assert together["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert together["spd_to_ols"] == pytest.approx(single["spd_to_ols"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_two_processes_on_our_kernels_predict_in_the_end_as_one_without(trained_by_two):
    files = sorted(trained_by_two.glob("on_kernels_*.safetensors"))
    assert len(files) == 2
    for file in files:
        predicted = load_file(file)
        assert predicted["together"].std() > 0.01
        torch.testing.assert_close(predicted["together"], predicted["alone"], rtol=1e-4, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused_with_what_is_allowed(monkeypatch):
    for name, answer in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda answer=answer: answer)
    with pytest.raises(
        ValueError, match=r"batch_size=15 .* 2 processes; allowed are multiples of 2"
    ):
        train(Recipe(TASK, MODEL, TRAINING.model_copy(update={"batch_size": 15}), 0), "cpu")


@pytest.mark.parametrize("theirs", [float("nan"), float("inf")])
def test_where_another_processs_loss_diverges_this_one_stops_too(theirs, monkeypatch):
    """Both see the mean over all, so none waits in the next exchange for one that has left."""
    run = TrainingRun(Recipe(TASK, MODEL, TRAINING, 0), "cpu")
    run.start(None)
    run.num_ranks = 2
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda losses: losses.add_(theirs))
    run.advance()
    with pytest.raises(TrainingDivergedError, match="diverged at step 0 of 20"):
        run.advance()


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_opens_a_bar(rank, monkeypatch):
    opened, recipe = [], Recipe(TASK, MODEL, TRAINING, 0)
    monkeypatch.setattr(distributed, "process_group", lambda device: nullcontext(rank))
    monkeypatch.setattr(distributed, "train", lambda *arguments: None)

    def bar(num_steps):
        opened.append(num_steps)
        return nullcontext()

    monkeypatch.setattr(distributed, "training_progress", bar)
    parameters = MagicMock(spec=Parameters, recipe=recipe, device="cpu")
    distributed._train(parameters, MagicMock(spec=DataCatalog))
    assert opened == ([TRAINING.num_steps] if rank == 0 else [])


@pytest.mark.slow
def test_the_command_trains_an_environments_learner_and_saves_it_once(tmp_path):
    project = Path(__file__).parents[2]
    for name in ("conf", "pyproject.toml"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "src").mkdir()  # Kedro wants the folder; the package is the installed one
    arguments = (
        "-m",
        "incontext_linear.distributed",
        "--env",
        "test",
        "--params",
        "training.num_steps=4",
    )
    done = torchrun(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    models = tmp_path / "data/test/06_models"
    assert [path.name for path in models.rglob("*.safetensors")] == ["learner.safetensors"]
