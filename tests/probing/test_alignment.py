"""Exchanges do what they say, and the search finds known variables and no others."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.config import BootstrapConfig, ModelConfig, TaskConfig
from incontext_linear.learner import Transformer
from incontext_linear.learner.base import predict_from, residual_streams
from incontext_linear.parameters import Parameters
from incontext_linear.pipelines.alignment.nodes import calibrate_search
from incontext_linear.probing.alignment import align
from incontext_linear.probing.alignment_calibration import (
    build_network,
    calibration_summary,
    held_variables,
)
from incontext_linear.probing.alignment_config import (
    NETWORKS,
    AlignmentConfig,
    RuleConfig,
    SearchConfig,
)
from incontext_linear.probing.alignment_controls import (
    natural_span,
    random_bases,
    split_bases,
    unnaturalness,
)
from incontext_linear.probing.alignment_rule import candidates, decide
from incontext_linear.probing.alignment_scores import AnswerFit, Counterfactuals, Scale, share_table
from incontext_linear.probing.exchange import (
    POSITIONS,
    PromptPairs,
    exchange,
    frozen,
    layer_pairs,
    positions_mask,
    prompt_of,
)
from incontext_linear.tasks import generator

TASK = TaskConfig(dim=2, num_examples=6)
FEW = BootstrapConfig(num_resamples=50)


@pytest.fixture(scope="module")
def learner() -> Any:
    model = Transformer(2, 6, ModelConfig(num_layers=3, num_heads=2, width=16))
    return model.initialize(generator(0, "test")).eval()


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    return PromptPairs.draw(TASK, 7, 4, 0, "test")


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_an_exchange_is_the_change_of_states_at_its_positions(
    learner: Any, pairs: PromptPairs, positions: str, layer: int
):
    states = list(layer_pairs(frozen(learner), pairs))[layer]
    basis = random_bases(3, torch.eye(16), 2, generator(1, "bases"))
    answers = exchange(learner, states, positions, basis)
    recipient, donor = (
        dict(residual_streams(learner, *prompt_of(part)))[layer]
        for part in (pairs.recipient, pairs.donor)
    )
    mask = positions_mask(positions, 9)
    for row, columns in zip(answers, basis, strict=True):
        edited = recipient.clone()
        edited[:, mask] += (donor - recipient)[:, mask] @ columns @ columns.T
        expected = predict_from(learner, edited, layer)[:, -1]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_no_direction_changes_nothing_and_all_of_them_give_the_donors_answer(
    learner: Any, pairs: PromptPairs
):
    for states in layer_pairs(frozen(learner), pairs):
        nothing = exchange(learner, states, "context", torch.zeros(1, 16, 1))[0]
        torch.testing.assert_close(nothing, states.unchanged, rtol=1e-4, atol=1e-5)
    whole = exchange(learner, next(layer_pairs(learner, pairs)), "context", torch.eye(16)[None])
    donors = prompt_of(pairs.donor._replace(query=pairs.recipient.query))
    torch.testing.assert_close(whole[0], learner(*donors)[:, -1], rtol=1e-4, atol=1e-5)


def known(seed: int, number: int = 400) -> Counterfactuals:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(3, number, generator=rng)
    return Counterfactuals(("a", "b"), values[:2], values[2])


def shares(answers, train: Counterfactuals, test: Counterfactuals) -> pd.Series:
    fit = AnswerFit.fit("a", answers(train), train)
    terms = [Scale.fit("a", train).terms(answers(test), fit, test)]
    return share_table(terms, 0.02, FEW, 0).iloc[0]


def test_shares_of_answers_whose_shares_are_known():
    train, test = known(0), known(1)
    exact = shares(lambda pairs: pairs["a"], train, test)
    assert exact["share"] == pytest.approx(1)
    assert exact["specific"] == pytest.approx(1)
    few = Counterfactuals(train.names, train.values[:, :8], train.unchanged[:8])
    assert shares(lambda pairs: pairs["a"], few, test)["specific"] == pytest.approx(1)
    destroyed = shares(lambda pairs: torch.zeros_like(pairs["a"]), train, test)
    assert abs(destroyed["share"]) < 0.05  # no credit for breaking the answer
    assert destroyed["specific"] == pytest.approx(0, abs=0.05)
    unmoved = shares(lambda pairs: pairs.unchanged, train, test)
    assert unmoved["share"] < -0.5
    assert unmoved["left"] == pytest.approx(1)
    rival = shares(lambda pairs: pairs["b"], train, test)
    assert rival["specific"] == pytest.approx(0, abs=0.05)
    half = shares(lambda pairs: 0.5 * pairs["a"] + pairs["b"], train, test)
    assert half["specific"] == pytest.approx(0.75, abs=0.05)
    assert half["low"] < half["share"] < half["high"]


def test_a_counterfactual_that_a_rival_predicts_has_no_specificity():
    train, test = known(2), known(3)
    same = [
        Counterfactuals(("a", "b"), torch.stack((part["a"], 2 * part["a"])), part.unchanged)
        for part in (train, test)
    ]
    row = shares(lambda pairs: pairs["a"], *same)
    assert row["unique"] < 1e-6
    assert np.isnan(row["specific"])
    assert row["share"] == pytest.approx(1)


def test_a_dormant_direction_is_split_off():
    read = torch.eye(4)[:, :2]
    illusory = torch.tensor([[[1.0], [0], [1], [0]]]) / 2**0.5
    readable, dormant = split_bases(illusory, read)
    torch.testing.assert_close(readable.abs()[0, :, 0], torch.eye(4)[0])
    torch.testing.assert_close(dormant.abs()[0, :, 0], torch.eye(4)[2])
    inside, nothing = split_bases(read[None], read)
    torch.testing.assert_close(inside @ inside.mT, (read @ read.T)[None])
    assert not nothing.any()


def test_states_exchanged_whole_are_as_natural_as_any(learner: Any):
    pairs = PromptPairs.draw(TASK, 200, 4, 0, "natural")
    states = list(layer_pairs(frozen(learner), pairs))[1]
    whole = torch.eye(16)[None]
    far = unnaturalness(states.recipient, states, "y_tokens", torch.cat((whole, 3 * whole)))
    assert far[0] == pytest.approx(1, abs=0.1)
    assert far[1] > 3  # beyond the donor: far from every natural state


@pytest.mark.parametrize("name", NETWORKS)
def test_constructed_networks_are_the_algorithms_that_they_are_said_to_be(name: str):
    built, _, task, algorithm = build_network(name, seed=3)
    model: Any = built
    pairs = PromptPairs.draw(task, 5, task.num_examples - 1, 0, "network", torch.float64)
    recipient = pairs.recipient
    weights = algorithm.build().solve(recipient.gram, recipient.moment)
    answers = model(*prompt_of(recipient))[:, -1]
    torch.testing.assert_close(answers, (recipient.query * weights).sum(-1), rtol=1e-4, atol=1e-4)
    hidden = model.embed(*prompt_of(recipient))
    torch.testing.assert_close(predict_from(model, hidden, 0)[:, -1], answers, rtol=1e-4, atol=1e-4)
    assert build_network(name, seed=4)[3] != algorithm


def test_the_rotated_networks_short_cut_for_the_query_changes_no_answer():
    network, _, task, _ = build_network("rotated")
    pairs = PromptPairs.draw(task, 5, 4, 0, "short cut", torch.float64)
    states = list(layer_pairs(frozen(network), pairs))[3]
    span = natural_span(states, "query")
    (short,) = exchange(frozen(network), states, "query", span[None, :, :3])
    edited = states.recipient.clone()
    change = (states.donor - states.recipient)[:, -1]
    edited[:, -1] += change @ span[:, :3] @ span[:, :3].mT
    torch.testing.assert_close(short, predict_from(frozen(network), edited, 3)[:, -1])


@pytest.mark.slow
def test_registers_say_what_gradient_descent_holds_where():
    config = AlignmentConfig(positions=("query", "y_tokens"))
    held = held_variables("gradient_descent", config, num_pairs=32)
    truth = {
        (row.layer, row.positions, row.model): (row.truth, row.registers, row.rows_rank)
        for row in held.itertuples()
    }
    assert truth[2, "y_tokens", "moment"] == ("held", "moment", 2)  # before the sums are taken
    assert truth[2, "y_tokens", "gram"] == ("held", "gram", 3)
    assert truth[3, "query", "moment"][0::2] == ("held", 2)
    assert truth[4, "query", "moment"] == ("held", "w", 2)  # Xᵀy times a number, as is w₁
    assert truth[3, "query", "weights"][0::2] == ("held", 5)  # XᵀX and Xᵀy
    assert truth[5, "query", "iterate"] == ("held", "w", 2)
    assert truth[7, "query", "weights"][::2] == ("held", 2)
    assert truth[8, "query", "answer"] == ("held", "prediction", 1)
    assert truth[3, "query", "answer"][0] == "whole"
    assert truth[5, "y_tokens", "iterate"][0] == "absent"  # every token descends on its own


def test_the_iterate_after_one_step_goes_along_with_the_moment():
    pairs = PromptPairs.draw(TaskConfig(dim=2, num_examples=5), 64, 4, 0, "one", torch.float64)
    network, *_ = build_network("gradient_descent")
    states = list(layer_pairs(frozen(network), pairs))
    assert [natural_span(states[layer], "query").shape[1] for layer in (3, 4, 5)] == [7, 7, 9]


def test_ranks_from_the_span_on_are_one_and_only_what_has_a_share_has_parts(learner: Any):
    config = AlignmentConfig(
        models=("labels", "weights"),
        layers=(0, 1),
        positions=("y_tokens",),
        ranks=(1, 2, 3),
        num_train_pairs=64,
        num_validation_pairs=16,
        num_test_pairs=32,
        search=SearchConfig(gradient_steps=2, gradient_batch=8, num_steps=2, batch_size=16),
        bootstrap=FEW,
    )
    table = align(learner, TASK, config, 0)
    embedded = table[table["layer"] == 0]  # y-tokens vary in one direction there
    shown = ["share", "specific_low", "random", "unnatural"]
    for _, rows in embedded.groupby("model"):
        assert (rows[shown].nunique() == 1).all()
        assert np.allclose(rows["share"], rows["whole_states"], atol=1e-5)
        assert np.allclose(rows["random"], rows["share"], atol=1e-5)
    assert (table["read"].isna() == (table["share"] <= 0)).all()


def test_shuffled_counterfactuals_are_followed_by_no_subspace(learner: Any):
    config = AlignmentConfig(
        layers=(1,),
        positions=("query",),
        models=("answer", "weights"),
        ranks=(2,),
        num_train_pairs=128,
        num_validation_pairs=32,
        num_test_pairs=128,
        search=SearchConfig(num_steps=3, random_starts=1),
        bootstrap=FEW,
    )
    cells = {(1, "query", "answer")}
    table = align(learner, TASK, config, 0, cells, shuffle=True)
    assert list(table["model"]) == ["answer"]
    assert table["share"].item() < 0.2


def rows(**changes) -> dict:
    good = {"source": "learner", "layer": 1, "positions": "query", "model": "a", "rank": 1}
    good |= {"searched": True, "share": 0.95, "low": 0.9, "high": 1.0, "specific": 0.9}
    good |= {"specific_low": 0.8, "ceiling": 1.0, "random": 0.1, "read": 0.95, "dormant": 0.0}
    return (
        good
        | {"left": 0.1, "whole_states": 1.0, "unnatural": 1.0, "changed": 1.0}
        | {"unique": 0.5}
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "found"),
        ({"share": 0.85}, "not found"),
        ({"share": 0.85, "ceiling": 0.9}, "found"),
        ({"share": 0.85, "ceiling": float("nan")}, "not found"),
        ({"specific_low": 0.4}, "not found"),
        ({"random": 0.6}, "not found"),
        ({"read": 0.5}, "not found"),
        ({"share": 0.2, "ceiling": 0.3}, "cannot be asked"),
        ({"specific_low": float("nan"), "unique": 0.001}, "not told apart"),
        ({"searched": False}, "not read"),
    ],
)
def test_each_condition_of_the_rule_decides(changes: dict, verdict: str):
    table = pd.DataFrame([rows(**changes)])
    assert decide(table, RuleConfig())["verdict"].item() == verdict
    assert bool(candidates(table, RuleConfig())) is (verdict == "found")


def test_a_control_that_follows_too_takes_the_find_away_and_the_smallest_rank_is_named():
    own = [rows(rank=3), rows(rank=1, share=0.5), rows(rank=9)]
    table = pd.DataFrame([*own, rows(source="untrained_learner", rank=9, share=0.1)])
    assert decide(table, RuleConfig())["rank"].item() == 3
    control = rows(source="untrained_learner", rank=3, share=0.6)
    table = pd.DataFrame([*own[:2], control])
    assert decide(table, RuleConfig())["verdict"].item() == "not found"


def test_the_summary_counts_finds_by_what_is_true():
    table = pd.DataFrame(
        {
            "network": "n",
            "seed": 1,
            "truth": ["held", "held", "absent", "whole"],
            "verdict": ["found", "not found", "found", "not found"],
            "rank": [2, 5, 1, 1],
            "rows_rank": [2, 2, 3, 1],
        }
    )
    counts = calibration_summary(table).iloc[0]
    assert counts[["held", "held_found", "absent", "absent_found"]].tolist() == [2, 1, 1, 1]
    assert counts[["whole", "whole_found", "inseparable", "right_rank"]].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"models": ["weights", "momentum"]}, "unknown causal model 'momentum'"),
        ({"positions": ["z_tokens"]}, "unknown positions 'z_tokens'"),
        ({"readings": {"gradient_steps": [4, 1]}}, "ascending numbers"),
    ],
)
def test_wrong_parameters_are_refused(given: dict, says: str):
    with pytest.raises(ValueError, match=says):
        AlignmentConfig.model_validate(given)


def test_parameters_have_the_branch():
    assert Parameters.model_fields["alignment"].annotation is AlignmentConfig
    with pytest.raises(ValueError, match="6 examples leave no query; allowed: 1 to 5"):
        AlignmentConfig(examples_seen=6).examples_for(2, 6)


def test_without_networks_there_is_no_calibration():
    table, summary = calibrate_search(AlignmentConfig(calibration=()))
    assert len(table) == len(summary) == 0
    assert calibration_summary(table)["held_found"].sum() == 0
