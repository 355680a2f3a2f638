"""Means over seeds: planted spreads come back in the intervals, whatever is missing."""

import numpy as np
import pandas as pd
import pytest

from incontext_linear.config import BootstrapConfig
from incontext_linear.phase_diagram.across_seeds.measures import Values, read_measures
from incontext_linear.phase_diagram.across_seeds.summary import describe_seeds, summarize_seeds

BOOTSTRAP = BootstrapConfig(num_resamples=400)


def planted(
    seeds: int, spread: float, noise: float, prompts: int = 200, shift: float = 5.0
) -> dict[int, list[Values]]:
    """Learners whose means differ by ``spread``, and prompts within each by ``noise``."""
    rng = np.random.default_rng(0)
    index = pd.DataFrame({"series": ["a", "a", "b"], "position": [1, 2, 1]})
    return {
        seed: [
            Values(
                "SPD",
                index,
                shift + spread * rng.normal() + noise * rng.normal(size=(prompts, 3)),
            )
        ]
        for seed in range(seeds)
    }


def width(table: pd.DataFrame) -> float:
    return float((table["high"] - table["low"]).mean())


def test_the_interval_holds_the_spread_between_seeds_and_not_only_that_of_prompts():
    agree, _ = summarize_seeds(planted(8, 0.0, 1.0), BOOTSTRAP, 0)
    differ, _ = summarize_seeds(planted(8, 1.0, 1.0), BOOTSTRAP, 0)
    alone, _ = summarize_seeds(planted(1, 1.0, 1.0, prompts=1600), BOOTSTRAP, 0)
    assert width(differ) > 4 * width(agree)
    # 1,600 prompts in all, whoever answers them: 2 * 1.96 / 40 = 0.098, longer for eight seeds.
    assert width(alone) == pytest.approx(0.098, rel=0.15)
    assert 0.098 < width(agree) < 0.25
    assert set(differ["over"]) == {"seeds and prompts"}
    assert set(alone["over"]) == {"prompts"}
    assert alone["sd"].isna().all()
    # Student's interval over the eight means, which holds both spreads, by an independent formula.
    assert width(differ) == pytest.approx(2 * 2.365 * float(differ["sd"].mean()) / 8**0.5, rel=0.3)


def test_means_and_deviations_are_those_of_the_seeds_own_means():
    learners = planted(4, 1.0, 0.5)
    table, single = summarize_seeds(learners, BOOTSTRAP, 0)
    own = np.stack([values.values.mean(0) for (values,) in learners.values()])
    np.testing.assert_allclose(table["mean"], own.mean(0))
    np.testing.assert_allclose(table["sd"], own.std(0, ddof=1))
    np.testing.assert_allclose(single["mean"].to_numpy().reshape(4, 3), own)
    assert set(table["seeds"]) == {4}
    assert set(table["prompts"]) == {800}
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()


def test_what_is_missing_is_left_out_and_what_not_all_have_is_not_averaged():
    learners = planted(3, 0.1, 0.1)
    (first,) = learners[0]
    first.values[:50, 0] = np.nan
    first.values[:, 1] = np.nan
    learners[1] = [Values("SPD", first.index.iloc[:2], learners[1][0].values[:, :2])]
    learners[2].append(Values("ILWD", first.index, first.values))
    table, _ = summarize_seeds(learners, BOOTSTRAP, 0)
    assert list(zip(table["measure"], table["series"], table["position"], strict=True)) == [
        ("SPD", "a", 1),
        ("SPD", "a", 2),
    ]
    own = np.mean([np.nanmean(learners[seed][0].values[:, 0]) for seed in range(3)])
    assert table["mean"][0] == pytest.approx(own)
    assert np.isnan(table["mean"][1])


