"""Two real processes, over Gloo, train as one does at the same global batch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from incontext_linear.checkpoints import load_learner
from incontext_linear.config import ModelConfig, TaskConfig, TrainingConfig
from incontext_linear.training import train

TASK = TaskConfig(dim=2, num_examples=6)
MODEL = ModelConfig(num_layers=2, num_heads=2, width=16)
TRAINING = TrainingConfig(num_steps=20, batch_size=16, learning_rate=2e-3, log_every=2)

WORKER = """
import json, sys
from pathlib import Path
from incontext_linear.checkpoints import save_learner
from incontext_linear.config import ModelConfig, TaskConfig, TrainingConfig
from incontext_linear.distributed import process_group
from incontext_linear.training import train

task, model, training = (
    kind.model_validate(values)
    for kind, values in zip((TaskConfig, ModelConfig, TrainingConfig), json.loads(sys.argv[1]), strict=True)
)
with process_group("cpu") as rank:
    for optimizer in ("adamw", "muon"):
        learner = train(task, model, training.model_copy(update={"optimizer": optimizer}), 0, "cpu")
        save_learner(Path(sys.argv[2]) / f"{optimizer}_{rank}.safetensors", learner)
"""

# On our kernels, which the CPU interprets.
KERNELS = """
import os, sys
from pathlib import Path
os.environ["TRITON_INTERPRET"] = "1"
import torch
from incontext_linear import branch_kernels
from incontext_linear.config import ModelConfig, TaskConfig, TrainingConfig
from incontext_linear.distributed import process_group
from incontext_linear.fused import FusedBlocks
from incontext_linear.tasks import Prompts, draw_prompts, generator
from incontext_linear.training import TrainingStep
from incontext_linear.transformer import Transformer

def predictions(on_kernels, rank, num_ranks):
    task = TaskConfig(dim=2, num_examples=4)
    model = Transformer(2, 4, ModelConfig(num_layers=3, num_heads=1, width=16))
    step = TrainingStep(model.initialize(generator(0, "weights")), TrainingConfig())
    if on_kernels:
        model.run_blocks = FusedBlocks(model.blocks, step.optimizer.gradients())
    for index in range(3):
        prompts = draw_prompts(task, 4, 0, index)
        step(Prompts(*(tensor[rank::num_ranks] for tensor in prompts)), 1e-2)
    fresh = draw_prompts(task, 4, 1)
    with torch.no_grad():
        return model(fresh.xs, fresh.ys)

branch_kernels.NUM_NORM_SUMS, branch_kernels.NUM_GELU_SUMS = 3, 2  # programs, which are run one by one
with process_group("cpu") as rank:
    together = predictions(True, rank, 2)
torch.testing.assert_close(together, predictions(False, 0, 1), rtol=1e-4, atol=1e-5)
Path(sys.argv[1], f"{rank}.done").touch()
"""


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory) -> Path:
    """A folder with what each of two processes ended with."""
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "worker.py").write_text(WORKER)
    configs = json.dumps([config.model_dump(mode="json") for config in (TASK, MODEL, TRAINING)])
    done = torchrun("worker.py", configs, str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_give_the_losses_of_one(optimizer, trained_by_two):
    alone = train(TASK, MODEL, TRAINING.model_copy(update={"optimizer": optimizer}), 0, "cpu")
    first, second = (load_learner(trained_by_two / f"{optimizer}_{rank}.safetensors") for rank in range(2))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for together, single in zip(first.record["history"], alone.record["history"], strict=True):
        assert together["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert together["spd_to_ols"] == pytest.approx(single["spd_to_ols"], rel=1e-3)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_two_processes_on_our_kernels_predict_in_the_end_as_one_without(tmp_path):
    (tmp_path / "worker.py").write_text(KERNELS)
    done = torchrun("worker.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.done"))) == 2


def test_a_batch_that_cannot_be_shared_is_refused_with_what_is_allowed(monkeypatch):
    for name, answer in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda answer=answer: answer)
    with pytest.raises(ValueError, match=r"batch_size=15 .* 2 processes; allowed are multiples of 2"):
        train(TASK, MODEL, TRAINING.model_copy(update={"batch_size": 15}), 0, "cpu")


def test_the_command_trains_an_environments_learner_and_saves_it_once(tmp_path):
    project = Path(__file__).parents[1]
    for name in ("conf", "pyproject.toml"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "src").mkdir()  # Kedro wants the folder; the package is the installed one
    arguments = ("-m", "incontext_linear.distributed", "--env", "test", "--params", "training.num_steps=4")
    done = torchrun(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    models = tmp_path / "data/test/06_models"
    assert [path.name for path in models.rglob("*.safetensors")] == ["learner.safetensors"]
