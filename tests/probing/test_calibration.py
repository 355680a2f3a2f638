"""The probes and interventions on a network whose algorithm is known: what they must find, and
where.

Gradient descent by construction: layer 1 fetches x, layer 2 makes the products, layer 3 sums them
in every column, each further layer takes a step, and the last one reads wᵀx.
"""

import pytest
import torch

from incontext_linear.config import (
    BootstrapConfig,
    DataGenerationConfig,
    EvaluationConfig,
    TaskConfig,
)
from incontext_linear.pipelines.data_generation.nodes import draw_probing_prompts
from incontext_linear.pipelines.probing.nodes import construct_for_prompts
from incontext_linear.predictors import GradientDescent
from incontext_linear.probing import calibration, collect_hidden_states
from incontext_linear.probing.config import (
    CalibrationConfig,
    FitConfig,
    LayerwiseConfig,
    ProbingConfig,
)
from incontext_linear.probing.interventions import measure_causality

STEP_SIZE, NUM_STEPS = 0.03, 4
LAST = NUM_STEPS + 4
TASK = TaskConfig(dim=2, num_examples=8)
PROBING = ProbingConfig(
    layers=(0, 1),  # of a learner; a constructed network is probed in all of its own
    fit=FitConfig(num_steps=400, batch_size=128, learning_rate=1e-2),
    calibration=CalibrationConfig(num_steps=NUM_STEPS),
    gradient_step_size=STEP_SIZE,
    layerwise=LayerwiseConfig(gradient_steps=(1, 2, 4, 8, 16)),
    bootstrap=BootstrapConfig(num_resamples=100),
)


@pytest.fixture(scope="module")
def prompts():
    return draw_probing_prompts(
        TASK, EvaluationConfig(), DataGenerationConfig(num_probing_prompts=1000), seed=0
    )


@pytest.fixture(scope="module")
def constructed():
    return calibration.construct_learner(TASK, PROBING)


@pytest.fixture(scope="module")
def selection(constructed, prompts):
    return calibration.select_for_calibration(constructed, prompts, PROBING, "cpu", 0)


@pytest.fixture(scope="module")
def hidden(constructed, selection):
    return collect_hidden_states(constructed, selection)


@pytest.fixture(scope="module")
def probed(hidden, constructed, selection):
    return calibration.fit_calibration(hidden, constructed, selection, PROBING, 0)


@pytest.fixture(scope="module")
def scores(constructed, probed):
    table = calibration.score_calibration(probed[0], constructed, PROBING, 0)
    return table.pivot(index="layer", columns="target", values="squared_error")


@pytest.fixture(scope="module")
def moved(constructed, selection, probed):
    table = measure_causality(constructed, selection, probed[1], PROBING, 0)
    names = ["fraction", "distance", "ceiling"]
    return table.set_index(["method", "target", "layer"])[names].sort_index()


def test_the_constructed_learner_takes_steps_of_gradient_descent(constructed, prompts):
    reference = GradientDescent(STEP_SIZE, NUM_STEPS)(prompts["xs"], prompts["ys"])
    with torch.no_grad():
        missed = constructed.model(prompts["xs"], prompts["ys"]) - reference
    assert missed.square().mean() < 1e-4 * reference.square().mean()


@pytest.mark.slow
def test_probes_read_the_moment_from_the_layer_of_the_products_on(scores):
    assert (scores.loc[:1, "moment"] > 0.8).all()
    assert (scores.loc[2:, "moment"] < 0.05).all()


@pytest.mark.slow
def test_probes_read_more_of_the_weights_with_every_step(scores):
    steps = scores.loc[3 : LAST - 1, "least_squares"]
    assert (scores.loc[:1, "least_squares"] > 0.8).all()
    assert steps.iloc[-1] < 0.8 * steps.iloc[0]
    assert (steps.diff().dropna() < 0.02).all()


def test_scores_name_what_each_layer_computes(constructed, probed):
    table = calibration.score_calibration(probed[0], constructed, PROBING, 0)
    lines = table.drop_duplicates("layer").set_index("layer")["line"]
    assert set(table["source"]) == {"constructed_learner"}
    assert (lines[0], lines[3], lines[LAST]) == ("embedding", "XᵀX, Xᵀy", "wᵀx")