def test_of_what_is_kept_as_means_the_interval_is_students_over_the_seeds():
    table = pd.DataFrame(
        {"method": "edit", "target": "moment", "examples_seen": 5, "layer": [0, 1], "fraction": 0.5}
    )
    learners = {
        seed: read_measures(
            {"08_reporting/causality": lambda seed=seed: table.assign(fraction=[0.0, seed])}, {}
        )
        for seed in range(5)
    }
    found, _ = summarize_seeds(learners, BOOTSTRAP, 0)
    assert list(found["series"]) == ["edit, moment, k = 5"] * 2
    row = found.iloc[1]
    assert (row["mean"], row["over"]) == (2.0, "seeds")
    half = 2.776 * 2.5**0.5 / 5**0.5
    assert row["high"] == pytest.approx(2 * np.exp(half / 2), rel=1e-3)  # on the log scale
    assert row["low"] == pytest.approx(2 * np.exp(-half / 2), rel=1e-3)
    alone, _ = summarize_seeds({0: learners[0]}, BOOTSTRAP, 0)
    assert alone["low"].isna().all()


@pytest.mark.parametrize(
    ("number", "says"), [(1, "over prompts alone"), (3, "fewer than 5"), (8, "8 seeds")]
)
def test_few_seeds_are_said(number, says):
    assert says in describe_seeds(number)


def test_variables_are_counted_where_all_learners_read_the_place():
    """Found in two seeds of four; one learner does not read layer 2."""
    learners = {}
    for seed in range(4):
        verdicts = pd.DataFrame(
            {
                "layer": [1, 2],
                "positions": "query",
                "model": "weights",
                "verdict": ["found" if seed < 2 else "not found", "not read"],
                "share": [0.9 - 0.2 * seed, np.nan if seed == 3 else 0.0],
            }
        )
        tables = {"08_reporting/alignment_verdicts": lambda own=verdicts: own}
        learners[seed] = read_measures(tables, {})
    means = summarize_seeds(learners, BOOTSTRAP, 0)[0].set_index(["measure", "position"])
    assert set(means.index.get_level_values("position")) == {1}
    assert set(means["series"]) == {"weights, query"}
    assert means.loc[("variable found", 1), "mean"] == pytest.approx(0.5)
    assert means.loc[("share of the counterfactual", 1), "mean"] == pytest.approx(0.6)


def test_a_filters_ratio_is_one_of_its_readout():
    ridge = {"family": "ridge", "layer": 1}
    table = pd.DataFrame(
        [
            ridge | {"readout": name, "ratio": ratio}
            for name, ratio in (("skip", 1.0), ("lens", 2.0))
        ]
    )
    (found,) = read_measures({"08_reporting/filter_scores": lambda: table}, {})
    means, _ = summarize_seeds({0: [found], 1: [found]}, BOOTSTRAP, 0)
    assert dict(zip(means["series"], means["mean"], strict=True)) == {
        "ridge, skip": 1.0,
        "ridge, lens": 2.0,
    }


def test_a_share_of_trainings_has_limits_between_0_and_1():
    """Wilson's: 0.566 for five of five, 0.434 for none of five, at 95 %."""
    verdicts = pd.DataFrame(
        {
            "layer": [1, 2, 3],
            "positions": "query",
            "model": ["query", "answer", "weights"],
            "share": 0.9,
        }
    )
    learners = {
        seed: read_measures(
            {
                "08_reporting/alignment_verdicts": lambda seed=seed: verdicts.assign(
                    verdict=["found", "found" if seed == 0 else "not found", "not found"]
                )
            },
            {},
        )
        for seed in range(5)
    }
    found, _ = summarize_seeds(learners, BOOTSTRAP, 0)
    shares = found[found["measure"] == "variable found"].sort_values("position")
    assert shares["mean"].tolist() == [1.0, 0.2, 0.0]
    assert shares["low"].to_numpy() == pytest.approx([0.5655, 0.0362, 0.0], abs=1e-4)
    assert shares["high"].to_numpy() == pytest.approx([1.0, 0.6245, 0.4345], abs=1e-4)
