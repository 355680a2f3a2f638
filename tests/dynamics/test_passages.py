"""Passages of known place and speed."""

import numpy as np
import pytest

from incontext_linear.dynamics.passages import passage, passage_table, summarise_passages

STEPS = [0, *(2**power for power in range(11))]


def test_an_even_fall_takes_most_octaves_and_a_sudden_one_less_than_one():
    steps = np.unique(np.geomspace(1, 1024, 200).round().astype(int)).tolist()
    even = passage(steps, -np.log2(steps))
    assert even["octaves"] == pytest.approx(8, abs=0.05)  # from a tenth to nine tenths of ten
    assert even["half"] == pytest.approx(32, rel=0.02)
    assert even["largest_octave"] == pytest.approx(0.1, abs=0.01)
    sudden = passage(steps, np.where(np.array(steps) < 100, 1.0, 0.0))
    assert sudden["octaves"] < 0.1
    assert sudden["half"] == pytest.approx(100, rel=0.05)
    assert sudden["largest_octave"] == pytest.approx(1)


def test_a_passage_that_goes_back_has_begun_only_at_its_last_crossing():
    values = np.array([1, 1, 0.4, 1, 1, 1, 1, 1, 1, 0, 0, 0.0])
    assert passage(STEPS, values)["begun"] > 64


def test_what_does_not_change_has_no_passage():
    assert np.isnan(passage(STEPS, np.ones(len(STEPS)))["half"])


def test_seeds_that_pass_together_have_a_small_spread():
    logs = np.log2(np.maximum(STEPS, 0.5))

    def fall(middle):
        return 1 / (1 + np.exp(3 * (logs - middle)))

    rows = np.stack([fall(middle) for middle in (4.0, 5.0, 6.0)])
    table = passage_table(STEPS, {"together": rows[[1, 1, 1]], "apart": rows}, [0, 1, 2])
    summary = summarise_passages(table, 0.95).set_index("quantity")
    assert summary["spread"]["together"] == 0
    assert summary["spread"]["apart"] == pytest.approx(1, abs=0.1)
    assert summary["half"]["apart"] == pytest.approx(32, rel=0.05)
    assert summary["low"]["apart"] < 32 < summary["high"]["apart"]
    assert list(summary["seeds"]) == [3, 3]
