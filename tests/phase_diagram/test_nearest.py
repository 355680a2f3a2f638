"""The statistics behind a phase diagram, on made-up differences with planted answers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.made_up_sweep import crossing, grid, measure, rough
from support.synthetic_sweep import BASELINES, RATIOS, write_depth_sweep, write_noise_sweep

from incontext_linear.config import TaskConfig
from incontext_linear.parameters import LEARNER
from incontext_linear.phase_diagram.nearest import (
    divergence_table,
    heat_map_table,
    nearest,
    nearest_table,
)
from incontext_linear.phase_diagram.resampling import (
    EACH,
    LARGEST,
    MEAN,
    Differences,
    resample_sweep,
    signed_differences,
)
from incontext_linear.phase_diagram.transitions import transition_table
from incontext_linear.phase_diagram.variants import list_variants, ridge_penalties
from incontext_linear.statistics import nested_weights
from incontext_linear.tables import tidy_predictions

# What is resampled --------------------------------------------------------------------------------


def test_means_and_resampled_means_agree_with_plain_loops():
    make = rough(lambda value: np.array([0.1, 0.2, 0.3]) * value)
    resamples = measure((1, 2), make, num_resamples=15, points=(1.0,), examples_seen=(1, 3))
    for v, value in enumerate((1, 2)):
        squares = [make(value, seed)[:, 1:] ** 2 for seed in (0, 1)]
        weights = [nested_weights((0, 1), i, 30, 15, 0) for i in (0, 1)]
        observed = (squares[0].mean(0) + squares[1].mean(0)) / 2
        assert np.allclose(resamples.observed[v, :3], observed)
        for r in range(15):
            drawn = sum(
                w[r, i] * s[i] for w, s in zip(weights, squares, strict=True) for i in range(30)
            )
            assert np.allclose(resamples.resampled[r, v, :3], drawn)
            assert np.allclose(resamples.resampled[r, v, 3], (drawn[0] + drawn[2]) / 2)
            assert np.allclose(resamples.resampled[r, v, 4], drawn[1])
    assert resamples.scopes == (EACH, EACH, EACH, MEAN, "k = d")
    assert resamples.examples_seen.tolist() == [[1, 2, 3, -1, 2]] * 2


def test_a_point_given_twice_is_one():
    make = rough(lambda value: np.array([0.1, 0.2, 0.3]))
    resamples = measure((1, 2), make, num_resamples=2, points=(1.0, 1.5, 1.0))
    assert resamples.scopes[-3:] == (MEAN, "k = d", "k = 1.5d")


def test_with_one_seed_only_prompts_are_resampled():
    weights = nested_weights((4,), 0, 50, 300, 0)
    assert weights.sum(1) == pytest.approx(np.ones(300))
    assert weights.std() > 0


def test_values_with_the_same_seeds_share_all_draws():
    make = rough(lambda value: np.array([0.1, 0.2]))
    same = lambda value, seed: make(1.0, seed)  # noqa: E731
    resamples = measure((1, 2), same, names=("a", "b"))
    assert np.array_equal(resamples.resampled[:, 0], resamples.resampled[:, 1])


def test_intervals_cover_the_mean_of_all_seeds_and_prompts_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    learners = rng.gamma(4, 0.25, size=(20, 1, 60, 1))  # of mean 1; a column is a trial of its own
    prompts = rng.exponential(size=(20, 40, 60, 1))
    differences = np.sqrt(np.concatenate([np.zeros((20, 40, 1, 1)), learners * prompts], axis=2))
    make = lambda value, seed: differences[seed]  # noqa: E731
    resamples = measure((1,), make, seeds=range(20), names=("a",), num_resamples=400)
    table = divergence_table(resamples, 0.9).query("scope == @EACH")
    coverage = ((table["low"] < 1) & (table["high"] > 1)).mean()
    assert 0.8 < coverage < 0.97


def test_intervals_that_ignored_the_seeds_would_be_far_too_short():
    make = rough(lambda value: np.array([0.1]), prompts=400)
    shifted = lambda value, seed: make(value, seed) * (1 + 0.3 * (seed % 5))  # noqa: E731
    widths = {}
    for seeds in ((0, 1, 2, 3, 4), (2,)):
        table = divergence_table(measure((1,), shifted, seeds=seeds, names=("a",)), 0.95)
        widths[len(seeds)] = float((table["high"] - table["low"]).iloc[0] / table["mean"].iloc[0])
    assert widths[5] > 4 * widths[1]


def test_predictors_and_prefixes_that_not_all_variants_have_are_left_out():
    def read(folder):
        few = folder == "2/1"
        shape = (10, 3 if few else 5, 2 if few else 3)
        return Differences(
            ("c", "a") if few else ("a", "b", "c"), np.ones(shape) * ([3, 1] if few else [1, 2, 3])
        )

    resamples = resample_sweep(grid((1, 2)), read, None, (2.0,), 10, 0)
    assert resamples.predictors == ("a", "c")
    assert resamples.observed[:, 0].tolist() == [[1, 9], [1, 9]]
    assert resamples.examples_seen.tolist() == [[1, 2, -1, 2]] * 2


def test_what_diverged_is_far_and_nothing_is_missing():
    learner = tidy_predictions(LEARNER, torch_ones(4, 3))
    wild = torch_ones(4, 3)
    wild[0, 1], wild[1, 2] = float("inf"), float("nan")
    others = pd.concat(
        [tidy_predictions("gd", wild), tidy_predictions("ols", torch_ones(4, 3) * 0.9)]
    )
    values = signed_differences(learner, others).values
    assert np.abs(values[..., 0]).max() == LARGEST
    make = lambda value, seed: values  # noqa: E731
    resamples = measure((1, 2), make, names=("gd", "ols"))
    table = nearest_table(resamples, 0.95)
    assert set(table["nearest"]) == {"ols"}
    assert np.isfinite(table[["spd", "margin", "low", "high"]].to_numpy()).all()
    assert np.isfinite(divergence_table(resamples, 0.95)["high"]).all()


def torch_ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def test_predictions_about_other_prompts_are_refused():
    with pytest.raises(ValueError, match=r"\['ols'\] predict other prompts"):
        signed_differences(
            tidy_predictions(LEARNER, torch_ones(4, 3)), tidy_predictions("ols", torch_ones(5, 3))
        )


# The nearest predictor ----------------------------------------------------------------------------


def test_nearest_runner_up_margin_and_certainty():
    levels = {1.0: (0.1, 0.4, 0.9), 2.0: (0.5, 0.501, 0.9)}
    make = rough(lambda value: np.array(levels[value]), prompts=200)
    table = (
        nearest_table(measure((1, 2), make), 0.95).query("scope == @MEAN").set_index("axis_value")
    )
    assert (table["nearest"][1], table["runner_up"][1]) == ("a", "b")
    assert table["margin"][1] == pytest.approx(4, rel=0.1)
    assert table["low"][1] < table["margin"][1] < table["high"][1]
    assert table["clear"][1]
    assert table["certainty"][1] == 1
    assert not table["clear"][2]
    assert table["certainty"][2] < 1


def test_predictors_that_coincide_are_no_rivals():
    def make(value, seed):
        return np.concatenate(
            [rough(lambda v: np.array([0.1, 0.1, 0.4]))(value, seed)[..., [0, 0, 2]]], -1
        )

    table = nearest_table(measure((1, 2), make), 0.95)
    assert set(table["nearest"]) == {"a"}
    assert set(table["coincident"]) == {"b"}
    assert set(table["runner_up"]) == {"c"}
    assert table["clear"].all()


def test_where_all_coincide_nothing_is_clear():
    make = lambda value, seed: rough(lambda v: np.array([0.1]))(value, seed)[..., [0, 0]]  # noqa: E731
    table = nearest_table(measure((1,), make, names=("a", "b")), 0.95)
    assert table["runner_up"].isna().all()
    assert table[["margin", "low", "high"]].isna().all(axis=None)
    assert not table["clear"].any()


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 5))
def test_certainty_and_margins_are_consistent(seed, num_seeds, num_predictors):
    rng = np.random.default_rng(seed)
    levels = {value: rng.uniform(0.1, 0.2, num_predictors) for value in (1.0, 2.0, 3.0)}
    make, names = rough(levels.get, prompts=8), [f"p{i}" for i in range(num_predictors)]
    resamples = measure(levels, make, seeds=range(num_seeds), names=names, num_resamples=30)
    table = nearest_table(resamples, 0.9)
    spds = divergence_table(resamples, 0.9).pivot_table(
        index=["axis_value", "scope", "examples_seen"],
        columns="predictor",
        values="mean",
        dropna=False,
    )
    assert (table["margin"] >= 1).all()
    assert (table["nearest"] != table["runner_up"]).all()
    assert table["certainty"].between(0, 1).all()
    assert (table["low"] <= table["high"]).all()
    assert (table.loc[table["clear"], "certainty"] > 0.9).all()
    assert table["spd"].min() == pytest.approx(spds.min(axis=None))
    changes = transition_table(resamples, 0.9)
    assert (changes["before"] != changes["after"]).all()
    assert changes["location"].between(changes["from_value"], changes["to_value"]).all()
    assert changes["share"].between(0, 1).all()


@pytest.mark.slow
@given(st.permutations(range(4)))
def test_the_order_of_the_predictors_changes_nothing(order):
    make = rough(lambda value: np.array([0.1, 0.2, 0.15, 0.3]) * value)
    names = np.array(["a", "b", "c", "d"])
    first = measure((1, 2), make, names=names)
    second = measure((1, 2), lambda v, s: make(v, s)[..., list(order)], names=names[list(order)])
    keep = ["nearest", "runner_up", "margin", "low", "high", "certainty"]
    pd.testing.assert_frame_equal(nearest_table(first, 0.9)[keep], nearest_table(second, 0.9)[keep])


def test_ties_go_to_the_one_listed_first():
    coincide = np.eye(3, dtype=bool)[None, None].repeat(1, 0)
    coincide[..., 0, 2] = coincide[..., 2, 0] = True
    assert nearest(np.array([[[0.5, 0.3, 0.2]]]), coincide).tolist() == [[0]]


# Transitions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [1.5, 3.0, 6.5])
def test_a_planted_transition_is_located_by_depth_on_a_log_axis(place):
    resamples = measure(
        (1, 2, 4, 8), rough(crossing(place), prompts=300, spread=0.3), seeds=range(4)
    )
    table = transition_table(resamples, 0.95).query("scope == @MEAN")
    (row,) = table.itertuples()
    assert (row.before, row.after) == ("a", "b")
    assert row.low <= row.location <= row.high
    assert row.location == pytest.approx(place, rel=0.06)
    assert row.from_value < place < row.to_value
    assert row.share == row.left == 1


def test_noise_is_interpolated_linearly():
    make = rough(crossing(0.3, logarithmic=False), prompts=300, spread=0.3)
    resamples = measure((0, 0.2, 0.5), make, axis="task.noise_std", seeds=range(4))
    (row,) = transition_table(resamples, 0.95).query("scope == @MEAN").itertuples()
    assert row.location == pytest.approx(0.3, abs=0.03)


@pytest.mark.slow
def test_intervals_of_a_transition_cover_its_place_about_as_often_as_they_say():
    covered = []
    for trial in range(40):
        noise = rough(crossing(3.0), prompts=40, spread=0.4)
        make = lambda value, seed, trial=trial, noise=noise: noise(value, seed + 100 * trial)  # noqa: E731
        resamples = measure((2, 4), make, seeds=range(6), num_resamples=150, seed=trial)
        table = transition_table(resamples, 0.9).query("scope == @MEAN")
        covered.append(((table["low"] < 3.0) & (table["high"] > 3.0)).any())
    assert 0.75 < np.mean(covered) < 0.99


def test_an_uncertain_transition_says_so():
    make = rough(
        lambda value: np.array([0.200, 0.202, 0.9] if value < 2 else [0.202, 0.200, 0.9]),
        prompts=20,
    )
    table = transition_table(measure((1, 2), make, num_resamples=400), 0.95)
    assert (table["share"] < 0.9).all()


def test_that_an_algorithm_is_left_can_be_clearer_than_for_which():
    make = rough(
        lambda value: np.array([0.1, 0.9, 0.9] if value < 2 else [0.9, 0.200, 0.201]), prompts=20
    )
    table = transition_table(measure((1, 2), make), 0.95)
    assert (table["left"] == 1).all()
    assert (table["share"] < 0.95).all()


def test_no_change_is_no_row():
    make = rough(lambda value: np.array([0.1, 0.5, 0.9]))
    table = transition_table(measure((1, 2, 4), make), 0.95)
    assert table.empty
    assert table.dtypes["location"] == "float64"


def test_predictors_that_coincide_at_a_value_do_not_change_places_there():
    def make(value, seed):
        values = rough(lambda v: np.array([0.1, 0.1, 0.9]))(value, seed)
        values[..., 1] = values[..., 0] * (1 if value == 1 else 0.5)
        return values

    resamples = measure((1, 2), make)
    table = nearest_table(resamples, 0.95).query("scope == @MEAN")
    assert table["nearest"].tolist() == ["a", "b"]
    assert table["coincident"].tolist() == ["b", ""]
    assert transition_table(resamples, 0.95).empty


# Noise: the diagonal ------------------------------------------------------------------------------


def read_sweep(root, axis=None, where=None, drop=(), **settings):
    """A sweep's variants, resamples and ridge penalties, read without Kedro."""
    paths = {
        str(path.parent.relative_to(root)): path for path in sorted(root.rglob("variant.json"))
    }
    records = {folder: json.loads(path.read_text()) for folder, path in paths.items()}
    variants = list_variants(records, set(records) - set(drop), axis, where or {})

    def read(folder):
        tables = root / folder / "07_model_output"
        learner, baselines = (
            pd.read_parquet(tables / f"{who}_predictions.parquet", partitioning=None)
            for who in ("learner", "baseline")
        )
        return signed_differences(learner, baselines)

    used = variants[variants["used"]]
    known = {
        "examples_seen": None,
        "points": (1.0, 2.0),
        "num_resamples": 100,
        "seed": 0,
    } | settings
    resamples = resample_sweep(used, read, **known)
    return (
        variants,
        resamples,
        ridge_penalties([records[folder]["parameters"] for folder in used["folder"]]),
    )


