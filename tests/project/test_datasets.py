"""What a failed write leaves behind: the old file, and nothing else."""

import inspect
import pickle

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets_experimental.safetensors import SafetensorsDataset
from matplotlib.figure import Figure

from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.datasets import (
    AtomicFigureDataset,
    AtomicParquetDataset,
    AtomicSafetensorsDataset,
    CheckpointsDataset,
    CurvesDataset,
    LearnerDataset,
    PredictionsDataset,
    SavedPredictions,
)
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.tasks import generator


def write_a_part_and_fail(self, data):
    with open(self._filepath, "wb") as file:
        file.write(b"half")
    raise OSError("No space left on device")


@pytest.mark.parametrize(
    ("kind", "library", "old", "new"),
    [
        (
            AtomicParquetDataset,
            ParquetDataset,
            pd.DataFrame({"a": [1]}),
            pd.DataFrame({"a": [2, 3]}),
        ),
        (AtomicSafetensorsDataset, SafetensorsDataset, {"a": torch.ones(2)}, {"a": torch.zeros(3)}),
    ],
)
def test_a_write_that_fails_half_way_leaves_the_old_file(
    tmp_path, monkeypatch, kind, library, old, new
):
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
    (tmp_path / "folder" / "other").touch()
    assert (tmp_path / "folder" / "file").stat().st_mode == (
        tmp_path / "folder" / "other"
    ).stat().st_mode


def test_checkpoints_are_not_saved_as_a_whole(tmp_path):
    with pytest.raises(DatasetError, match="written by training itself"):
        CheckpointsDataset(str(tmp_path)).save(object())


def learner(seed):
    task, model = TaskConfig(dim=2, num_examples=3), ModelConfig(num_layers=1, num_heads=1, width=4)
    return Learner(
        Transformer(2, 3, model).initialize(generator(seed, "model")), task, {"seed": seed}
    )


def test_the_learner_that_ships_is_read_until_one_is_saved_and_never_written(tmp_path, caplog):
    path = tmp_path / "shipped.safetensors"
    LearnerDataset(str(path)).save(learner(0))
    shipped = path.read_bytes()
    dataset = LearnerDataset(str(tmp_path / "own.safetensors"), {"filepath": str(path)})
    assert dataset.ships
    assert not dataset.exists()  # else `kedro run --only-missing-outputs` would leave training out
    assert [dataset.load().record["seed"] for _ in range(2)] == [0, 0]
    assert caplog.text.count("no learner was trained here yet") == 1
    dataset.save(learner(1))
    assert dataset.load().record["seed"] == 1
    assert path.read_bytes() == shipped


def test_where_no_learner_ships_there_is_none_until_one_is_saved(tmp_path):
    own, absent = (str(tmp_path / f"{name}.safetensors") for name in ("own", "absent"))
    for dataset in (
        LearnerDataset(own, {"filepath": absent}),
        LearnerDataset(own, {"filepath": None}),
    ):
        assert not dataset.ships
        assert not dataset.exists()
        with pytest.raises(DatasetError, match=r"own\.safetensors"):
            dataset.load()


def figure_with_a_bar(layout):
    figure = Figure(layout=layout)
    image = figure.subplots().imshow([[0, 1], [2, 3]])
    figure.colorbar(image, label="a label that needs room")
    return figure


@pytest.mark.parametrize("layout", ["constrained", None])
def test_a_figure_is_written_as_matplotlib_writes_it_and_left_as_it_was(tmp_path, layout):
    figure = figure_with_a_bar(layout)
    engine = figure.get_layout_engine()
    dataset = AtomicFigureDataset(filepath=str(tmp_path / "ours.png"), save_args={"dpi": 70})
    dataset.save(figure)
    assert (figure.get_layout_engine(), figure.dpi) == (engine, 100)
    # Of a figure of its own: a second layout begins where the first one ended.
    figure_with_a_bar(layout).savefig(tmp_path / "theirs.png", dpi=70)
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


def test_kedro_viz_shows_a_table_of_curves_as_an_interactive_chart(tmp_path):
    table = pd.DataFrame(
        {
            "predictor": ["ols"] * 3 + ["ridge_0.1"] * 3,
            "examples_seen": [0, 1, 2] * 2,
            "mean": [1.0, 0.5, 0.2, 1.0, 0.6, 0.4],
            "low": 0.1,
            "high": 1.0,
        }
    )
    axes = {"x": "examples_seen", "by": "predictor", "log_y": True}
    words = {"title": "SPD", "xlabel": "k", "ylabel": "SPD"}
    dataset = CurvesDataset(str(tmp_path / "spd_curves.parquet"), axes | words)
    dataset.save(table)
    shown = dataset.preview()
    curves = {trace["name"]: trace for trace in shown["data"] if trace.get("name")}
    assert list(curves) == ["least squares", "ridge, λ = 0.1"]
    assert inspect.signature(dataset.preview).return_annotation.__name__ == "PlotlyPreview"


def test_predictions_are_read_one_by_one_in_their_order_also_in_another_process(tmp_path):
    dataset = PredictionsDataset(filepath=str(tmp_path / "predictions.parquet"))
    made: dict[str, torch.Tensor] = {
        n: torch.randn(50, 4).double() for n in ("zebra", "ant", "a/b")
    }
    dataset.save(made)
    found = pickle.loads(pickle.dumps(dataset.load()))
    assert isinstance(found, SavedPredictions)
    assert len(pickle.dumps(found)) < 1000  # a worker reads what it needs
    assert list(found) == list(made)
    assert "dog" not in found
    with pytest.raises(KeyError):
        found["dog"]
    assert all(torch.equal(found[name], values) for name, values in made.items())