@pytest.mark.slow
def test_interchange_of_the_context_decides_until_every_column_has_its_own_sums(moved):
    context = moved.loc["interchange_context", "all"]["fraction"]
    assert context.loc[:2].to_numpy() == pytest.approx(1.0, abs=1e-3)
    assert context.loc[3:].to_numpy() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("target", ["moment", "least_squares"])
def test_a_pattern_edit_moves_the_prediction_where_later_layers_read_what_it_changes(moved, target):
    edited = moved.loc["pattern_edit", target]
    used = edited.loc[2 : LAST - 1]
    assert used["fraction"].between(0.7, 1.4).all()
    assert (used["distance"] < 0.8).all()
    assert edited.loc[LAST, "fraction"] == pytest.approx(0.0, abs=0.05)


def test_the_linear_read_out_of_predictions_sees_no_step_before_the_last_layer(
    hidden, constructed, selection
):
    """It reads one token linearly, and w and x, both there, are not multiplied before."""
    steps = calibration.nearest_calibration_steps(hidden, constructed, selection, PROBING, 0)
    descent = steps[steps["algorithm"] == "gradient_descent"].set_index("layer")["nearest_steps"]
    assert (descent.loc[: LAST - 1] == 1).all()
    assert descent.loc[LAST] >= NUM_STEPS


@pytest.mark.parametrize(("inputs", "warned"), [("normal", False), ("normal*10", True)])
def test_a_network_that_is_no_gradient_descent_on_these_prompts_tells_nothing(
    inputs, warned, caplog
):
    task = TaskConfig(dim=2, num_examples=8, inputs=inputs)
    drawn = draw_probing_prompts(
        task, EvaluationConfig(), DataGenerationConfig(num_probing_prompts=64), seed=0
    )
    network = calibration.construct_learner(task, PROBING)
    calibration.select_for_calibration(network, drawn, PROBING, "cpu", 0)
    assert ("the calibration tells nothing" in caplog.text) is warned


def test_the_network_for_longer_prompts_is_built_for_them():
    """And never for shorter ones than in training, which probes do not read."""
    probing = PROBING.model_copy(update={"gradient_step_size": 0.01})  # descends on 31 examples
    for asked, length in ((4, 8), (32, 32)):
        evaluation = EvaluationConfig(task={"num_examples": asked})
        drawn = draw_probing_prompts(
            TASK, evaluation, DataGenerationConfig(num_probing_prompts=64), seed=0
        )
        network = construct_for_prompts(TASK, evaluation, probing)
        chosen = calibration.select_for_calibration(network, drawn, probing, "cpu", 0)
        assert chosen.context_lengths == [length - 1]
        descent = GradientDescent(0.01, NUM_STEPS)(chosen.xs, chosen.ys)
        torch.testing.assert_close(network.model(chosen.xs, chosen.ys), descent, rtol=0, atol=2e-2)


def test_probes_of_other_prompts_are_not_used_for_interventions(constructed, prompts, probed):
    other = calibration.select_for_calibration(
        constructed, {"xs": -prompts["xs"], "ys": prompts["ys"]}, PROBING, "cpu", 0
    )
    with pytest.raises(ValueError, match=r"another learner or of other prompts; make them with"):
        measure_causality(constructed, other, probed[1], PROBING, 0)


def test_the_ceiling_of_an_edit_is_what_the_probe_reads_of_what_is_still_open(moved, scores):
    for target in ("moment", "least_squares"):
        r_squared = (1 - scores[target]).clip(lower=0)
        still_open = moved.loc["interchange_context", "all"]["fraction"]
        expected = (r_squared * still_open).to_numpy()
        for method in ("minimal_edit", "pattern_edit"):
            ceiling = moved.loc[method, target]["ceiling"]
            assert ceiling.to_numpy() == pytest.approx(expected, abs=2e-3)
        assert moved.loc["pattern_edit_random", target]["ceiling"].isna().all()
        attended = moved.loc["interchange_attended", target]["ceiling"]
        assert attended.to_numpy() == pytest.approx(still_open.to_numpy(), abs=1e-6)
