"""The threshold of task diversity, of made-up learners whose threshold is known.

A learner (1 − a) DiscreteMMSE + a ridge has the preference log(a² / (1 − a)²): with a a logistic
function of log₂ M its sign changes where a = 1/2, and it is linear in log₂ M.
"""

from typing import Any

import numpy as np
import pytest
import torch

from incontext_linear.config import BootstrapConfig, ModelConfig, TaskConfig
from incontext_linear.learner.saved import Learner
from incontext_linear.learner.transformer import Transformer
from incontext_linear.phase_diagram.diversity import (
    DISCRETE,
    LABELS,
    POOL,
    PRIOR,
    RIDGE,
    crossing,
    diversity_table,
    find_threshold,
    measure_learners,
    ridge_of,
    threshold_table,
)
from incontext_linear.predictors import DiscreteMMSE
from incontext_linear.tasks import task_pool

SIZES = (1, 4, 16, 64)
BOOTSTRAP = BootstrapConfig(num_resamples=200)
CONFIG = ModelConfig(num_layers=1, num_heads=1, width=4)


def task(size: int | None) -> TaskConfig:
    return TaskConfig(dim=2, num_examples=5, noise_std=0.5, pool_size=size)


class Mixture(Transformer):
    """Between the two posterior means; the share of ridge is set from outside."""

    share: float
    pooled: TaskConfig
    noise: float = 0.0

    def forward(self, xs, ys):
        ridge = ridge_of(self.pooled)(xs, ys)
        noise = self.noise * torch.sin(50 * xs.sum(-1))
        if self.pooled.pool_size is None:
            return ridge + noise
        pool = task_pool(self.pooled)
        discrete = DiscreteMMSE(pool, self.pooled.noise_std)(xs, ys)
        return (1 - self.share) * discrete + self.share * ridge + noise


def ridge_share(size: int, threshold: float) -> float:
    return float(1 / (1 + np.exp(-0.5 * np.log2(size / threshold))))


def planted(size: int | None, threshold: float, noise: float = 0.0) -> Learner:
    own = task(size)
    model = Mixture(own.dim, own.num_examples, CONFIG)
    model.share, model.pooled = ridge_share(size, threshold) if size else 1.0, own
    model.noise = noise
    return Learner(model, own)


def measure(thresholds, prompts=POOL, sizes=SIZES, noise=0.0):
    learners = {
        (size, seed): planted(size, threshold, noise)
        for size in sizes
        for seed, threshold in enumerate(thresholds)
    }
    return measure_learners(learners, 200, prompts, 0, "cpu")


@pytest.mark.parametrize("prompts", [POOL, PRIOR])
def test_a_planted_threshold_is_found(prompts):
    found = find_threshold(measure([10.0, 10.0], prompts), BOOTSTRAP, 0)
    assert found.pool_size == pytest.approx(10, rel=1e-4)
    assert found.by_seed == pytest.approx([10, 10], rel=1e-4)
    assert found.low == pytest.approx(10, rel=1e-3)  # no spread over seeds, and none over prompts
    assert found.high == pytest.approx(10, rel=1e-3)
    assert found.without == 0


def test_the_interval_covers_what_seeds_differ_by():
    found = find_threshold(measure([5.0, 10.0, 20.0]), BOOTSTRAP, 0)
    assert found.pool_size == pytest.approx(10, rel=1e-3)
    assert found.low < 6
    assert found.high > 17


def test_errors_of_the_learners_own_move_it_little():
    found = find_threshold(measure([10.0, 10.0], noise=0.1), BOOTSTRAP, 0)
    assert found.pool_size == pytest.approx(10, rel=0.2)
    assert found.low < found.pool_size < found.high


def test_where_the_two_posterior_means_become_one_the_sign_says_nothing():
    sizes = np.arange(6.0)
    preference = np.array([-3.0, -1.0, 1.0, -1e-3, 1e-3, -1e-3])
    assert crossing(sizes, preference) == 1.5
    assert np.isnan(crossing(sizes[2:3], preference[2:3]))  # nearer to ridge from the start


def test_a_learner_that_never_leaves_its_pool_has_no_threshold():
    found = find_threshold(measure([1e6, 1e6]), BOOTSTRAP, 0)
    assert np.isnan(found.pool_size)
    assert found.without == 1


def test_the_tables_hold_what_was_planted():
    measured = measure([10.0, 10.0], PRIOR, (4, 16, None))
    table: Any = diversity_table(measured, BOOTSTRAP, 0).set_index(["pool_size", "quantity"])
    share = ridge_share(4, 10.0)
    apart = measured.algorithms[(DISCRETE, RIDGE)][0]
    assert table.loc[(4, DISCRETE), "mean"] == pytest.approx(share**2 * apart, rel=1e-5)
    assert table.loc[(4, RIDGE), "mean"] == pytest.approx((1 - share) ** 2 * apart, rel=1e-5)
    assert table.loc[(4, "preference"), "pool_nearer"] == 2
    assert table.loc[(16, "preference"), "pool_nearer"] == 0
    without = table[table.index.get_level_values(0).isna()].droplevel(0)
    assert np.isnan(without.loc[DISCRETE, "mean"])
    assert without.loc[RIDGE, "mean"] < 1e-10  # without a pool the learner is ridge
    # On the prior, ridge is the Bayes predictor: nobody's risk is lower, and the pool's is higher.
    ridge, discrete = (measured.algorithms[(name, LABELS)][0] for name in (RIDGE, DISCRETE))
    assert ridge < discrete
    thresholds = threshold_table([measured], BOOTSTRAP, 0)
    assert thresholds["threshold"].item() == pytest.approx(10, rel=1e-3)


def test_a_missing_training_is_named():
    learners: dict[tuple[int | None, int], Learner] = {
        (4, 0): planted(4, 10.0),
        (16, 1): planted(16, 10.0),
    }
    with pytest.raises(ValueError, match=r"no learner of pool_size=4, seed=1 \(of 2 missing\)"):
        measure_learners(learners, 8, POOL, 0, "cpu")
    with pytest.raises(ValueError, match="prompts='home' is not known"):
        measure_learners(learners, 8, "home", 0, "cpu")
