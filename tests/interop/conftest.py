"""Learners and prompts for the tests against other people's tools; `make interop` runs them."""

from pathlib import Path

import beartype  # noqa: F401
import pytest

from incontext_linear.learner import Learner, load_learner
from incontext_linear.tasks import Prompts, draw_prompts

# beartype checks the shapes in every test, and must be there before nnsight: `import nnsight,
# beartype` ends in "TypeError: unhashable type: 'instancemethod'" (nnsight 0.8.1, beartype 0.23.1),
# since nnsight gives `object` a method `save`.

SHIPPED = Path(__file__).parents[2] / "data/06_models/pretrained"


@pytest.fixture(scope="session")
def small() -> Learner:
    """The small learner that ships: trained, d = 3, four layers."""
    return load_learner(SHIPPED / "small_learner.safetensors")


@pytest.fixture(scope="session")
def prompts(small: Learner) -> Prompts:
    return draw_prompts(small.task, 64, seed=1, stream="interop")