def test_a_planted_diagonal_is_found(tmp_path):
    _, resamples, penalties = read_sweep(write_noise_sweep(tmp_path / "noise"))
    table = heat_map_table(resamples, penalties, 0.95)
    assert list(dict.fromkeys(table["penalty"])) == pytest.approx(sorted(RATIOS.values()))
    assert sorted(set(table["coordinate"])) == pytest.approx(
        sorted(RATIOS.values()), rel=1e-3, abs=1e-9
    )
    assert (
        table.groupby(["scope", "axis_value"])[["diagonal", "minimum"]].sum().eq(1).all(axis=None)
    )
    assert (table["diagonal"] == table["minimum"]).all()
    assert (table.loc[table["diagonal"], "share"] > 0.95).all()
    assert table.groupby(["scope", "axis_value"])["share"].sum().to_numpy() == pytest.approx(1)


def test_learners_that_ignore_their_noise_are_off_the_diagonal(tmp_path):
    _, resamples, penalties = read_sweep(write_noise_sweep(tmp_path / "noise", acts_like=1 / 9))
    table = heat_map_table(resamples, penalties, 0.95).query("scope == @MEAN")
    assert set(table.loc[table["minimum"], "predictor"]) == {"ridge_1_9"}
    on = table[table["diagonal"]].set_index("predictor")["share"]
    assert on["ridge_1_9"] == 1
    assert (on.drop("ridge_1_9") == 0).all()


