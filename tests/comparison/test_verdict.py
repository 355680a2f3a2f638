"""Known learners get their own name, others none, and the words say no more than the tables."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.comparison.evidence import Evidence, Thresholds
from incontext_linear.comparison.families import DEFAULT_FAMILIES, Member, build_families
from incontext_linear.comparison.identification import IdentificationConfig, identify
from incontext_linear.comparison.trial import (
    NONE,
    KnownLearner,
    Noisy,
    Switching,
    answer_row,
    confusion_matrix,
    make_zoo,
    summarize,
)
from incontext_linear.comparison.verdict import Verdict, domain_of_validity, over_seeds
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import (
    GradientDescent,
    OnePassSGD,
    OrdinaryLeastSquares,
    Ridge,
)
from incontext_linear.tasks import draw_prompts

LEARNERS = {
    "ridge": Ridge(0.43),
    "least_squares": OrdinaryLeastSquares(),
    "gradient_descent": GradientDescent(0.0071, 9),
}


@pytest.fixture(scope="module")
def found(task, settings):
    """What is found of one of these learners, by its name; each once."""

    @functools.cache
    def identified(name):
        return identify(Noisy(LEARNERS[name], 0.05, seed=1), task, settings, seed=3)

    return identified


@pytest.fixture(scope="module")
def mixture(task, settings):
    learner = Switching(OnePassSGD(0.08), OrdinaryLeastSquares(), 3)
    return identify(Noisy(learner, 0.05, seed=1), task, settings, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_noisy_member_is_named_with_its_number(found, name):
    verdict = found(name).verdict
    assert verdict.named == name
    assert verdict.confident
    assert verdict.words().startswith("Indistinguishable from")
    assert " is least squares" not in verdict.words()
    numbers = verdict.numbers.set_index(["family", "number"])
    if name == "ridge":
        assert (
            numbers.loc[("ridge", "penalty"), "low"]
            < 0.43
            < numbers.loc[("ridge", "penalty"), "high"]
        )


# `make quick` asks about one of them.
@pytest.mark.parametrize(
    "name", ["ridge", *(pytest.param(n, marks=pytest.mark.slow) for n in LEARNERS if n != "ridge")]
)
def test_every_other_candidate_has_evidence_against_it_or_is_said_not_to(found, name):
    verdict = found(name).verdict
    assert set(verdict.ruled_out) | set(verdict.survivors) == set(verdict.members)
    assert not set(verdict.ruled_out) & set(verdict.survivors)
    for evidence in verdict.ruled_out.values():
        assert evidence.low <= evidence.ratio * (1 + 1e-9)
        if evidence.kind == "condition":
            assert evidence.low > verdict.thresholds.ratio
    table = verdict.table().set_index("candidate")
    assert list(table.index[table["survives"]]) == [
        name for name in verdict.members if name in verdict.survivors
    ]


def test_evidence_is_found_in_the_tables(found):
    result = found("ridge")
    evidence = result.verdict.ruled_out["sgd"]
    cells = result.confirmations
    cell = cells[
        (cells["against"] == "sgd")
        & (cells["shift"] == evidence.where)
        & (cells["examples_seen"] == evidence.examples_seen)
        & (
            (cells["strength"] == evidence.strength)
            | (cells["strength"].isna() & math.isnan(evidence.strength))
        )
    ].iloc[0]
    assert evidence.rival == cell["rival"]
    assert math.log(evidence.ratio) == pytest.approx(cell["log_ratio"])
    # Other prompts than those that it was chosen on, and yet alike.
    assert cell["log_ratio"] != cell["chosen_log_ratio"]
    assert cell["low"] < cell["chosen_log_ratio"]


@pytest.mark.slow
def test_a_mixture_of_two_algorithms_is_none_of_these(mixture):
    verdict = mixture.verdict
    assert verdict.named is None
    assert verdict.words().startswith("None of these")


def test_the_domain_ends_at_the_first_strength_that_is_not_explained():
    rows = [("home", float("nan"), 0.0005)]
    rows += [
        ("input_scale", s, d)
        for s, d in ((0.3, 0.2), (0.5, 0.001), (2.0, 0.004), (3.0, 0.5), (4.0, 0.0))
    ]
    distances = pd.DataFrame(
        [
            {
                "shift": shift,
                "strength": s,
                "examples_seen": 3,
                "candidate": "f",
                "distance": d,
                "learner_power": 1.0,
                "explained": 1 - d,
            }
            for shift, s, d in rows
        ]
    )
    domain = domain_of_validity(distances, "f", {"input_scale": 1.0, "absent": 0.0}, 0.99)
    assert len(domain) == 1
    row = domain.iloc[0]
    assert (row["low"], row["high"], row["holds_throughout"]) == (0.5, 2.0, False)
    assert row["least_explained"] == 0.5
    assert row["limit"] == 0.99


def test_numbers_read_as_words_and_not_as_code():
    families = {family.name: family for family in build_families(TaskConfig(dim=2, num_examples=6))}
    member = Member(families["gradient_descent"], {"step_size": 0.00317, "num_steps": 4124})
    assert member.words == "gradient descent (step size = 0.00317, steps = 4,124)"
    labels = {"gradient_descent": member.words}
    evidence = Evidence(
        "sgd", "condition", "input_scale", 3.0, 11, "gradient_descent", 4e6, 9.0, 7e6
    )
    assert evidence.words(labels) == (
        "input scale 3, k = 11: gradient descent is 4·10⁶ [9, 7·10⁶] times nearer"
    )


def made_up(*survivors, near=("ridge", "sgd"), departures=()):
    """A verdict on ridge and SGD; the one that does not survive left the learner under a shift."""
    ruled_out = {
        name: Evidence(name, "condition", "input_scale", 2.0, 3, "", 9.0, 8.0, 10.0)
        for name in ("ridge", "sgd")
        if name not in survivors
    }
    empty = pd.DataFrame()
    members = {"ridge": "ridge regression", "sgd": "one-pass SGD"}
    return Verdict(
        survivors=survivors,
        ruled_out=ruled_out,
        near_home=near,
        nearest_home="ridge",
        members=members,
        numbers=empty,
        domain=empty,
        nobody=(),
        departures=departures,
        separated=1.0,
        explained_at_home=1.0,
        thresholds=Thresholds(),
    )


BOTH, RIDGE, SGD, NOBODY = made_up("ridge", "sgd"), made_up("ridge"), made_up("sgd"), made_up()


def test_over_seeds_survivors_names_and_who_is_near_are_counted_apart():
    table = over_seeds([BOTH, RIDGE, made_up(near=("sgd",))]).set_index("candidate")
    counts = table[["survives", "named", "near_at_home", "seeds"]]
    assert list(counts.loc["ridge"]) == [2, 2, 2, 3]
    assert list(counts.loc["sgd"]) == [1, 0, 3, 3]  # a survivor, but not the simplest


@pytest.mark.parametrize(
    ("truth", "verdict", "strict", "lenient", "wrong"),
    [
        (("ridge",), RIDGE, True, True, False),
        (("least_squares", "ridge"), RIDGE, True, True, False),
        (("sgd",), BOTH, False, True, False),
        (("sgd",), RIDGE, False, False, True),
        (("sgd",), NOBODY, False, False, False),
        ((), NOBODY, True, True, False),
        ((), RIDGE, False, False, True),
    ],
)
def test_an_answer_is_right_strictly_or_leniently_or_names_a_wrong_family(
    truth, verdict, strict, lenient, wrong
):
    row = answer_row(KnownLearner("known", truth, Ridge(1.0), 0.01), verdict)
    assert (row["strict"], row["lenient"], row["wrong"]) == (strict, lenient, wrong)
    assert row["truth"] == (truth[0] if truth else NONE)


def test_an_answer_says_what_ruled_out_the_truth_and_whether_a_shift_speaks_against_it():
    known = KnownLearner("known", ("sgd",), Ridge(1.0), 0.01)
    wrong = answer_row(known, made_up("ridge", departures=(("input_scale", 2.0),)))
    assert "input scale 2" in str(wrong["evidence"])
    assert not wrong["confidently"]
    right = answer_row(known, SGD)
    assert right["evidence"] == ""
    assert right["confidently"]


def test_truths_are_counted_against_the_names_they_were_given():
    given = [("ridge", RIDGE), ("ridge", BOTH), ("ridge", SGD), ("sgd", NOBODY), (None, NOBODY)]
    answers = [
        answer_row(KnownLearner("known", (truth,) if truth else (), Ridge(1.0), 0.01), verdict)
        for truth, verdict in given
    ]
    counts = confusion_matrix(pd.DataFrame(answers))
    assert counts.loc["ridge"].to_dict() == {"ridge": 2, "sgd": 1, NONE: 0}
    for truth in ("sgd", NONE):
        assert counts.loc[truth].to_dict() == {"ridge": 0, "sgd": 0, NONE: 1}
    assert counts.to_numpy().sum() == len(given)


@pytest.mark.slow
def test_over_seeds_it_is_counted_for_how_many(found, mixture):
    table = over_seeds([found("ridge").verdict, found("ridge").verdict, mixture.verdict])
    row = table.set_index("candidate").loc["ridge"]
    assert (row["survives"], row["named"], row["seeds"]) == (2, 2, 3)


@pytest.mark.slow
def test_seeds_repeat_and_others_differ(task, settings):
    one = {name: None for name in DEFAULT_FAMILIES if name not in ("ridge", "zero")}
    fewer = settings.model_copy(
        update={
            "families": one,
            "by_context": (),
            "shifts": {"input_scale": (2.0,)},
            "num_adversarial_pairs": 0,
        }
    )
    tables = [
        identify(Ridge(0.3), task, fewer, seed=seed).distances["distance"] for seed in (0, 0, 1)
    ]
    assert tables[0].equals(tables[1])
    assert not np.allclose(tables[0], tables[2])


def test_settings_are_checked_where_they_enter():
    with pytest.raises(ValueError, match="confidence"):
        IdentificationConfig(confidence=1.5)
    with pytest.raises(ValueError, match="unknown"):
        IdentificationConfig(unknown=1)


def test_zoos_of_two_seeds_have_no_number_in_common(task):
    first, second = make_zoo(task, 1), make_zoo(task, 2)
    assert len(first) >= 24
    assert [learner.name for learner in first] == [learner.name for learner in second]
    assert all(a.noise != b.noise for a, b in zip(first, second, strict=True))
    assert all(1e-4 <= learner.noise <= 1e-2 for learner in first)


def test_noise_has_its_size_and_repeats(task):
    prompts = draw_prompts(task, 400, seed=0)
    noisy = Noisy(Ridge(0.1), 0.3, seed=5)
    residual = noisy(prompts.xs, prompts.ys) - Ridge(0.1)(prompts.xs, prompts.ys)
    assert float(residual.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(residual.mean())) < 0.02
    kept = residual[:, :-1].flatten(), residual[:, 1:].flatten()
    assert abs(np.corrcoef(*kept)[0, 1]) < 0.05
    assert torch.equal(noisy(prompts.xs, prompts.ys), noisy(prompts.xs, prompts.ys))


@pytest.mark.slow
def test_answers_are_counted_strictly_and_leniently(task, found, mixture):
    zoo = {learner.name: learner for learner in make_zoo(task, 1)}
    answers = pd.DataFrame(
        [
            answer_row(zoo["ridge"], found("ridge").verdict),
            answer_row(zoo["SGD"], found("ridge").verdict),
            answer_row(zoo["SGD, then least squares"], mixture.verdict),
            answer_row(zoo["random network"], found("gradient_descent").verdict),
        ]
    )
    assert answers["strict"].tolist() == [True, False, True, False]
    assert answers["wrong"].tolist() == [False, True, False, True]
    counts = summarize(answers)
    assert (counts["strict"], counts["outsiders"], counts["outsiders_recognised"]) == (2, 2, 1)
    assert confusion_matrix(answers).loc[NONE, NONE] == 1
