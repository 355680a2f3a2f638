"""Filters of layers, on a constructed network whose layers are known and an untrained learner."""

import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.comparison.filters import (
    FilterConfig,
    draw_filter_prompts,
    learner_weights,
    spectra,
)
from incontext_linear.comparison.filters.layers import (
    LayerFilters,
    layer_filters,
    layer_paths,
    layer_power,
)
from incontext_linear.comparison.filters.readouts import read_weights, split_prompts
from incontext_linear.comparison.filters.states import query_states
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.construction import gradient_descent
from incontext_linear.learner.transformer import Transformer

TASK = TaskConfig(dim=2, num_examples=8)
CONFIG = FilterConfig(num_prompts=200, num_queries=8, num_resamples=50)
STEP_SIZE, NUM_STEPS = 0.02, 4
FIRST = 4  # the layer of the first step: before it, x is fetched, multiplied and summed


@pytest.fixture(scope="module")
def constructed():
    return gradient_descent(2, 8, step_size=STEP_SIZE, num_steps=NUM_STEPS)


@pytest.fixture(scope="module")
def untrained():
    config = ModelConfig(num_layers=2, num_heads=2, width=16)
    return Transformer(2, 8, config).initialize(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found(constructed):
    return layer_filters(constructed, TASK, CONFIG, 0, ("skip", "lens", "labels"))


@pytest.mark.slow
def test_skipping_to_the_last_layer_reads_every_step(found):
    steps = found.parameters.query(
        "readout == 'skip' and family == 'scaled_gradient_descent'"
    ).pivot(index="layer", columns="parameter", values="value")
    assert steps.index.tolist() == list(range(FIRST, FIRST + NUM_STEPS + 1))
    later = steps.loc[
        FIRST + 1 : FIRST + NUM_STEPS - 1
    ]  # of one step α and the scale are one number
    assert later["num_steps"].tolist() == [2, 3, 4]
    np.testing.assert_allclose(later["step_size"], STEP_SIZE, rtol=0.03)
    np.testing.assert_allclose(later["scale"], 1, rtol=0.03)


@pytest.mark.slow
def test_gradient_descent_is_told_from_the_other_families(found):
    scores = found.scores.query("readout == 'skip' and layer > @FIRST").pivot(
        index="layer", columns="family", values="ratio_low"
    )
    assert (scores["scaled_gradient_descent"] <= 1).all()
    assert (scores[["scaled_ridge", "scaled_newton", "scaled_least_squares"]] > 2).all(axis=None)


@pytest.mark.slow
def test_the_lens_sees_nothing_before_the_last_layer(found):
    assert found.scores.query("readout == 'lens'")["layer"].unique().tolist() == [FIRST + NUM_STEPS]


@pytest.mark.slow
def test_a_read_out_fitted_to_labels_runs_ahead(found):
    times = found.parameters.query(
        "family == 'scaled_gradient_flow' and parameter == 'time'"
    ).pivot(index="layer", columns="readout", values="value")
    ahead = times["labels"] / times["skip"]
    assert (ahead.loc[FIRST + 1 : FIRST + 2] > 1.5).all()


@pytest.mark.slow
def test_what_is_new_in_a_layer_is_its_step(found):
    readable = found.readable.query("carrier == 'content' and choice == 'new'")
    readable = readable.set_index(["layer", "family"])
    for step in range(2, NUM_STEPS + 1):
        row = readable.loc[(FIRST + step - 1, "gradient_descent")]
        assert row["value"] == step
        assert row["gain_low"] > 100
        assert row["missed"] < 1e-4
        assert readable.loc[(FIRST + step - 1, "ridge"), "gain"] < row["gain"] / 10


@pytest.mark.slow
def test_the_best_read_filter_does_not_tell_progress(found):
    """Xᵀy, one step, stays in every later layer: the pitfall that `new` avoids."""
    best = found.readable.query(
        "carrier == 'content' and choice == 'best' and family == 'gradient_descent'"
    ).set_index("layer")
    assert (best.loc[FIRST + 1 :, "missed"] < 1e-6).all()
    assert (best.loc[FIRST + 1 :, "value"] == 1).any()


@pytest.mark.slow
def test_steps_grow_linearly_where_they_do(found):
    path = layer_paths(found).set_index(["readout", "quantity"])
    row = path.loc[("skip", "gradient_time")]
    assert row["num_layers"] == NUM_STEPS
    assert row["linear_r2"] > 0.99
    assert row["linear_r2"] > row["log_r2"]


def test_a_penalty_that_halves_doubles_the_ridges_strength():
    layers = np.arange(2, 7)
    shares = pd.DataFrame({"readout": "lens", "layer": layers, "axis": "eigenvalue", "mean": 0.9})
    rows = [
        pd.DataFrame({"family": family, "parameter": parameter, "value": values, "layer": layers})
        for family, parameter, values in (
            ("scaled_ridge", "penalty", 8.0 * 0.5**layers),
            ("scaled_newton", "num_steps", 3.0 + 2 * layers),
            ("scaled_gradient_flow", "time", 0.1 * layers),
        )
    ]
    parameters = pd.concat(rows, ignore_index=True).assign(readout="lens")
    empty = pd.DataFrame()
    path = layer_paths(LayerFilters(empty, shares, empty, parameters, empty, empty))
    path = path.set_index("quantity")
    assert path.loc["ridge_strength", "doublings"] == pytest.approx(1)
    assert path.loc["ridge_strength", "log_r2"] == pytest.approx(1)
    assert path.loc["newton_steps", "linear_r2"] == pytest.approx(1)
    assert path.loc["gradient_time", "linear_r2"] > path.loc["gradient_time", "log_r2"]


@pytest.mark.slow
def test_an_untrained_learner_has_no_filter(untrained):
    tables = layer_filters(untrained, TASK, CONFIG, 0)
    assert (tables.shares["mean"] < 0.1).all()
    assert (tables.readable["missed"] > 0.8).all()
    assert layer_paths(tables).empty


def test_the_last_layer_is_the_learner(untrained):
    prompts = draw_filter_prompts(TASK, CONFIG, 0)
    states = query_states(untrained, prompts, prompts_at_once=64)
    reference = learner_weights(untrained, prompts)
    np.testing.assert_allclose(states.lens[-1], reference, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(states.skip[-1], states.lens[-1])
    np.testing.assert_allclose(states.skip[-2], states.lens[-1], rtol=1e-6, atol=1e-9)


def test_the_embedding_responds_by_the_read_in(untrained):
    prompts = draw_filter_prompts(TASK, CONFIG, 0)
    states = query_states(untrained, prompts)
    weight = untrained.read_in.weight[:, 1:].detach().double().numpy()
    np.testing.assert_allclose(states.response[0], np.broadcast_to(weight, (200, 16, 2)), atol=1e-6)
    np.testing.assert_allclose(states.content[0], 0, atol=1e-6)  # before the context is read
    assert states.curvature[0] < 1e-10 < states.curvature[-1]


def test_a_read_out_is_fitted_to_its_own_prompts_only():
    rng = np.random.default_rng(0)
    features, direction = rng.standard_normal((100, 3, 5)), rng.standard_normal((5, 1))
    targets, split = features @ direction, split_prompts(100, 4)
    spoilt = targets.copy()
    spoilt[split.rest] = 1e3
    read, errors = read_weights(features, spoilt, split)
    np.testing.assert_allclose(read, targets, atol=1e-6)
    assert errors[0] < 1e-9


def test_the_three_parts_of_the_prompts_are_disjoint_and_balanced():
    split = split_prompts(100, 4)
    assert (np.sum(split, axis=0) == 1).all()
    for part in split:
        assert len(set(np.bincount(np.flatnonzero(part) % 4))) == 1


def test_power_is_a_table_a_layer(constructed):
    config = CONFIG.model_copy(update={"noise_factors": (1.0,), "num_plants": 2})
    power = layer_power(constructed, TASK, config, 0)
    assert power["layer"].unique().tolist() == list(range(FIRST, FIRST + NUM_STEPS + 1))
    own = power[power["planted"] == power["family"]]
    assert (own.query("family == 'scaled_newton'")["nearest"] == 1).all()


def test_spectra_do_not_depend_on_the_query(constructed):
    prompts = draw_filter_prompts(TASK, CONFIG, 0)
    other = prompts._replace(xs=torch.cat((prompts.xs[:, :-1], 9 * prompts.xs[:, -1:]), dim=1))
    np.testing.assert_array_equal(spectra(prompts).values, spectra(other).values)
    states = [query_states(constructed, drawn.to(torch.float64)) for drawn in (prompts, other)]
    np.testing.assert_array_equal(states[0].skip, states[1].skip)


def test_bad_arguments_are_named(untrained):
    with pytest.raises(ValueError, match=r"readouts=\('tuned',\) is not allowed; allowed: some of"):
        layer_filters(untrained, TASK, CONFIG, 0, ("tuned",))
    with pytest.raises(ValueError, match="num_queries=3 cannot determine an affine map of dim=2"):
        layer_filters(untrained, TASK, CONFIG.model_copy(update={"num_queries": 3}), 0)
