"""The probes and interventions on a network whose algorithm is known: what they must find, and
where.

Gradient descent by construction: layer 1 fetches x, layer 2 makes the products, layer 3 sums them
in every column, each further layer takes a step, and the last one reads wᵀx.
"""

import pytest
import torch

from incontext_linear.config import DataGenerationConfig, TaskConfig
from incontext_linear.pipelines.data_generation.nodes import draw_probing_prompts
from incontext_linear.pipelines.probing import nodes
from incontext_linear.predictors import GradientDescent
from incontext_linear.probing.config import ProbingConfig

STEP_SIZE, NUM_STEPS = 0.03, 4
LAST = NUM_STEPS + 4
TASK = TaskConfig(dim=2, num_examples=8)
PROBING = ProbingConfig(
    num_seeds=1,
    num_steps=400,
    batch_size=128,
    learning_rate=1e-2,
    layers=(0, 1),  # of a learner; a constructed network is probed in all of its own
    calibration_steps=NUM_STEPS,
    gradient_step_size=STEP_SIZE,
    gradient_steps=(1, 2, 4, 8, 16),
    num_resamples=100,
)


@pytest.fixture(scope="module")
def prompts():
    return draw_probing_prompts(TASK, DataGenerationConfig(num_probing_prompts=1000), seed=0)


@pytest.fixture(scope="module")
def constructed():
    return nodes.construct_learner(TASK, PROBING)


@pytest.fixture(scope="module")
def probed(constructed, prompts):
    return nodes.train_calibration_probes(constructed, prompts, PROBING, "cpu", 0)


@pytest.fixture(scope="module")
def scores(constructed, probed):
    table = nodes.score_calibration(probed[0], constructed, PROBING, 0)
    return table.pivot(index="layer", columns="target", values="squared_error")


@pytest.fixture(scope="module")
def moved(constructed, prompts, probed):
    table = nodes.calibrate_interventions(constructed, prompts, probed[1], PROBING, "cpu", 0)
    return table.set_index(["method", "target", "layer"])[["fraction", "distance"]].sort_index()


def test_the_constructed_learner_takes_steps_of_gradient_descent(constructed, prompts):
    reference = GradientDescent(STEP_SIZE, NUM_STEPS)(prompts["xs"], prompts["ys"])
    with torch.no_grad():
        missed = constructed.model(prompts["xs"], prompts["ys"]) - reference
    assert missed.square().mean() < 1e-4 * reference.square().mean()


def test_probes_read_the_moment_from_the_layer_of_the_products_on(scores):
    assert (scores.loc[:1, "moment"] > 0.8).all()
    assert (scores.loc[2:, "moment"] < 0.05).all()


def test_probes_read_more_of_the_weights_with_every_step(scores):
    steps = scores.loc[3 : LAST - 1, "least_squares"]
    assert (scores.loc[:1, "least_squares"] > 0.8).all()
    assert steps.iloc[-1] < 0.8 * steps.iloc[0]
    assert (steps.diff().dropna() < 0.02).all()


def test_scores_name_what_each_layer_computes(constructed, probed):
    table = nodes.score_calibration(probed[0], constructed, PROBING, 0)
    lines = table.drop_duplicates("layer").set_index("layer")["line"]
    assert set(table["source"]) == {"constructed_learner"}
    assert (lines[0], lines[3], lines[LAST]) == ("embedding", "XᵀX, Xᵀy", "wᵀx")


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
    constructed, prompts
):
    """It reads one token linearly, and w and x, both there, are not multiplied before."""
    steps = nodes.calibrate_progress(constructed, prompts, PROBING, "cpu", 0)
    descent = steps[steps["algorithm"] == "gradient_descent"].set_index("layer")["nearest_steps"]
    assert (descent.loc[: LAST - 1] == 1).all()
    assert descent.loc[LAST] >= NUM_STEPS


@pytest.mark.parametrize(("inputs", "warned"), [("normal", False), ("normal*10", True)])
def test_a_network_that_is_no_gradient_descent_on_these_prompts_tells_nothing(
    inputs, warned, caplog
):
    task = TaskConfig(dim=2, num_examples=8, inputs=inputs)
    drawn = draw_probing_prompts(task, DataGenerationConfig(num_probing_prompts=64), seed=0)
    probing = PROBING.model_copy(update={"num_steps": 2})
    nodes.train_calibration_probes(nodes.construct_learner(task, probing), drawn, probing, "cpu", 0)
    assert ("the calibration tells nothing" in caplog.text) is warned


def test_probes_of_other_prompts_are_not_used_for_interventions(constructed, prompts, probed):
    other = {"xs": prompts["xs"].flip(-1) + 1, "ys": prompts["ys"]}
    with pytest.raises(ValueError, match=r"another learner or of other prompts; make them with"):
        nodes.calibrate_interventions(constructed, other, probed[1], PROBING, "cpu", 0)
