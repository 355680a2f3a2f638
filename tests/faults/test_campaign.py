"""The campaign of `faults.campaign`, once through."""

import pytest

from faults.campaign import run_campaign


@pytest.mark.slow
def test_nothing_is_lost():
    table, lost = run_campaign(num_trials=1, seed=1)
    assert not lost, table
