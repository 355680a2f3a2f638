"""The one bootstrap, against SciPy, plain NumPy loops, and its own coverage."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from incontext_linear.statistics import (
    BootstrapConfig,
    Draws,
    argmin_shares,
    crossed_means,
    few_seeds_factor,
    interval,
    mean_interval,
    median_interval,
    nested_draws,
    nested_weights,
    paired_difference,
    paired_log_ratio,
    ratio_interval,
    resampled_means,
    sample_draws,
    seeds_interval,
    tails,
)
from incontext_linear.statistics import draws as draws_module
from incontext_linear.statistics.means import known_quantiles

BOOTSTRAP = BootstrapConfig(confidence=0.95, num_resamples=400)
MANY = BootstrapConfig(confidence=0.95, num_resamples=4000)
SEEDS = st.integers(0, 2**31)


@pytest.fixture
def without_tails(monkeypatch):
    """Studentised intervals alone, as a plain loop gives them."""
    monkeypatch.setattr(tails, "FEWEST_EXCESSES", 10**9)


def lognormal(num_samples, num_columns, sigma=1.0, seed=0):
    return np.random.default_rng(seed).lognormal(0, sigma, (num_samples, num_columns))


# --- the resampling counts ---


def test_every_resample_draws_as_many_samples_as_there_are():
    counts = sample_draws(50, 30, 0).counts()
    assert counts.shape == (30, 50)
    assert (counts.sum(1) == 50).all()
    assert (counts >= 0).all()


def test_counts_have_the_mean_and_variance_of_a_multinomial():
    counts = sample_draws(20, 20_000, 0).counts()
    assert np.allclose(counts.mean(0), 1, atol=0.05)
    assert np.allclose(counts.var(0), 1 - 1 / 20, atol=0.06)
    assert np.corrcoef(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(-1 / 19, abs=0.03)


@given(SEEDS)
def test_the_same_seed_gives_the_same_counts_and_another_seed_others(seed):
    first, again, other = (sample_draws(30, 8, s).counts() for s in (seed, seed, seed + 1))
    assert (first == again).all()
    assert (first != other).any()


def test_counts_are_the_same_whether_they_are_kept_or_drawn_again(monkeypatch):
    kept = sample_draws(64, 40, 3)
    expected = kept.counts()
    monkeypatch.setattr(draws_module, "_KEPT", 0)
    assert (kept.counts() == expected).all()


@pytest.mark.parametrize("kept", [0, 2**27])
def test_sums_and_counts_of_a_draw_are_those_of_its_table_of_counts(monkeypatch, kept):
    monkeypatch.setattr(draws_module, "_KEPT", kept)
    monkeypatch.setattr(draws_module, "_SAMPLES", 7)
    monkeypatch.setattr(draws_module, "_BLOCK", 300)
    draws, places = Draws(50, 40, (0,), tuple(range(20, 60))), np.array([[3, 49], [0, 3]])
    values = lognormal(50, 3)
    counts = np.concatenate([counts for _, counts in draws.blocks()])
    assert counts.sum(1).tolist() == list(range(20, 60))
    sums, at = draws.sums_and_counts([values[:, :1], values[:, 1:]], places)
    expected = [
        [sum(c * v for c, v in zip(r, column, strict=True)) for column in values.T] for r in counts
    ]
    np.testing.assert_allclose(sums, expected, rtol=1e-13)
    assert (at == counts[:, places]).all()


def test_a_second_predictor_does_not_draw_again(monkeypatch):
    draws = sample_draws(33, 21, 7)
    draws.counts()
    monkeypatch.setattr(draws_module, "_drawn", None)  # fails if it is called
    draws.sums(np.ones((33, 2)))


def test_blocks_are_bounded_whatever_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr(draws_module, "_BLOCK", 100)
    monkeypatch.setattr(draws_module, "_KEPT", 0)
    draws = sample_draws(30, 25, 1)
    sizes = [counts.size for _, counts in draws.blocks()]
    assert max(sizes) <= 100
    values = np.random.default_rng(0).normal(size=(30, 4))
    assert np.allclose(draws.sums(values), draws.counts() @ values)


def test_sums_of_other_samples_than_were_drawn_are_refused():
    with pytest.raises(ValueError, match="values has 4 samples; allowed: 5, as drawn"):
        sample_draws(5, 3, 0).sums(np.ones((4, 1)))


def test_nothing_cannot_be_resampled():
    with pytest.raises(ValueError, match=r"num_samples=0 .* at least 1"):
        sample_draws(0, 3, 0)
    with pytest.raises(ValueError, match="values has no samples"):
        mean_interval(np.empty((0, 2)), BOOTSTRAP, 0)


def test_permuted_samples_with_permuted_counts_give_the_same_sums():
    values = lognormal(40, 3)
    order = np.random.default_rng(1).permutation(40)
    draws = sample_draws(40, 10, 0)
    assert np.allclose(draws.counts()[:, order] @ values[order], draws.sums(values))


def test_streams_of_prompts_seeds_and_blocks_are_all_different(monkeypatch):
    monkeypatch.setattr(draws_module, "_BLOCK", 50)
    several = [Draws(50, 4, entropy).counts() for entropy in ((0,), (0, 0), (0, 1), (0, 1, 0))]
    rows = np.concatenate(several)
    assert len(np.unique(rows, axis=0)) == len(rows)


# --- seeds and prompts ---


def test_nested_weights_of_a_resample_sum_to_one_and_each_drawn_seed_has_an_equal_part():
    weights = np.stack([nested_weights([0, 1, 5], s, 40, 300, 0) for s in range(3)])
    assert np.allclose(weights.sum((0, 2)), 1)
    parts = weights.sum(2) * 3
    assert np.allclose(parts, parts.round())
    assert set(parts.ravel().round()) == {0, 1, 2, 3}


def test_nested_counts_follow_from_the_seeds_and_differ_between_them():
    first, again = (nested_weights([2, 3], 0, 16, 50, 9) for _ in range(2))
    assert (first == again).all()
    assert (first != nested_weights([2, 4], 0, 16, 50, 9)).any()
    assert (first != nested_weights([2, 3], 1, 16, 50, 9)).any()


def test_nested_draws_have_the_variance_of_seeds_plus_prompts():
    rng = np.random.default_rng(0)
    num_seeds, num_prompts = 6, 50
    values = rng.normal(size=(num_seeds, 1)) + rng.normal(size=(num_seeds, num_prompts))
    drawn = sum(
        nested_weights(range(num_seeds), s, num_prompts, 20_000, 0) @ values[s]
        for s in range(num_seeds)
    )
    between = values.mean(1).var() / num_seeds
    within = values.var(1).mean() / (num_seeds * num_prompts)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    assert drawn.var() == pytest.approx(between + within, rel=0.05)


def test_a_seed_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"position=2 .* 0 to 1"):
        nested_draws([0, 1], 2, 8, 4, 0)


def test_resampled_means_draw_the_same_samples_for_all_candidates_and_cells():
    values = np.random.default_rng(0).normal(size=(3, 20, 4))
    resampled = resampled_means(values, 50, seed=7)
    rows = np.repeat(np.arange(20), sample_draws(20, 50, 7).counts()[11].astype(int))
    assert resampled.shape == (50, 3, 4)
    assert np.allclose(resampled[11], values[:, rows].mean(1))


def test_crossed_means_agree_with_a_loop_over_resamples():
    values = lognormal(5 * 30, 4).reshape(5, 30, 4)
    drawn = crossed_means(values, 20, seed=3)
    prompts = sample_draws(30, 20, 3).counts()
    seeds = Draws(5, 20, (3, 1)).counts()
    for r in range(20):
        rows = np.repeat(np.arange(5), seeds[r].astype(int))
        columns = np.repeat(np.arange(30), prompts[r].astype(int))
        assert np.allclose(drawn[r], values[rows][:, columns].mean((0, 1)))


def test_crossed_means_of_equal_seeds_vary_with_prompts_alone():
    values = np.repeat(lognormal(60, 2)[None], 4, axis=0)
    assert np.allclose(crossed_means(values, 50, 1), crossed_means(values[:1], 50, 1))


def test_few_seeds_lengthen_the_interval_to_that_of_students_t():
    means = np.random.default_rng(0).normal(size=5)
    drawn = (Draws(5, 40_000, (0,)).counts() @ means / 5)[:, None]
    low, high = seeds_interval(drawn, np.array([means.mean()]), 5, 0.95)
    exact = stats.t.interval(0.95, 4, means.mean(), means.std(ddof=1) / np.sqrt(5))
    assert (high - low).item() == pytest.approx(exact[1] - exact[0], rel=0.1)
    assert few_seeds_factor(1, 0.95) == 1
    assert few_seeds_factor(1000, 0.95) == pytest.approx(1, abs=0.01)


def test_the_log_form_lengthens_ratios_and_stays_positive():
    drawn = np.exp(np.linspace(-2, 2, 1001))[:, None]
    low, high = seeds_interval(drawn, np.ones(1), 5, 0.95, log=True)
    assert low > 0
    assert np.log(high) == pytest.approx(1.9 * few_seeds_factor(5, 0.95), rel=1e-6)


# --- percentiles, choices ---


def test_percentiles_agree_with_scipys_percentile_bootstrap():
    values = lognormal(200, 3)
    low, high = interval(sample_draws(200, 4000, 0).sums(values) / 200, 0.9)
    for column in range(3):
        theirs = stats.bootstrap(
            (values[:, column],),
            np.mean,
            confidence_level=0.9,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval
        assert (low[column], high[column]) == pytest.approx(theirs, rel=0.02)


def test_limits_of_a_discrete_statistic_are_values_that_it_took():
    layers = np.array([8.0] * 30 + [9.0] * 970)[:, None]
    low, high = interval(layers, 0.95, discrete=True)
    assert low.item() in (8.0, 9.0)
    assert high.item() == 9.0
    between, _ = interval(np.array([8.0, 9.0])[:, None], 0.95)
    assert 8 < between.item() < 9  # what the plain form gives


def test_missing_resamples_are_left_out_and_a_column_of_them_is_nan():
    drawn = np.stack((np.linspace(0, 1, 101), np.full(101, np.nan)), 1)
    drawn[::2, 0] = np.nan
    low, high = interval(drawn, 0.5)
    assert low[0] == pytest.approx(np.nanquantile(drawn[:, 0], 0.25))
    assert np.isnan([low[1], high[1]]).all()


def test_shares_of_the_least_sum_to_one_and_equals_go_to_the_first():
    drawn = np.array([[[1.0, 2.0, 3.0]], [[2.0, 1.0, 1.0]], [[0.0, 0.0, 5.0]], [[3.0, 3.0, 2.0]]])
    assert argmin_shares(drawn).tolist() == [[0.5, 0.25, 0.25]]


# --- means ---


def test_mean_and_median_are_those_of_the_values():
    values = lognormal(101, 5)
    table = mean_interval(values, BOOTSTRAP, 0)
    assert list(table) == ["mean", "low", "high", "median", "median_low", "median_high"]
    assert np.allclose(table["mean"], values.mean(0))
    assert np.allclose(table["median"], np.median(values, 0))
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()


@pytest.mark.usefixtures("without_tails")
def test_a_studentised_interval_agrees_with_a_loop_over_resamples():
    values = lognormal(60, 2)
    table = mean_interval(values, BOOTSTRAP, 4)
    counts = sample_draws(60, BOOTSTRAP.num_resamples, 4).counts().astype(int)
    for column in range(2):
        x = values[:, column]
        own = stats.sem(x) / x.mean()
        drawn = [np.repeat(x, count) for count in counts]
        t = [np.log(r.mean() / x.mean()) / (r.std() / np.sqrt(59) / r.mean()) for r in drawn]
        low, high = x.mean() * np.exp(-np.quantile(t, [0.975, 0.025]) * own)
        assert table["low"][column] == pytest.approx(low, rel=1e-4)
        assert table["high"][column] == pytest.approx(high, rel=1e-4)


def test_signed_values_are_studentised_on_the_plain_scale():
    values = np.random.default_rng(0).normal(0.3, 1, (80, 1))
    table = mean_interval(values, BOOTSTRAP, 4)
    x, counts = values[:, 0], sample_draws(80, BOOTSTRAP.num_resamples, 4).counts().astype(int)
    drawn = [np.repeat(x, count) for count in counts]
    t = [(r.mean() - x.mean()) / (r.std() / np.sqrt(79)) for r in drawn]
    limits = x.mean() - np.quantile(t, [0.975, 0.025]) * stats.sem(x)
    assert (table["low"][0], table["high"][0]) == pytest.approx(limits, rel=1e-3)


@pytest.mark.usefixtures("without_tails")
def test_light_tails_give_scipys_bca_interval():
    values = np.random.default_rng(2).normal(0, 1, (400, 3))
    table = mean_interval(values, MANY, 0)
    for column in range(3):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=4000, rng=np.random.default_rng(1)
        ).confidence_interval
        width = theirs.high - theirs.low
        assert table["low"][column] == pytest.approx(theirs.low, abs=0.05 * width)
        assert table["high"][column] == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_tail_draws_the_mean_excess_of_the_pareto_distribution_that_made_it():
    shape, scale = 0.3, 2.0
    rng = np.random.default_rng(0)
    uniform = rng.uniform(size=(1, 20_000))
    excess = stats.genpareto.ppf(uniform, shape, scale=scale)
    drawn = tails.draw_mean_excess(excess, sample_draws(50, 500, 0))
    assert drawn.mean() == pytest.approx(scale / (1 - shape), rel=0.05)
    few = tails.draw_mean_excess(excess[:, :30], sample_draws(50, 500, 0))
    assert few.std() > 5 * drawn.std()


@given(SEEDS, st.floats(1e-8, 1e8))
def test_intervals_scale_with_the_values(seed, scale):
    values = lognormal(60, 3, 2.0, seed)
    scaled, plain = mean_interval(scale * values, BOOTSTRAP, 1), mean_interval(values, BOOTSTRAP, 1)
    pd.testing.assert_frame_equal(scaled, scale * plain, rtol=1e-6)


@given(SEEDS)
def test_signed_intervals_move_with_the_values(seed):
    values = np.random.default_rng(seed).normal(0, 1, (60, 3))
    moved, plain = mean_interval(values + 0.1, BOOTSTRAP, 1), mean_interval(values, BOOTSTRAP, 1)
    signed = (values + 0.1).min(0) < 0
    assert signed.all()
    pd.testing.assert_frame_equal(moved, plain + 0.1, rtol=1e-6)


@pytest.mark.slow
@given(SEEDS)
def test_a_column_does_not_depend_on_those_beside_it(seed):
    values = lognormal(40, 70, 2.0, seed)
    together = mean_interval(values, BOOTSTRAP, 1)
    alone = mean_interval(values[:, 65:67], BOOTSTRAP, 1)
    pd.testing.assert_frame_equal(together[65:67].reset_index(drop=True), alone, rtol=1e-6)


def test_higher_confidence_gives_a_longer_interval():
    values = lognormal(300, 4, 2.0)
    low, high = (mean_interval(values, BootstrapConfig(confidence=c), 0) for c in (0.8, 0.99))
    assert (high["low"] < low["low"]).all()
    assert (high["high"] > low["high"]).all()
    assert (high["median_low"] < low["median_low"]).all()


@pytest.mark.parametrize("num_samples", [1, 2, 6, 19, 20, 300])
@pytest.mark.parametrize("constant", [0.0, 1.0, -2.5, 1e-12])
def test_a_constant_column_has_an_interval_of_no_width(num_samples, constant):
    table = mean_interval(np.full((num_samples, 2), constant), BOOTSTRAP, 0)
    assert np.allclose(table, constant, rtol=1e-12, atol=0)


def test_missing_values_are_left_out_and_an_empty_column_is_nan():
    values = np.full((40, 3), np.nan)
    values[:30, 0] = lognormal(30, 1)[:, 0]
    values[[3, 8], 1] = 1.0, 3.0
    table = mean_interval(values, BOOTSTRAP, 0)
    assert table["mean"][0] == pytest.approx(np.nanmean(values[:, 0]))
    assert table["mean"][1] == 2.0
    assert table.loc[:1].notna().all(axis=None)
    assert table.loc[2].isna().all()
    width = table["high"][0] / table["low"][0]
    alone = mean_interval(values[:30, :1], BOOTSTRAP, 0)
    assert np.log(width) == pytest.approx(np.log(alone["high"][0] / alone["low"][0]), rel=0.5)


@pytest.mark.parametrize("num_samples", [5, 20, 200])
def test_an_algorithm_that_diverged_has_a_huge_mean_and_no_missing_interval(num_samples):
    values = np.ones((num_samples, 3))
    values[3, 1] = np.inf
    values[:, 2] = np.inf
    table = mean_interval(values, BOOTSTRAP, 0)
    assert table["mean"][0] == 1
    assert (table["mean"][1:] > 1e290).all()
    assert np.isfinite(table).all(axis=None)


def test_one_value_beyond_all_others_leaves_a_limit_that_is_no_larger_than_it():
    values = lognormal(1024, 1)
    values[5] = 1e10
    table = mean_interval(values, BOOTSTRAP, 0)
    assert table["low"][0] < 1e7 < table["high"][0] < 1e11


def test_few_positive_samples_get_students_t_on_the_log_scale():
    values = lognormal(6, 1, 0.5)
    table = mean_interval(values, BOOTSTRAP, 0)
    x = values[:, 0]
    half = stats.t.ppf(0.975, 5) * stats.sem(x) / x.mean()
    assert table["low"][0] == pytest.approx(x.mean() * np.exp(-half))
    assert table["high"][0] == pytest.approx(x.mean() * np.exp(half))


@pytest.mark.parametrize("num_samples", [6, 7, 50, 101, 1024])
def test_the_medians_interval_is_that_of_scipys_quantile_test(num_samples):
    values = lognormal(num_samples, 1)
    theirs = stats.quantile_test(values[:, 0], q=0, p=0.5).confidence_interval(0.95)
    table = median_interval(values, BOOTSTRAP)
    assert (table["median_low"][0], table["median_high"][0]) == pytest.approx(theirs)


def test_the_medians_interval_covers_at_least_as_often_as_it_says():
    table = median_interval(lognormal(61, 4000, 3.0), BOOTSTRAP)
    covered = ((table["median_low"] <= 1) & (table["median_high"] >= 1)).mean()
    assert 0.94 < covered < 0.98


# --- differences and ratios ---


def test_a_paired_difference_is_the_mean_of_differences():
    first, second = lognormal(50, 2), lognormal(50, 2, seed=1)
    expected = mean_interval(first - second, BOOTSTRAP, 3)
    pd.testing.assert_frame_equal(paired_difference(first, second, BOOTSTRAP, 3), expected)


@given(SEEDS, st.floats(1e-6, 1e6))
def test_ratios_of_proportional_values_are_exact(seed, factor):
    values = lognormal(60, 2, 1.5, seed)
    assert np.allclose(ratio_interval(factor * values, values, BOOTSTRAP, 0), factor, rtol=1e-6)
    logs = paired_log_ratio(factor * values, values, BOOTSTRAP, 0)
    assert np.allclose(logs, np.log(factor), atol=1e-6)


def test_a_ratio_interval_agrees_with_a_loop_over_resamples():
    x, y = lognormal(70, 1, 1.0, 1)[:, 0] - 1, lognormal(70, 1, 1.0, 2)[:, 0]
    table = ratio_interval(x[:, None], y[:, None], BOOTSTRAP, 6)
    counts = sample_draws(70, BOOTSTRAP.num_resamples, 6).counts().astype(int)

    def statistic(x, y):
        ratio = x.mean() / y.mean()
        return ratio, (x - ratio * y).std() / np.sqrt(69) / y.mean()

    ratio, error = statistic(x, y)
    drawn = [statistic(np.repeat(x, c), np.repeat(y, c)) for c in counts]
    t = [(r - ratio) / e for r, e in drawn]
    limits = ratio - np.quantile(t, [0.975, 0.025]) * error
    assert table["mean"][0] == pytest.approx(ratio)
    assert (table["low"][0], table["high"][0]) == pytest.approx(limits, rel=1e-6)


def test_paired_intervals_are_shorter_than_those_of_unpaired_values():
    first = lognormal(200, 1, 2.0)
    second = first * lognormal(200, 1, 0.1, 1)
    paired = paired_log_ratio(first, second, BOOTSTRAP, 0)
    unpaired = paired_log_ratio(first, second[::-1], BOOTSTRAP, 0)
    assert (paired["high"] - paired["low"])[0] < 0.2 * (unpaired["high"] - unpaired["low"])[0]


def test_log_ratios_change_sign_when_the_two_change_places():
    first, second = lognormal(80, 3), lognormal(80, 3, seed=4)
    forth, back = (
        paired_log_ratio(*pair, BOOTSTRAP, 0) for pair in ((first, second), (second, first))
    )
    assert np.allclose(forth[["log_ratio", "median"]], -back[["log_ratio", "median"]])
    assert np.allclose(forth["low"], -back["high"])


def test_one_denominator_may_serve_all_columns():
    numerators, denominator = lognormal(50, 3), lognormal(50, 1, seed=1)
    spread = np.broadcast_to(denominator, numerators.shape)
    expected = ratio_interval(numerators, spread, BOOTSTRAP, 0)
    pd.testing.assert_frame_equal(ratio_interval(numerators, denominator, BOOTSTRAP, 0), expected)


def test_a_sample_that_is_missing_in_one_is_left_out_of_both():
    first, second = lognormal(60, 1), lognormal(60, 1, seed=1)
    first[:10], second[50:] = np.nan, np.nan
    table = ratio_interval(first, second, BOOTSTRAP, 0)
    assert table["mean"][0] == pytest.approx(first[10:50].sum() / second[10:50].sum())
    assert table.notna().all(axis=None)


def test_negative_values_have_no_log_ratio():
    with pytest.raises(ValueError, match="negative values; allowed: values of at least 0"):
        paired_log_ratio(-np.ones((3, 1)), np.ones((3, 1)), BOOTSTRAP, 0)


# --- coverage ---


def test_heavy_tails_are_covered_where_percentiles_are_not():
    """Log-normal with σ = 2, about the spread of log SPD: 512 samples, 600 times."""
    values = lognormal(512, 600, 2.0, seed=11)
    truth = np.exp(2.0)
    table = mean_interval(values, BOOTSTRAP, 0)
    covered = ((table["low"] <= truth) & (truth <= table["high"])).mean()
    low, high = interval(sample_draws(512, 400, 0).sums(values) / 512, 0.95)
    by_percentiles = ((low <= truth) & (truth <= high)).mean()
    assert by_percentiles < 0.90
    assert covered >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "uniform", "exponential"])
def test_light_tails_are_covered_as_often_as_said_and_not_much_longer(name):
    rng = np.random.default_rng(3)
    values, truth = {
        "normal": (rng.normal(size=(300, 600)), 0.0),
        "uniform": (rng.random((300, 600)), 0.5),
        "exponential": (rng.exponential(size=(300, 600)), 1.0),
    }[name]
    table = mean_interval(values, BOOTSTRAP, 0)
    assert 0.925 <= ((table["low"] <= truth) & (truth <= table["high"])).mean() <= 0.985
    plain = 2 * 1.96 * values.std(0) / np.sqrt(300)
    assert ((table["high"] - table["low"]) / plain).median() < 1.3


def test_ratios_of_heavy_tailed_pairs_are_covered_where_percentiles_are_not():
    """A log-normal of σ = 2 over its fourth root: correlated, and one tail far heavier."""
    first = lognormal(512, 400, 2.0, seed=5)
    second, truth = first**0.25, 2.0 - 0.125
    table = paired_log_ratio(first, second, BOOTSTRAP, 0)
    draws = sample_draws(512, 400, 0)
    low, high = interval(np.log(draws.sums(first) / draws.sums(second)), 0.95)
    assert ((low <= truth) & (high >= truth)).mean() < 0.9
    assert ((table["low"] <= truth) & (table["high"] >= truth)).mean() >= 0.93


@pytest.mark.slow
def test_signed_heavy_tails_are_covered_where_percentiles_are_not():
    values = lognormal(512, 400, 2.0, seed=8) - lognormal(512, 400, 2.0, seed=9)
    table = mean_interval(values, BOOTSTRAP, 0)
    assert ((table["low"] <= 0) & (table["high"] >= 0)).mean() >= 0.93
    values = lognormal(512, 400, 2.0, seed=8) - 1
    table, truth = mean_interval(values, BOOTSTRAP, 0), np.exp(2.0) - 1
    low, high = interval(sample_draws(512, 400, 0).sums(values) / 512, 0.95)
    assert ((low <= truth) & (high >= truth)).mean() < 0.9
    assert ((table["low"] <= truth) & (table["high"] >= truth)).mean() >= 0.93


def test_quantiles_of_what_is_known_are_numpys_to_the_last_bit():
    rng = np.random.default_rng(0)
    for number in (1, 2, 7, 200):
        draws = rng.standard_normal((number, 40)) * 10.0 ** rng.integers(-300, 300, 40)
        draws[rng.random(draws.shape) < rng.random(40)] = np.nan
        draws[:, 0] = np.nan
        with warnings.catch_warnings(action="ignore"):  # a column without values
            expected = np.nanquantile(draws, [0.025, 0.5, 0.975], axis=0)
        found = known_quantiles(draws, [0.025, 0.5, 0.975])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("confidence", [0.5, 0.625, 0.9, 0.95])  # the first two meet a tie
def test_a_medians_interval_ends_at_the_ranks_of_the_binomial_distribution(confidence):
    for number in (1, 2, 3, 5, 6, 20, 201, 1024):
        values = np.arange(1.0, number + 1)[:, None]
        (row,) = median_interval(values, BootstrapConfig(confidence=confidence)).itertuples()
        rank = max(1, int(stats.binom.ppf((1 - confidence) / 2, number, 0.5)))
        assert (row.median_low, row.median_high) == (rank, number + 1 - rank)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_intervals_of_a_few_seeds_miss_as_often_on_either_side_as_they_say(number):
    """The upper limit was cut at the largest seed, which 25 % of the means of two lie beyond."""
    values = 5 + np.random.default_rng(number).standard_normal((number, 4000))
    table = mean_interval(values, BOOTSTRAP, 0)
    assert (table["high"] < 5).mean() < 0.035
    assert (table["low"] > 5).mean() < 0.042  # the log scale moves a little to this side
