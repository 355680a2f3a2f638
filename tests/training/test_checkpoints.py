"""Weights on disk: written whole or not at all, and never taken for something they are not."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from incontext_linear import files
from incontext_linear.config import ModelConfig, TaskConfig, resolve_device
from incontext_linear.files import UnreadableFileError, read_tensors, write_tensors
from incontext_linear.learner.saved import Learner, load_learner, save_learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import draw_prompts, generator
from incontext_linear.training.checkpoints import Checkpoint, CheckpointStore

TASK = TaskConfig(dim=2, num_examples=5)
MODEL = ModelConfig(num_layers=1, num_heads=2, width=8)
TENSORS = {"first": torch.arange(6.0).view(2, 3), "second": torch.tensor(1.0)}


def make_learner() -> Learner:
    model = Transformer(TASK.dim, TASK.num_examples, MODEL).initialize(
        generator(0, "initial weights")
    )
    return Learner(model.eval(), TASK, {"step": 3, "history": [{"step": 3, "loss": 0.5}]})


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": torch.full((4,), float(step))}, {"history": []})


def test_tensors_and_their_description_come_back(tmp_path):
    path = tmp_path / "new folder" / "tensors.safetensors"
    write_tensors(path, TENSORS, {"kind": "test"})
    tensors, description = read_tensors(path)
    assert description == {"kind": "test"}
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)


def test_identical_content_leaves_the_file_untouched(tmp_path):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {"kind": "test"})
    os.utime(path, ns=(1, 1))
    write_tensors(path, TENSORS, {"kind": "test"})
    assert path.stat().st_mtime_ns == 1
    write_tensors(path, TENSORS, {"kind": "best"})  # as long as before
    assert path.stat().st_mtime_ns != 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {"kind": "old"})

    def disk_full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"No space left on device.*tensors\.safetensors"):
        write_tensors(path, TENSORS, {"kind": "new"})
    assert read_tensors(path)[1] == {"kind": "old"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_a_truncated_file_is_named(tmp_path, length):
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, TENSORS, {"kind": "test"})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UnreadableFileError, match=r"tensors\.safetensors is truncated"):
        read_tensors(path)


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(UnreadableFileError, match="not a weights file of this project"):
        read_tensors(path)


def test_a_learner_comes_back_with_its_record_and_predicts_the_same(tmp_path):
    learner = make_learner()
    save_learner(tmp_path / "learner.safetensors", learner)
    loaded = load_learner(tmp_path / "learner.safetensors", expected=(TASK, MODEL))
    prompts = draw_prompts(TASK, 4, seed=0)
    assert loaded.record == learner.record
    assert loaded.task == TASK
    assert not loaded.model.training
    assert torch.equal(loaded.model(prompts.xs, prompts.ys), learner.model(prompts.xs, prompts.ys))


@pytest.mark.parametrize(
    ("task", "model", "named"),
    [
        (TASK.model_copy(update={"dim": 3}), MODEL, "dim=3"),
        (TASK.model_copy(update={"num_examples": 9}), MODEL, "num_examples=9"),
        (TASK, MODEL.model_copy(update={"width": 16}), "width=16"),
        (TASK, MODEL.model_copy(update={"num_layers": 2}), "num_layers=2"),
    ],
)
def test_a_learner_of_another_shape_is_refused_and_both_shapes_are_named(
    tmp_path, task, model, named
):
    path = tmp_path / "learner.safetensors"
    save_learner(path, make_learner())
    with pytest.raises(ValueError, match=named) as caught:
        load_learner(path, expected=(task, model))
    assert make_learner().shape in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_store_keeps_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 100):
        store.save("run", make_checkpoint(step))
    assert [path.name for path in store.paths("run")] == [
        "step_000000010.safetensors",
        "step_000000100.safetensors",
    ]
    latest = store.latest("run")
    assert latest is not None
    assert latest.step == 100


def test_runs_do_not_see_each_other(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save("one", make_checkpoint(5))
    assert store.latest("other") is None
    store.discard("other")
    latest = store.latest("one")
    assert latest is not None
    assert latest.step == 5


def test_discarding_leaves_no_folder_behind(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save("run", make_checkpoint(5))
    store.discard("run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_asking_for_a_missing_gpu_says_what_is_allowed():
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="allowed: auto, cpu"):
        resolve_device("cuda")
