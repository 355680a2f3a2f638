"""Fixtures of the comparison's tests: a small task, and settings that cost little."""

import pytest

from incontext_linear.comparison.identification import IdentificationConfig
from incontext_linear.config import TaskConfig
from incontext_linear.learner import devices
from incontext_linear.tasks import draw_prompts


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These prompts are small: a second thread would cost more than it gives."""
    with devices.one_thread():
        yield


@pytest.fixture(scope="session")
def task():
    return TaskConfig(dim=3, num_examples=10)


@pytest.fixture(scope="session")
def prompts(task):
    return draw_prompts(task, 64, seed=5)


KEPT = ("zero", "averaging", "least_squares", "ridge", "sgd", "gradient_descent")


@pytest.fixture(scope="session")
def settings():
    """Few families and shifts: a whole identification in about a second."""
    from incontext_linear.comparison.families import DEFAULT_FAMILIES

    return IdentificationConfig(
        families={name: None for name in DEFAULT_FAMILIES if name not in KEPT},
        shifts={
            "input_scale": (0.5, 1.0, 2.0),
            "condition_number": (30,),
            "label_noise": (0.5,),
            "query_scale": (2.0,),
        },
        num_calibration_prompts=96,
        num_prompts=96,
        num_tie_prompts=24,
        examples_seen=(0.67, 1, 2, 3),
        num_adversarial_pairs=1,
        adversarial_prompts=16,
        adversarial_steps=8,
        num_confirmation_prompts=192,
        num_resamples=100,
    )