def test_other_axes_have_a_column_for_every_predictor_and_no_diagonal():
    make = rough(lambda value: np.array([0.1, 0.5, 0.9]))
    table = heat_map_table(measure((1, 2), make), {"a": 0.0, "b": 1.0}, 0.95)
    assert list(dict.fromkeys(table["predictor"])) == ["a", "b", "c"]
    assert not table["diagonal"].any()
    assert table["penalty"].isna().sum() == 2


def test_penalties_are_those_of_ridges_that_are_the_same_in_all_variants():
    baselines = BASELINES | {"bayes": {"type": "BayesPosteriorMean"}}
    trees = [
        {"task": TaskConfig(noise_std=noise).model_dump(mode="json"), "baselines": baselines}
        for noise in (0.1, 0.5)
    ]
    assert ridge_penalties(trees) == {"ols": 0.0, "ridge_1": 1.0}
    assert ridge_penalties(trees[:1])["bayes"] == pytest.approx(0.01)


def test_values_without_all_seeds_are_still_drawn(tmp_path):
    root = write_depth_sweep(tmp_path / "depth")
    folders = [str(Path("model.num_layers=2") / "seed=1")]
    variants, resamples, _ = read_sweep(root, drop=folders)
    assert resamples.values["seeds"].tolist() == [2, 1, 2, 2]
    assert len(variants) == 8
