"""What a failed write leaves behind: the old file, and nothing else."""

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets_experimental.safetensors import SafetensorsDataset

from incontext_linear.datasets import AtomicParquetDataset, AtomicSafetensorsDataset, CheckpointsDataset


def write_a_part_and_fail(self, data):
    with open(self._filepath, "wb") as file:
        file.write(b"half")
    raise OSError("No space left on device")


@pytest.mark.parametrize(
    ("kind", "library", "old", "new"),
    [
        (AtomicParquetDataset, ParquetDataset, pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2, 3]})),
        (AtomicSafetensorsDataset, SafetensorsDataset, {"a": torch.ones(2)}, {"a": torch.zeros(3)}),
    ],
)
def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch, kind, library, old, new):
    dataset = kind(filepath=str(tmp_path / "folder" / "file"))
    dataset.save(old)
    before = (tmp_path / "folder" / "file").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(library, "save", write_a_part_and_fail)
        with pytest.raises((DatasetError, OSError), match="No space left"):
            dataset.save(new)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]
    assert (tmp_path / "folder" / "file").read_bytes() == before
    dataset.save(new)
    assert len(dataset.load()["a"]) == len(new["a"])


def test_checkpoints_are_not_saved_as_a_whole(tmp_path):
    with pytest.raises(DatasetError, match="written by training itself"):
        CheckpointsDataset(str(tmp_path)).save(object())
