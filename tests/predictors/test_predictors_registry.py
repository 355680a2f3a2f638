"""From the parameters to predictors, and what a mistake is answered with."""

import dataclasses

import pytest
import torch

from incontext_linear import predictors
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import (
    BayesPosteriorMean,
    DiscreteMMSE,
    FirstExamples,
    GradientDescent,
    IterativeNewton,
    NearestNeighbors,
    OnePassSGD,
    Ridge,
    build_predictor,
    build_predictors,
)
from incontext_linear.tasks import task_pool

TASK = TaskConfig(dim=4, num_examples=6, noise_std=0.5, weights="normal*2", pool_size=16)


class Constant:
    """Someone's own predictor: neither a dataclass nor a LinearPredictor."""

    def __init__(self, value, noise_std):
        self.value, self.noise_std = value, noise_std

    def __call__(self, xs, ys):
        return torch.full_like(ys, self.value)


class Silent:
    """Cannot be called."""


def test_the_parameters_name_every_predictor_and_its_arguments():
    baselines = {
        "ridge_0.1": {"type": "Ridge", "penalty": 0.1},
        "ols": {"type": "OrdinaryLeastSquares"},
        "gd": {"type": "GradientDescent", "step_size": 0.01, "num_steps": 1},
    }
    built = build_predictors(baselines, TASK)
    assert list(built) == ["ridge_0.1", "ols", "gd"]
    assert built["ridge_0.1"] == Ridge(0.1)
    assert built["gd"] == GradientDescent(0.01, 1)


def test_bayes_takes_noise_and_prior_from_the_task_unless_they_are_given():
    assert build_predictor("bayes", {"type": "BayesPosteriorMean"}, TASK) == BayesPosteriorMean(
        0.5, 2.0
    )
    given = {"type": "BayesPosteriorMean", "noise_std": 0.25}
    assert build_predictor("bayes", given, TASK) == BayesPosteriorMean(0.25, 2.0)


def test_discrete_mmse_takes_its_pool_from_the_task():
    built = build_predictor("mmse", {"type": "DiscreteMMSE"}, TASK)
    assert torch.equal(built.task_pool, task_pool(TASK))
    assert built.noise_std == 0.5


def test_a_task_without_a_pool_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"baseline 'mmse': .*pool_size is None"):
        build_predictor("mmse", {"type": "DiscreteMMSE"}, TaskConfig())


def test_a_dotted_path_finds_someones_own_predictor():
    built = build_predictor("mine", {"type": f"{__name__}.Constant", "value": 3.0}, TASK)
    assert isinstance(built, Constant)
    assert (built.value, built.noise_std) == (3.0, 0.5)


@pytest.mark.parametrize(
    "kind", ["Rigde", "no.such.module", "incontext_linear.predictors.Rigde", "", 3]
)
def test_an_unknown_type_is_answered_by_the_list_of_what_exists(kind):
    with pytest.raises(ValueError, match="baseline 'x': ") as error:
        build_predictor("x", {"type": kind}, TASK)
    for signature in (
        "Ridge(penalty)",
        "GradientDescent(step_size, num_steps, penalty=0.0)",
        "Averaging()",
    ):
        assert signature in str(error.value)


@pytest.mark.parametrize("spec", [None, "Ridge", {}, {"penalty": 0.1}])
@pytest.mark.usefixtures("as_users_run_it")
def test_an_entry_without_a_type_is_answered_by_the_list_of_what_exists(spec):
    with pytest.raises(ValueError, match=r"baseline 'x': .* names no type.*Ridge\(penalty\)"):
        build_predictor("x", spec, TASK)


def test_an_unknown_argument_is_answered_by_those_that_exist():
    with pytest.raises(
        ValueError, match=r"baseline 'x': unknown argument 'lamda'; what exists is Ridge\(penalty\)"
    ):
        build_predictor("x", {"type": "Ridge", "lamda": 0.1, "penalty": 1.0}, TASK)


def test_a_missing_argument_is_named():
    with pytest.raises(
        ValueError, match=r"baseline 'x': missing argument 'num_steps'; what exists is Iter"
    ):
        build_predictor("x", {"type": "IterativeNewton"}, TASK)


def test_what_cannot_be_called_is_no_predictor():
    with pytest.raises(ValueError, match="is no predictor"):
        build_predictor("x", {"type": f"{__name__}.Silent"}, TASK)


WRONG = [
    (lambda: Ridge(-1.0), "penalty=-1.0 is not allowed: penalty must be a finite number ≥ 0"),
    (lambda: Ridge(float("nan")), "penalty=nan is not allowed"),
    (lambda: Ridge("0.1"), "penalty='0.1' is not allowed"),
    (lambda: Ridge(True), "penalty=True is not allowed"),
    (lambda: BayesPosteriorMean(-0.1, 1.0), "noise_std=-0.1 is not allowed"),
    (
        lambda: BayesPosteriorMean(0.1, 0.0),
        "prior_std=0.0 is not allowed: prior_std must be a finite number > 0",
    ),
    (lambda: GradientDescent(0.0, 1), "step_size=0.0 is not allowed"),
    (
        lambda: GradientDescent(0.1, 1.5),
        "num_steps=1.5 is not allowed: num_steps must be an integer ≥ 0",
    ),
    (lambda: GradientDescent(0.1, -1), "num_steps=-1 is not allowed"),
    # A run with these would seem to hang, which a campaign of faults found.
    (lambda: GradientDescent(0.1, 10**30), "num_steps must be at most 1,000,000"),
    (lambda: IterativeNewton(10**9), "num_steps must be at most 1,000,000"),
    (
        lambda: FirstExamples(-1),
        "num_examples=-1 is not allowed: num_examples must be an integer ≥ 0",
    ),
    (lambda: OnePassSGD(0.1, float("inf")), "penalty=inf is not allowed"),
    (lambda: IterativeNewton(True), "num_steps=True is not allowed"),
    (
        lambda: NearestNeighbors(0),
        "num_neighbors=0 is not allowed: num_neighbors must be an integer ≥ 1",
    ),
    (
        lambda: NearestNeighbors(3, "cosine"),
        "weights='cosine' is not allowed: weights must be one of 'uniform', 'distance'",
    ),
    (lambda: DiscreteMMSE(torch.zeros(3), 0.1), r"task_pool \(\(3,\)\) must be a tensor \(P, d\)"),
    (lambda: DiscreteMMSE([[1.0]], 0.1), r"task_pool \(list\) must be a tensor \(P, d\)"),
    (lambda: DiscreteMMSE(torch.zeros(0, 3), 0.1), "with P ≥ 1"),
]


@pytest.mark.parametrize(("build", "message"), WRONG)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_value_that_is_not_allowed_is_named_with_what_is(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_wrong_value_in_the_parameters_names_the_baseline():
    with pytest.raises(ValueError, match="baseline 'x': penalty=-1 is not allowed"):
        build_predictor("x", {"type": "Ridge", "penalty": -1}, TASK)


def test_predictors_cannot_be_changed_once_built():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Ridge(0.1).penalty = 0.2


def test_every_public_name_exists():
    assert all(hasattr(predictors, name) for name in predictors.__all__)
