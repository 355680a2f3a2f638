"""The sweep over lengths: those of `architecture` asked further, and what its curves say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.framework.startup import bootstrap_project
from scipy import stats

from benchmarks.length import curves, draw, exact_shares, holds_until, main, means, read, summary
from incontext_linear.config import TaskConfig
from incontext_linear.learner.registry import build_learner
from incontext_linear.predictors import OptimalStep
from incontext_linear.sweeps.project import Project
from incontext_linear.tasks import draw_prompts

PROJECT = Path(__file__).parents[2]
TASK = {"dim": 2, "num_examples": 10}


@pytest.fixture(scope="module")
def project():
    bootstrap_project(PROJECT)
    return Project(PROJECT, "base")


def recipes(project, name, steps):
    """(architecture, seed) → what training depends on."""
    return {
        (v.axes["architecture"], v.seed): (
            v.parameters.task,
            v.parameters.model,
            v.parameters.training,
        )
        for v in project.variants(name, project.sweep(name))
        if v.parameters.training.num_steps == steps
    }


@pytest.mark.slow
def test_its_shorter_trainings_are_those_of_the_sweep_architecture(project):
    known, longer = (recipes(project, name, 1500) for name in ("architecture", "length"))
    assert len(longer) == 5 * 9
    assert {key: longer[key] for key in known} == known
    four_times = recipes(project, "length", 6000)
    assert four_times.keys() == longer.keys()


@pytest.mark.slow
def test_all_but_learned_positions_are_asked_about_four_times_the_length(project):
    for variant in project.variants("length", project.sweep("length")):
        task, model = variant.parameters.task, variant.parameters.model
        asked = variant.parameters.evaluation.over(task)
        assert asked.num_examples == (40 if model.any_length else 10)
        prompts = draw_prompts(asked, 2, 0)
        network = build_learner(task.dim, task.num_examples, model)
        assert network(prompts.xs, prompts.ys).shape == (2, asked.num_examples)


def test_the_known_shares_of_linear_attention_are_those_of_its_optimum_on_drawn_prompts():
    task = TaskConfig(dim=2, num_examples=10)
    xs, ys, _ = draw_prompts(TaskConfig(dim=2, num_examples=40), 40_000, 0)
    errors = (OptimalStep(task)(xs.double(), ys.double()) - ys).square() / 2
    found, spread = errors.mean(0), errors.std(0) / 40_000**0.5
    exact = exact_shares(task, 40)
    assert list(exact.index) == list(range(2, 40))
    apart = (found[2:] - torch.tensor(exact.to_numpy())) / spread[2:]
    assert apart.abs().max() < 4


def made_up(values, architecture="gru", seed=0):
    """Rows of the table: shares from k = 1 on, of a training on 4 examples."""
    seen = np.arange(1, len(values) + 1)
    return pd.DataFrame(
        {
            "examples_seen": seen,
            "architecture": architecture,
            "steps": 10,
            "seed": seed,
            "trained": 4,
            "dim": 2,
            "nearest": "ols",
            "spd_to_ols": values,
        }
    )


@pytest.mark.parametrize(
    ("beyond", "last"),
    [([1, 1, 1], 6), ([2, 2.1, 1], 4), ([3, 1, 1], 3), ([0.5, 0.5, np.nan], 5)],
)
def test_a_learner_holds_until_it_first_is_twice_as_far_off(beyond, last):
    # Nearer or further within the trained length does not matter: k = 3 is what counts.
    assert holds_until(made_up([9.0, 0.1, 1.0, *beyond])) == last


def test_means_and_their_intervals_are_over_seeds():
    values = [0.1, 0.2, 0.4]
    table = pd.concat([made_up([v] * 7, seed=s) for s, v in enumerate(values)])
    found = means(table)
    (row,) = found[found["position"] == 5].to_dict("records")
    mean = np.mean(values)
    assert row["mean"] == pytest.approx(mean)
    # Student's on the log scale, of three trainings and not of their 21 values.
    low = mean * np.exp(stats.t.ppf(0.025, 2) * stats.sem(values) / mean)
    assert row["low"] == pytest.approx(low)
    assert row["seeds"] == 3


def variant(folder, architecture, seed, shares, **task):
    """A variant as a sweep leaves it, with SPD to two predictors."""
    (folder / "08_reporting").mkdir(parents=True)
    record = {
        "axes": {"training.num_steps": 10, "architecture": architecture},
        "seed": seed,
        "status": "done",
        "parameters": {"task": TASK | task, "training": {"num_steps": 10}},
    }
    (folder / "variant.json").write_text(json.dumps(record))
    seen = np.arange(len(shares))
    spd = [
        pd.DataFrame({"predictor": name, "examples_seen": seen, "mean": scale * np.array(shares)})
        for name, scale in (("ols", 2.0), ("zero", 6.0))
    ]
    pd.concat(spd).to_parquet(folder / "08_reporting" / "spd_curves.parquet")


@pytest.mark.slow
def test_a_finished_sweep_becomes_table_summary_and_figure(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        variant(tmp_path / f"gru/{seed}", "gru", seed, [0.1] * 20 + [0.5] * 20)
        variant(tmp_path / f"step/{seed}", "linear_attention", seed, [0.3] * 40)
        variant(tmp_path / f"plain/{seed}", "transformer", seed, [0.2] * 10)
    written = tmp_path / "length.csv", tmp_path / "length.png"
    arguments = ["--table", str(written[0]), "--figure", str(written[1])]
    monkeypatch.setattr("sys.argv", ["length", str(tmp_path), *arguments])
    main()
    assert all(file.stat().st_size for file in written)
    assert "| GRU | 10 | 2 | 10 [10, 10] |" in capsys.readouterr().out
    table = read(written[0])
    assert table.groupby("architecture").size().to_dict() == {
        "gru": 2 * 39,
        "linear_attention": 2 * 39,
        "transformer": 2 * 9,
    }
    of_gru = table[(table["architecture"] == "gru") & (table["examples_seen"] == 39)]
    assert of_gru["spd_to_ols"].tolist() == [0.5, 0.5]  # Var(y) is 2 here
    assert set(table["nearest"]) == {"ols"}
    short = summary(table).set_index("architecture")
    assert list(short.index) == [
        "linear attention, 1 layer",
        "GRU",
        "transformer, learned positions",
    ]
    assert short["holds until k"].tolist() == ["39, 39", "19, 19", "9, 9"]
    assert short["k = 39"].tolist() == ["30 [30, 30]", "50 [50, 50]", "–"]
    assert len(draw(table).axes) == 2


def test_noisy_labels_are_refused(tmp_path):
    variant(tmp_path / "noisy", "gru", 0, [0.1] * 10, noise_std=0.5)
    with pytest.raises(ValueError, match=r"noise_std=0\.5; allowed here: 0"):
        list(curves(tmp_path))


def test_a_sweep_that_has_not_run_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["length", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main()
    assert "kedro sweep run length" in capsys.readouterr().err
