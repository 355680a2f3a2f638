"""Snapshots along training: what the learner was at that step, also after a kill and a resume."""

from pathlib import Path

import pytest
import torch

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.saved import Learner
from incontext_linear.training import (
    CheckpointStore,
    Progress,
    Recipe,
    SnapshotStore,
    TrainingConfig,
    TrainingRun,
    log_spaced_steps,
    train,
)

TASK = TaskConfig(dim=2, num_examples=4)
MODEL = ModelConfig(num_layers=1, num_heads=2, width=8)
TRAINING = TrainingConfig(num_steps=12, batch_size=4, log_every=2, checkpoint_every=5)
RECIPE = Recipe(TASK, MODEL, TRAINING, 0)
NAME = RECIPE.run_name(torch.device("cpu"))
STEPS = (0, 1, 4, 7, 12)


class KilledError(Exception):
    """Stands for a kill."""


def weights(store: SnapshotStore) -> dict[int, dict[str, torch.Tensor]]:
    return {step: learner.model.state_dict() for step, learner in store.load(NAME)}


def kill_at(step: int):
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KilledError

    return on_progress


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for step, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second[step][name]), (step, name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> SnapshotStore:
    store = SnapshotStore(tmp_path_factory.mktemp("unbroken"), STEPS)
    train(RECIPE, "cpu", snapshots=store)
    return store


def test_steps_begin_untrained_and_are_spaced_by_their_logarithm():
    steps = log_spaced_steps(1000, 4)
    assert steps == (0, 1, 10, 100, 1000)
    assert log_spaced_steps(3, 20) == (0, 1, 2, 3)  # each step once
    with pytest.raises(ValueError, match="count=1 snapshots; allowed: at least 2"):
        log_spaced_steps(10, 1)


def test_a_snapshot_is_the_learner_after_so_many_steps(unbroken):
    run = TrainingRun(RECIPE, "cpu")
    run.start(None)
    expected = {}
    for step in range(TRAINING.num_steps + 1):
        if step in STEPS:
            expected[step] = run.learner().model.state_dict()
        if step < TRAINING.num_steps:
            run.advance()
    assert_equal(weights(unbroken), expected)
    assert [learner.record["step"] for _, learner in unbroken.load(NAME)] == list(STEPS)


def test_snapshots_change_nothing_of_the_training(unbroken):
    *_, (_, last) = unbroken.load(NAME)
    plain = train(RECIPE, "cpu")
    assert isinstance(last, Learner)
    assert last.record == plain.record
    assert_equal({0: last.model.state_dict()}, {0: plain.model.state_dict()})


@pytest.mark.parametrize("lost", [None, 4, 0], ids=["nothing", "a snapshot", "the first one"])
def test_a_killed_run_goes_on_to_the_same_snapshots(tmp_path: Path, unbroken, lost: int | None):
    store = SnapshotStore(tmp_path / "snapshots", STEPS)
    checkpoints = CheckpointStore(tmp_path / "checkpoints")
    with pytest.raises(KilledError):
        train(RECIPE, "cpu", checkpoints, kill_at(8), store)
    assert store.has_until(NAME, 7)
    assert not store.has_until(NAME, 12)
    if lost is not None:  # then the checkpoint at step 5 must not be gone on from
        next(store.directory.rglob(f"step_{lost:09d}.safetensors")).unlink()
    train(RECIPE, "cpu", checkpoints, snapshots=store)
    assert store.has_all(NAME, STEPS)
    assert_equal(weights(store), weights(unbroken))


def test_a_damaged_snapshot_does_not_count(tmp_path: Path, caplog):
    store = SnapshotStore(tmp_path, (0,))
    run = TrainingRun(RECIPE, "cpu")
    run.start(None)
    path = store.keep(NAME, run.learner())
    assert store.has_all(NAME, (0,))
    path.write_bytes(path.read_bytes()[:-5])
    assert not store.has_all(NAME, (0,))
    assert "cannot be used and is made again" in caplog.text
