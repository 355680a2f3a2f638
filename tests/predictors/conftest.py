"""Fixtures of the predictors' tests."""

import jaxtyping
import pytest

from incontext_linear.learner import devices


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These prompts are small: a second thread would cost more than it gives."""
    with devices.one_thread():
        yield


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Without the run-time check of shapes, which would answer before the predictors' own refusals
    do.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
