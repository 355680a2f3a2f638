"""The training loop: its numbers repeat, its paths agree, and it survives being killed."""

import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner import Learner, Transformer, devices
from incontext_linear.learner.attention import causal_attention
from incontext_linear.learner.transformer import Attention
from incontext_linear.training import Recipe, TrainingDivergedError, TrainingStep, train
from incontext_linear.training.checkpoints import CheckpointStore
from incontext_linear.training.config import TrainingConfig
from incontext_linear.training.kernels import packed_attention
from incontext_linear.training.loop import learning_rate_at, reporting_prefix

TASK = TaskConfig(dim=2, num_examples=6)
MODEL = ModelConfig(num_layers=2, num_heads=2, width=16)
TRAINING = TrainingConfig(
    num_steps=24, batch_size=8, learning_rate=2e-3, log_every=3, checkpoint_every=5
)
FINGERPRINT = Recipe(TASK, MODEL, TRAINING, 0).fingerprint
NAME = Recipe(TASK, MODEL, TRAINING, 0).run_name(torch.device("cpu"))

# A run like those below, in a process of its own, that reports every step it has taken.
KILLED_RUN = Path(__file__).parent / "programs" / "pausing_training.py"


def run(store: CheckpointStore | None = None, seed: int = 0, **changes) -> Learner:
    return train(Recipe(TASK, MODEL, TRAINING.model_copy(update=changes), seed), "cpu", store)


