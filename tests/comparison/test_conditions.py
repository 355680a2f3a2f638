"""Distances, separations and structure against what they are by hand."""

import numpy as np
import pytest
import torch

from incontext_linear.comparison.conditions import (
    HOME,
    Joined,
    answerable,
    as_candidate,
    build_condition,
    build_conditions,
    contexts,
    measure_conditions,
    measure_structure,
)
from incontext_linear.comparison.divergence import predict_queries
from incontext_linear.comparison.shifts import (
    InputScale,
    PromptLength,
    QueryScale,
    SeenQuery,
    build_shifts,
)
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.predictors import GradientDescent, OnePassSGD, OrdinaryLeastSquares, Ridge
from incontext_linear.tasks import draw_prompts

SHIFTS = build_shifts({"input_scale": (0.5, 1.0, 2.0), "query_scale": (1.0, 3.0)})
SETTINGS = (0.9, 50, 0)


def exactly(predictor):
    """A candidate in float64."""
    return lambda p: predictor(p.xs, p.ys)[:, list(p.examples_seen)]


CANDIDATES = {
    "ols": exactly(OrdinaryLeastSquares()),
    "ridge": exactly(Ridge(0.5)),
    "sgd": exactly(OnePassSGD(0.05)),
}


@pytest.fixture(scope="module")
def tables(prompts):
    conditions = build_conditions(SHIFTS, prompts, (2, 3, 6), seed=1)
    return conditions, measure_conditions(Ridge(0.2), CANDIDATES, conditions, *SETTINGS)


def test_the_strength_of_home_is_not_measured_twice(tables):
    names = [(condition.shift, condition.strength) for condition in tables[0]]
    assert names[1:] == [("input_scale", 0.5), ("input_scale", 2.0), ("query_scale", 3.0)]
    assert names[0][0] == HOME


def test_distances_are_mean_squares_as_shares_of_the_labels(tables):
    conditions, (distances, _) = tables
    condition = conditions[2]
    part = condition.parts[0]
    xs, ys = part.xs.numpy(), part.ys.numpy()
    for k in (2, 3, 6):
        gram = np.einsum("bki,bkj->bij", xs[:, :k], xs[:, :k])
        moment = np.einsum("bki,bk->bi", xs[:, :k], ys[:, :k])
        ridges = [
            np.einsum(
                "bi,bi->b",
                xs[:, k],
                np.linalg.solve(gram + s * np.eye(3), moment[..., None])[..., 0],
            )
            for s in (0.2, 0.5)
        ]
        scale = np.square(ys[:, [2, 3, 6]]).mean()
        row = distances.query("shift == 'input_scale' and strength == 2 and candidate == 'ridge'")
        row = row[row["examples_seen"] == k].iloc[0]
        assert row["distance"] == pytest.approx(
            np.square(ridges[0] - ridges[1]).mean() / scale, rel=1e-3
        )
        assert row["learner_power"] == pytest.approx(np.square(ridges[0]).mean() / scale, rel=1e-3)
        assert row["low"] <= row["distance"] <= row["high"]


def test_separations_do_not_depend_on_the_order_and_ratios_change_their_sign(tables, prompts):
    conditions, (_, separations) = tables
    turned = dict(reversed(CANDIDATES.items()))
    _, other = measure_conditions(Ridge(0.2), turned, conditions[:2], *SETTINGS)
    keys = ["shift", "strength", "examples_seen"]
    mine = separations.fillna({"strength": 0}).set_index([*keys, "first", "second"])
    theirs = other.fillna({"strength": 0}).set_index([*keys, "second", "first"])
    for index, row in theirs.iterrows():
        assert row["separation"] == pytest.approx(mine.loc[index, "separation"])
        assert row["log_ratio"] == pytest.approx(-mine.loc[index, "log_ratio"])


def test_a_query_shift_changes_the_query_alone(prompts):
    condition = build_condition("query_scale", QueryScale(3.0), prompts, (2, 5), seed=0)
    assert condition.examples_seen == [2, 5]
    answers = condition.ask(as_candidate(GradientDescent(0.01, 3)))
    for column, k in enumerate((2, 5)):
        expected = predict_queries(
            GradientDescent(0.01, 3), prompts.xs, prompts.ys, 3 * prompts.xs[:, [k]]
        )[:, k, 0]
        torch.testing.assert_close(answers[:, column].float(), expected, rtol=1e-4, atol=1e-5)


def test_joined_conditions_are_answered_as_each_alone(prompts):
    shifts = {"input_scale": [InputScale(2.0)], "seen_query": [SeenQuery(1.0)]}
    shifts["query_scale"] = [QueryScale(2.0)]
    conditions = build_conditions(shifts, prompts, (2, 3), seed=0)
    together = Joined.of(conditions).ask(CANDIDATES["sgd"])
    for condition, answer in zip(conditions, together, strict=True):
        assert torch.equal(condition.ask(CANDIDATES["sgd"]), answer)


def test_a_learner_with_positions_is_not_asked_about_longer_prompts(task, prompts):
    learner = Transformer(
        task.dim, task.num_examples, ModelConfig(num_layers=1, width=8, num_heads=1)
    )
    shifts = {"prompt_length": [PromptLength(1.5)], "input_scale": [InputScale(2.0)]}
    conditions = build_conditions(shifts, prompts, (2, 5), seed=0)
    assert conditions[1].examples_seen == [2, 5, 14]
    assert [c.shift for c in answerable(learner, conditions)] == [HOME, "input_scale"]
    assert answerable(Ridge(0.1), conditions) == conditions


def test_contexts_are_multiples_of_the_dimension_within_the_prompt():
    assert contexts(TaskConfig(dim=4, num_examples=10), (0.1, 0.5, 1, 2, 9)) == (1, 2, 4, 8, 9)


def test_what_another_algorithm_explains_is_structure_and_noise_is_not(task):
    prompts = draw_prompts(task, 400, seed=3)
    (home,) = build_conditions({}, prompts, (), seed=0)

    def noisy(xs, ys):
        rng = torch.Generator().manual_seed(len(xs) + int(xs[0, 0, 0] > 0))
        return Ridge(0.5)(xs, ys) + 0.2 * torch.randn(ys.shape, generator=rng)

    def mixed(xs, ys):
        return 0.6 * Ridge(0.5)(xs, ys) + 0.4 * OnePassSGD(0.05)(xs, ys)

    def structured(learner):
        table = measure_structure(learner, CANDIDATES, home, *SETTINGS)
        return table[table["candidate"] == "ridge"].set_index("examples_seen")

    assert structured(noisy)["structured"].abs().max() < 0.003
    blend = structured(mixed).loc[2:]
    assert (blend["low"] > 0).all()


def test_seeds_repeat(prompts):
    once, again = (
        measure_conditions(
            Ridge(0.2), CANDIDATES, build_conditions(SHIFTS, prompts, (2,), seed=1), *SETTINGS
        )
        for _ in range(2)
    )
    for first, second in zip(once, again, strict=True):
        assert first.equals(second)
