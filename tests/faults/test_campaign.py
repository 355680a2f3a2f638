"""The campaign of `faults.campaign`, once through."""

import os

import pytest

from faults.campaign import run_campaign


@pytest.mark.slow
@pytest.mark.skipif("FAULTS" not in os.environ, reason="some ten minutes: FAULTS=1 asks for it")
def test_nothing_is_lost():
    table, lost = run_campaign(num_trials=1, seed=1)
    assert not lost, table
