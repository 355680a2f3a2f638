"""Fixtures of the predictors' tests."""

import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These prompts are small: a second thread would cost more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Without the run-time check of shapes, which would answer before the predictors' own refusals
    do.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
