"""Learners and checkpoints with bits flipped, ends cut off and headers that lie."""

import dataclasses
import random

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError

from incontext_linear import datasets
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.files import UnreadableFileError, read_tensors, write_tensors
from incontext_linear.hooks import explain_error
from incontext_linear.learner.saved import Learner, load_learner, save_learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.training import Recipe, train
from incontext_linear.training.checkpoints import Checkpoint, CheckpointStore
from incontext_linear.training.config import TrainingConfig

pytestmark = pytest.mark.slow

TASK, MODEL = TaskConfig(dim=2, num_examples=4), ModelConfig(num_layers=1, num_heads=2, width=8)
TRAINING = TrainingConfig(num_steps=12, batch_size=4, log_every=3, checkpoint_every=4)
RECIPE = Recipe(TASK, MODEL, TRAINING, seed=0)


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    return Learner(Transformer(2, 4, MODEL), TASK, {"seed": 0, "history": []})


@pytest.fixture
def path(learner, tmp_path):
    path = tmp_path / "learner.safetensors"
    save_learner(path, learner)
    return path


def refused(path):
    """What a file that should not be read is answered by: always one line that names it."""
    with pytest.raises(UnreadableFileError) as refusal:
        load_learner(path)
    says = str(refusal.value)
    assert says.startswith(str(path))
    assert "\n" not in says
    return says


def damages(content, number, seed):
    """Copies with one bit flipped, half of them where the header is, each with its place."""
    rng, header = random.Random(seed), 8 + int.from_bytes(content[:8], "little")
    for trial in range(number):
        place = rng.randrange(header if trial % 2 else len(content))
        bit = 1 << rng.randrange(8)
        yield place, content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def test_no_flipped_bit_goes_unseen(path, learner):
    content = path.read_bytes()
    for _, damaged in damages(content, 200, seed=0):
        path.write_bytes(damaged)
        refused(path)
    path.write_bytes(content)
    found = load_learner(path)
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)


def test_no_end_that_was_cut_off_goes_unseen(path):
    content = path.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path)


def rewrite(path, change_tensors=lambda tensors: None, **description):
    """Write with a checksum that holds."""
    tensors, described = read_tensors(path)
    change_tensors(tensors)
    write_tensors(path, tensors, described | description)


def test_weights_that_are_not_numbers_are_found_before_anything_uses_them(path):
    def spoil(tensors):
        next(iter(tensors.values())).view(-1)[0] = float("nan")

    rewrite(path, spoil)
    assert "values that are not finite" in refused(path)


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"model": {"num_layers": 1, "num_heads": 2, "width": 10**8}}, "has shape"),
        ({"model": {"num_layers": 2, "num_heads": 2, "width": 8}}, "missing or too many"),
        ({"model": {"num_layers": 1, "num_heads": 3, "width": 8}}, "does not divide"),
        ({"task": None}, "validation error for TaskConfig"),
        ({"record": "none"}, "its training record is 'none'"),
    ],
)
def test_a_header_that_says_something_else_than_the_weights_is_refused(path, description, says):
    rewrite(path, **description)
    content = path.read_bytes()
    with pytest.raises(UnreadableFileError) as refusal:
        load_learner(path)
    assert says in str(refusal.value.__cause__)
    assert path.read_bytes() == content
    refused(path)


def test_a_learner_says_which_recipe_trained_it_and_is_refused_if_it_is_another(tmp_path):
    path = tmp_path / "learner.safetensors"
    save_learner(path, train(RECIPE, "cpu"))
    _, description = read_tensors(path)
    assert description["fingerprint"] == RECIPE.fingerprint
    assert load_learner(path).record == description["record"]
    rewrite(path, record=description["record"] | {"seed": 1})
    assert "its fingerprint is not that of the recipe" in refused(path)
    rewrite(path, fingerprint=dataclasses.replace(RECIPE, seed=1).fingerprint)
    assert load_learner(path).record["seed"] == 1
    rewrite(path, record={})
    assert "KeyError: 'training'" in refused(path)


def test_a_learner_from_before_there_were_checksums_is_still_read(path, learner, monkeypatch):
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["incontext_linear"])
    del header["checksum"], header["format"]
    metadata = {"incontext_linear": json.dumps(header)}
    save_file(learner.model.state_dict(), path, metadata=metadata)
    assert load_learner(path).record == learner.record
    header["format"] = 2  # which promises one
    save_file(learner.model.state_dict(), path, metadata={"incontext_linear": json.dumps(header)})
    assert "checksum" in refused(path)


