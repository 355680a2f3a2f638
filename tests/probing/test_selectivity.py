import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.config import BootstrapConfig
from incontext_linear.probing import (
    Column,
    Selection,
    overlap_table,
    score_table,
    selectivity_tables,
    split_prompts,
)
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.fitting import PROBE_KEYS
from incontext_linear.statistics import crossed_means, interval

CONFIG = ProbingConfig(bootstrap=BootstrapConfig(num_resamples=200))
LEARNER = {"moment": [1.0, 0.4, 0.1, 0.1], "least_squares": [1.0, 0.9, 0.8, 0.1]}


def errors(source, levels, noise=0.02, num_seeds=2, num_prompts=40):
    rng = np.random.default_rng(0)
    rows = [
        (source, target, "linear", 0, 5, layer, seed, prompt, level + noise * rng.standard_normal())
        for target, by_layer in levels.items()
        for layer, level in enumerate(by_layer)
        for seed in range(num_seeds)
        for prompt in range(num_prompts)
    ]
    names = [*PROBE_KEYS, "seed", "prompt", "squared_error"]
    return pd.DataFrame(rows, columns=names)


CONTROLS = pd.concat(
    [
        errors("weak", {name: [1.2] * 4 for name in LEARNER}),
        errors("strong", {name: [1.0, 1.0, 0.9, 0.9] for name in LEARNER}),
    ]
)


def test_scores_are_means_with_intervals_that_hold_them():
    scores = score_table(errors("learner", LEARNER), CONFIG, seed=0).set_index(["target", "layer"])
    assert scores.loc[("moment", 1), "squared_error"] == pytest.approx(0.4, abs=0.02)
    assert (scores["low"] <= scores["squared_error"]).all()
    assert (scores["squared_error"] <= scores["high"]).all()
    np.testing.assert_allclose(scores["r_squared_low"], 1 - scores["high"])


def test_selectivity_is_the_improvement_over_the_best_control():
    table, _, _ = selectivity_tables(errors("learner", LEARNER), CONTROLS, CONFIG, seed=0)
    found = table.set_index(["target", "layer"])["selectivity"]
    assert found["moment"].tolist() == pytest.approx([0.0, 0.6, 0.8, 0.8], abs=0.02)
    assert found["least_squares"].tolist() == pytest.approx([0.0, 0.1, 0.1, 0.8], abs=0.02)
    assert set(table["best_control"]) == {"strong"}


def test_a_target_appears_where_selectivity_first_reaches_half_of_its_largest():
    _, appearances, order = selectivity_tables(errors("learner", LEARNER), CONTROLS, CONFIG, seed=0)
    layers = appearances.set_index("target")[["layer", "low", "high"]]
    assert layers.loc["moment"].tolist() == [1, 1, 1]
    assert layers.loc["least_squares"].tolist() == [3, 3, 3]
    row = order.iloc[0]
    assert (row["earlier"], row["later"], row["difference"], row["low"]) == (
        "moment",
        "least_squares",
        2,
        2,
    )
    assert row["share_before"] == 1
    assert len(order) == 1


def test_a_target_no_better_than_its_controls_appears_nowhere():
    levels = {"moment": [1.0, 1.0, 0.9, 0.9], "least_squares": LEARNER["least_squares"]}
    _, appearances, order = selectivity_tables(errors("learner", levels), CONTROLS, CONFIG, seed=0)
    assert appearances.set_index("target")["layer"].isna().to_dict() == {
        "moment": True,
        "least_squares": False,
    }
    assert np.isnan(order.iloc[0]["difference"])


def test_overlap_is_what_one_target_gives_away_of_another():
    rng = torch.Generator().manual_seed(0)
    known, noise = torch.randn(2, 800, 2, generator=rng)
    columns = [
        Column("whole", 5, known),
        Column("half", 5, known + noise),
        Column("same", 5, 3 * known),
        Column("other", 4, noise),
    ]
    xs, ys, split = torch.zeros(800, 6, 2), torch.zeros(800, 6), split_prompts(800, CONFIG.fit, 0)
    table = overlap_table(Selection(xs, ys, [0], [4, 5], columns, split), CONFIG, seed=0)
    errors = table.set_index(["target", "given"])["squared_error"]
    assert errors["half", "whole"] == pytest.approx(0.5, abs=0.08)
    assert errors["whole", "half"] == pytest.approx(0.5, abs=0.08)
    assert errors["same", "whole"] == pytest.approx(0, abs=1e-12)
    assert len(errors) == 6
    assert (table["low"] <= table["squared_error"]).all()


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 60, 400))
    low, high = interval(crossed_means(values, 400, seed=1), 0.9)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.9, abs=0.06)


def test_seeds_that_disagree_widen_the_interval():
    values = np.random.default_rng(0).standard_normal((3, 50, 1))
    apart = values + np.array([-3.0, 0.0, 3.0])[:, None, None]
    widths = [np.ptp(interval(crossed_means(v, 300, seed=0), 0.95)) for v in (values, apart)]
    assert widths[1] > 3 * widths[0]


def test_resamples_are_paired_across_arrays_of_one_shape():
    values = np.random.default_rng(0).standard_normal((2, 30, 3))
    difference = crossed_means(values + 5, 100, seed=4) - crossed_means(values, 100, seed=4)
    np.testing.assert_allclose(difference, 5)
