import numpy as np
import pandas as pd
import pytest
import torch

from incontext_linear.comparison import curves
from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.comparison.curves import (
    describe_nearest,
    ilwd_curves,
    predict_with_baselines,
    risk_curves,
    spd_curves,
)
from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.predictors import Baselines, GradientDescent, OrdinaryLeastSquares
from incontext_linear.tables import LEARNER
from incontext_linear.tasks import draw_prompts

TASK = TaskConfig(dim=2, num_examples=7)
CONFIG = ComparisonConfig(bootstrap=BootstrapConfig(num_resamples=20))
PROMPTS = draw_prompts(TASK, 30, seed=0)._asdict()
BASELINES = Baselines(
    ols={"type": "OrdinaryLeastSquares"},
    wild={"type": "GradientDescent", "step_size": 9.0, "num_steps": 30},
    gone=None,
)


@pytest.fixture(scope="module")
def learner():
    predictions = OrdinaryLeastSquares()(PROMPTS["xs"], PROMPTS["ys"])
    return {LEARNER: predictions}


@pytest.fixture(scope="module")
def others():
    return predict_with_baselines(PROMPTS, BASELINES, TASK)


def test_curves_are_means_over_prompts_of_what_each_predictor_gets_wrong(learner, others):
    spd = spd_curves(learner, others, PROMPTS, CONFIG, 0)
    risk = risk_curves(learner, others, PROMPTS, CONFIG, 0)
    xs, ys = (PROMPTS[name].double() for name in ("xs", "ys"))
    wild, own = GradientDescent(9.0, 30)(xs, ys), OrdinaryLeastSquares()(xs, ys)
    expected = (wild - own).square().mean(0)[3].item()
    row = spd.query("predictor == 'wild' and examples_seen == 3")["mean"].item()
    assert row == pytest.approx(expected, rel=1e-5)
    missed = (own - ys).square().mean(0)[1].item()
    row = risk.query("predictor == @LEARNER and examples_seen == 1")["mean"].item()
    assert row == pytest.approx(missed, rel=1e-4)
    assert set(risk["predictor"]) == {LEARNER, "ols", "wild"}


def test_what_grows_beyond_all_size_is_marked_as_diverged_where_it_does(learner, others):
    for table in (
        spd_curves(learner, others, PROMPTS, CONFIG, 0),
        risk_curves(learner, others, PROMPTS, CONFIG, 0),
    ):
        diverged = table.set_index(["predictor", "examples_seen"])["diverged"]
        assert not diverged["ols"].any()
        assert not diverged["wild", 0]
        assert diverged["wild", 6]


def test_a_difference_that_is_not_a_number_has_diverged(learner, others):
    broken = others | {"ols": torch.full_like(others["ols"], float("nan"))}
    table = spd_curves(learner, broken, PROMPTS, CONFIG, 0)
    assert table.loc[table["predictor"] == "ols", "diverged"].all()


def test_weights_are_compared_of_those_baselines_only_that_were_not_taken_away():
    weights = torch.zeros(30, 7, 2)
    given = {"ols": weights, "wild": 1e9 + weights, "old": weights}
    table = ilwd_curves({"weights": weights}, given, BASELINES, PROMPTS, CONFIG, 0)
    assert list(dict.fromkeys(table["predictor"])) == ["ols", "wild"]
    assert table.groupby("predictor")["diverged"].all().to_dict() == {"ols": False, "wild": True}


def test_weights_of_other_baselines_are_refused():
    with pytest.raises(ValueError, match=r"\['wild'\] have no saved weights"):
        ilwd_curves({}, {"ols": torch.zeros(1)}, BASELINES, PROMPTS, CONFIG, 0)


def table_of(means):
    """SPDs at k = 3, 4 = 2d and 6; everything but k = 4 is there to be left out."""
    rows = [(name, k, mean if k == 4 else 1e-9) for name, mean in means.items() for k in (3, 4, 6)]
    table = pd.DataFrame(rows, columns=["predictor", "examples_seen", "mean"])
    return table.assign(low=table["mean"] / 2, high=table["mean"] * 2)


def test_the_answer_names_the_nearest_algorithms_at_twice_the_dimension():
    variance = PROMPTS["ys"][:, 4].double().square().mean().item()
    spd = table_of({"far": variance, "second": 0.04 * variance, "first": 0.02 * variance})
    says = describe_nearest(spd, PROMPTS)
    assert says.startswith(
        "After 4 examples (k = 2d) the learner is nearest to first (2 % of the labels' mean square "
        "[1 %, 4 %]), then second (4 %"
    )


def test_the_nearest_of_algorithms_that_are_all_far_is_not_called_near():
    variance = PROMPTS["ys"].double().square().mean().item()
    says = describe_nearest(table_of({"far": variance, "farther": 2 * variance}), PROMPTS)
    assert "near none of the algorithms: nearest, but not near, is far (" in says
    assert "farther" not in says


def test_prompts_shorter_than_twice_the_dimension_are_answered_at_their_last_prefix():
    short = {name: values[:, :4] if name != "ws" else values for name, values in PROMPTS.items()}
    spd = table_of({"a": 0.0}).replace({"examples_seen": {4: 9}})
    assert describe_nearest(spd, short).startswith("After 3 examples the learner is nearest to a")


def test_an_untrained_learner_is_nearest_to_predicting_zero():
    baselines = Baselines(
        zero={"type": "FirstExamples", "num_examples": 0},
        gd_1={"type": "GradientDescent", "step_size": 0.02, "num_steps": 1},
    )
    nothing = {LEARNER: 1e-3 * torch.randn(30, 7)}
    spd = spd_curves(nothing, predict_with_baselines(PROMPTS, baselines, TASK), PROMPTS, CONFIG, 0)
    assert "nearest to zero" in describe_nearest(spd, PROMPTS)
    assert np.isfinite(spd["mean"]).all()


def test_prompts_taken_in_parts_get_the_predictions_of_all_at_once(others, monkeypatch):
    monkeypatch.setattr(curves, "PROMPTS_AT_ONCE", 7)
    parts = predict_with_baselines(PROMPTS, BASELINES, TASK)
    assert list(parts) == list(others) == ["ols", "wild"]
    for name, values in others.items():
        torch.testing.assert_close(parts[name], values)