def assert_same(first: Learner, second: Learner) -> None:
    assert first.record == second.record
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums are split over threads, so bit-equality across processes needs their number fixed."""
    with devices.one_thread():
        yield


@pytest.fixture(scope="module")
def unbroken(one_thread) -> Learner:
    return run()


def losses(**changes) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in run(**changes).record["history"]])


@pytest.mark.parametrize(("decay", "a_third_on"), [("cosine", 0.75), ("linear", 2 / 3)])
def test_learning_rate_rises_linearly_then_falls_to_zero(decay, a_third_on):
    training = TrainingConfig(num_steps=100, learning_rate=1.0, warmup_fraction=0.1, decay=decay)
    rates = [learning_rate_at(step, training) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[40] == pytest.approx(a_third_on)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.02
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_no_warmup_starts_at_the_full_rate():
    training = TrainingConfig(num_steps=10, learning_rate=1.0, warmup_fraction=0.0)
    assert learning_rate_at(0, training) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_brings_the_loss_down(optimizer):
    history = run(optimizer=optimizer, num_steps=150, batch_size=32).record["history"]
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]


def test_the_same_seed_gives_the_same_learner_and_another_seed_another(unbroken):
    assert_same(run(), unbroken)
    assert run(seed=1).record["history"] != unbroken.record["history"]


def test_the_record_holds_every_report(unbroken):
    history = unbroken.record["history"]
    assert [row["step"] for row in history] == list(range(3, 25, 3))
    assert set(history[0]) == {"step", "loss", "spd_to_ols", "learning_rate"}
    assert unbroken.record["training"] == TRAINING.model_dump(mode="json")


def test_progress_is_reported_at_twice_as_many_examples_as_dimensions_or_the_most_there_are():
    assert reporting_prefix(TaskConfig(dim=8, num_examples=40)) == 16
    assert reporting_prefix(TaskConfig(dim=8, num_examples=10)) == 9


def test_the_fingerprint_ignores_what_the_result_does_not_depend_on():
    same = TRAINING.model_copy(
        update={"checkpoint_every": 7, "compile": False, "own_kernels": False, "cuda_graph": False}
    )
    other = TRAINING.model_copy(update={"optimizer": "muon"})
    assert Recipe(TASK, MODEL, same, 0).fingerprint == FINGERPRINT
    assert Recipe(TASK, MODEL, other, 0).fingerprint != FINGERPRINT
    assert Recipe(TASK, MODEL, TRAINING, 1).fingerprint != FINGERPRINT


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bfloat16_matrices_with_float32_masters_follow_the_float32_losses(optimizer):
    plain = losses(optimizer=optimizer, precision="float32")
    torch.testing.assert_close(
        losses(optimizer=optimizer, precision="bfloat16"), plain, rtol=0.02, atol=0
    )


COMPARE = Path(__file__).parent / "programs" / "compiled_training.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
        ),
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_compiled_and_captured_steps_give_the_losses_of_plain_ones(device):
    # In a process of its own: the compiler cannot see through the shape checks that the tests put
    # in.
    subprocess.run([sys.executable, str(COMPARE), device], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step 4", "step 5", "step 13", "writing 1"])
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(moment, tmp_path, unbroken):
    kill_at(moment, tmp_path)
    store = CheckpointStore(tmp_path)
    # At step 5 the checkpoint is due but not yet begun; while the second is written, the first is
    # whole.
    assert (
        len(store.paths(NAME)) == {"step 4": 0, "step 5": 0, "step 13": 2, "writing 1": 1}[moment]
    )
    assert_same(run(store), unbroken)


def kill_at(moment: str, folder: Path) -> None:
    configs = [config.model_dump_json() for config in (TASK, MODEL, TRAINING)]
    command = [sys.executable, str(KILLED_RUN), str(folder), moment, *configs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_resuming_needs_no_more_than_the_last_steps(tmp_path, unbroken):
    store, steps = CheckpointStore(tmp_path), []
    run(store)
    train(Recipe(TASK, MODEL, TRAINING, 0), "cpu", store, lambda report: steps.append(report.step))
    assert steps == [21, 24]  # from the checkpoint of step 20


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(tmp_path, unbroken, caplog):
    store = CheckpointStore(tmp_path)
    run(store)
    newest = store.paths(NAME)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        resumed = run(store)
    assert str(newest) in caplog.text
    assert_same(resumed, unbroken)


@pytest.mark.slow
def test_with_every_checkpoint_damaged_training_starts_anew(tmp_path, unbroken):
    store = CheckpointStore(tmp_path)
    run(store)
    for path in store.paths(NAME):
        path.write_bytes(b"")
    assert_same(run(store), unbroken)


def test_a_half_written_file_does_no_harm(tmp_path, unbroken):
    store = CheckpointStore(tmp_path)
    run(store)
    (tmp_path / NAME / ".step_000000020.safetensors.123.tmp").write_bytes(b"half")
    assert_same(run(store), unbroken)


def test_divergence_names_the_step_the_rate_and_the_last_good_checkpoint(tmp_path):
    changes = {
        "learning_rate": 1e4,
        "gradient_clip": 1e9,
        "warmup_fraction": 1.0,
        "checkpoint_every": 1,
    }
    training = TRAINING.model_copy(update=changes)
    with pytest.raises(
        TrainingDivergedError, match=r"step \d+ of 24.*learning rate .*last good"
    ) as caught:
        train(Recipe(TASK, MODEL, training, 0), "cpu", CheckpointStore(tmp_path))
    kept = CheckpointStore(tmp_path).paths(
        Recipe(TASK, MODEL, training, 0).run_name(torch.device("cpu"))
    )
    assert str(kept[-1]) in str(caught.value)


def test_divergence_without_checkpoints_says_so():
    with pytest.raises(TrainingDivergedError, match="no checkpoint had been saved"):
        run(learning_rate=1e4, gradient_clip=1e9)


def test_the_blocks_attend_by_our_kernels_only_where_these_are_asked_for():
    model = Transformer(2, 6, MODEL)
    TrainingStep(model, TRAINING.model_copy(update={"own_kernels": False}))
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    assert all(layer.mix is causal_attention for layer in layers)
    packed_attention.install(model)
    assert not any(layer.mix is causal_attention for layer in layers)


def test_runs_that_draw_or_compute_otherwise_do_not_share_checkpoints():
    recipe = Recipe(TASK, MODEL, TRAINING, 0)
    lower = Recipe(TASK, MODEL, TRAINING.model_copy(update={"precision": "bfloat16"}), 0)
    names = [recipe.run_name(torch.device(device)) for device in ("cpu", "cuda")]
    names.append(lower.run_name(torch.device("cpu")))
    assert len(set(names)) == 3
    assert names[0].startswith(recipe.fingerprint)
