"""The tests' own checks of shapes: a call that a signature forbids does not pass unseen."""

import pytest
import torch
from jaxtyping import TypeCheckError

from incontext_linear.comparison.divergence import squared_prediction_difference


def test_arguments_of_shapes_that_the_signature_forbids_are_refused_at_every_call():
    first = torch.zeros(2, 3)
    assert squared_prediction_difference(first, first).shape == (2, 3)
    for _ in range(2):  # the first call writes the checks
        with pytest.raises(TypeCheckError, match="squared_prediction_difference"):
            squared_prediction_difference(first, torch.zeros(2, 1))  # would be broadcast