def stopped(store, at):
    """The checkpoints of a training that was stopped."""

    class StopError(Exception):
        pass

    def stop(progress):
        if progress.step >= at:
            raise StopError

    with pytest.raises(StopError):
        train(RECIPE, "cpu", store, stop)
    (folder,) = store.directory.iterdir()
    return folder.name


def weights(learner):
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


@pytest.fixture(scope="module")
def unbroken():
    return weights(train(RECIPE, "cpu"))


@pytest.mark.parametrize("trial", range(6))
def test_a_damaged_checkpoint_is_passed_over_and_training_gives_the_same(
    tmp_path, unbroken, caplog, trial
):
    store = CheckpointStore(tmp_path / "checkpoints")
    run = stopped(store, at=9)
    newest = store.paths(run)[-1]
    content = newest.read_bytes()
    damaged = [content[: len(content) * trial // 4] for _ in range(trial < 4)]
    damaged += [content for _, content in damages(content, 12, seed=trial)]
    newest.write_bytes(damaged[0])
    with caplog.at_level("INFO"):
        learner = train(RECIPE, "cpu", store)
    assert f"cannot be used: {newest} is" in caplog.text
    assert "goes on from the checkpoint at step 4" in caplog.text
    assert "learning_rate" not in caplog.text
    assert same(weights(learner), unbroken)


def test_a_checkpoint_of_another_run_or_that_does_not_fit_is_passed_over(
    tmp_path, unbroken, caplog
):
    store = CheckpointStore(tmp_path / "checkpoints")
    run = stopped(store, at=9)
    old, new = store.paths(run)
    tensors, description = read_tensors(new)
    write_tensors(new, tensors, description | {"run": "another"})
    write_tensors(old, {"weight": torch.zeros(1)}, description | {"step": 4})
    assert store.latest(run) == Checkpoint(4, {"weight": torch.zeros(1)}, description | {"step": 4})
    learner = train(RECIPE, "cpu", store)
    assert f"{new} is of another run or step" in caplog.text
    assert "checkpoint at step 4, which does not fit" in caplog.text
    assert same(weights(learner), unbroken)


def test_a_checkpoint_under_another_steps_name_is_passed_over(tmp_path, caplog):
    store = CheckpointStore(tmp_path / "checkpoints")
    run = stopped(store, at=9)
    _, new = store.paths(run)
    new.rename(new.with_name("step_000000011.safetensors"))
    assert store.latest(run).step == 4
    assert "step_000000011.safetensors is of another run or step" in caplog.text
    assert dataclasses.is_dataclass(store.latest(run))


NUMBERS = np.random.default_rng(0).random(500)
TENSORS = {"a": torch.from_numpy(NUMBERS).view(100, 5)}
DATA = {
    "AtomicParquetDataset": pd.DataFrame({"a": NUMBERS}),
    "AtomicCSVDataset": pd.DataFrame({"a": NUMBERS}),
    "PredictionsDataset": TENSORS,
    "AtomicSafetensorsDataset": TENSORS,
}


@pytest.mark.parametrize("kind", DATA)
def test_tables_and_tensors_that_lost_their_end_are_named_in_one_line(tmp_path, kind):
    path = tmp_path / "file"
    dataset = getattr(datasets, kind)(filepath=str(path))
    dataset.save(DATA[kind])
    content = path.read_bytes()
    lengths = [0] if "CSV" in kind else [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]
    for length in lengths:  # of a CSV each line is a table
        path.write_bytes(content[:length])
        with pytest.raises(DatasetError) as error:
            dataset.load()
        says = explain_error(error.value)
        assert says, error.value
        assert says.startswith(f"{path} is damaged (")
        assert "\n" not in says
    path.write_bytes(content)
    dataset.load()


@pytest.mark.parametrize("kind", DATA)
def test_a_table_that_is_not_there_is_not_called_damaged(tmp_path, kind):
    dataset = getattr(datasets, kind)(filepath=str(tmp_path / "file"))
    with pytest.raises(DatasetError) as error:
        dataset.load()
    assert explain_error(error.value) is None
