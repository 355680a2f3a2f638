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


def errors(source, levels, noise=0.02, num_seeds=2, num_prompts=40, better=0.0):
    """Errors about a level; on the validation prompts they are smaller by ``better``."""
    rng = np.random.default_rng(0)
    rows = [
        (source, target, "linear", 0, 5, layer, seed, prompt, level + noise * rng.standard_normal())
        for target, by_layer in levels.items()
        for layer, level in enumerate(by_layer)
        for seed in range(num_seeds)
        for prompt in range(num_prompts)
    ]
    names = [*PROBE_KEYS, "seed", "prompt", "squared_error"]
    table = pd.DataFrame(rows, columns=names)
    keys = [*PROBE_KEYS, "seed"]
    means = table.groupby(keys)["squared_error"].transform("mean")
    return table.assign(validation_error=means - better)


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


def test_the_best_control_is_chosen_on_validation_prompts():
    """One control is worse on the test prompts, by 0.1, and better where the choice is made."""
    level = {name: [1.0] * 4 for name in LEARNER}
    chosen = errors("chosen", {name: [1.1] * 4 for name in LEARNER}, better=0.3)
    controls = pd.concat([errors("luckier", level), chosen])
    table, _, _ = selectivity_tables(errors("learner", level), controls, CONFIG, seed=0)
    assert set(table["best_control"]) == {"chosen"}
    assert table["selectivity"].tolist() == pytest.approx([0.1] * 8, abs=1e-6)


def test_targets_appear_at_one_threshold_for_all():
    """Selectivities 0, 0.6, 0.8, 0.8 and 0, 0.1, 0.1, 0.8: both reach 0.05 at layer 1, and half of
    their own maximum at different layers.
    """
    config = CONFIG.model_copy(update={"appearance": (0.05, 0.3, 0.9)})
    _, appearances, order = selectivity_tables(errors("learner", LEARNER), CONTROLS, config, seed=0)
    appeared = {
        (row.target, row.threshold): [row.layer, row.low, row.high]
        for row in appearances.itertuples()
    }
    assert appeared["moment", 0.05] == [1, 1, 1]
    assert appeared["least_squares", 0.05] == [1, 1, 1]
    assert appeared["least_squares", 0.3] == [3, 3, 3]
    assert appearances.query("threshold == 0.9")["layer"].isna().all()
    assert set(order["earlier"]) == {"moment"}
    assert set(order["later"]) == {"least_squares"}
    numbers = ["difference", "low", "high", "share_before"]
    found = dict(zip(order["threshold"], order[numbers].to_numpy(dtype=float), strict=True))
    assert found[0.05].tolist() == [0, 0, 0, 0]
    assert found[0.3].tolist() == [2, 2, 2, 1]
    assert np.isnan(found[0.9]).all()


def test_a_resample_below_the_threshold_counts_as_behind_all_layers():
    """The last layer alone reaches 0.79, with 0.8, and not in all resamples."""
    config = CONFIG.model_copy(update={"appearance": (0.79,)})
    own = {"moment": [1.0, 1.0, 0.9, 0.1]}
    controls = errors("control", {"moment": [1.0, 1.0, 1.0, 0.9]})
    wide = errors("learner", own, noise=0.3)
    wide["squared_error"] += 0.1 - wide.query("layer == 3")["squared_error"].mean()
    _, appearances, _ = selectivity_tables(wide, controls, config, seed=0)
    row = appearances.iloc[0]
    assert (row["layer"], row["low"], row["high"]) == (3, 3, np.inf)


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
