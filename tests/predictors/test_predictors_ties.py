"""Facts that a review found wrong once: ties between neighbours, labels that are never read."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from incontext_linear.predictors import (
    Averaging,
    GradientDescent,
    IterativeNewton,
    NearestNeighbors,
    Ridge,
)


@given(
    st.lists(st.integers(-2, 2), min_size=2, max_size=9), st.integers(1, 4), st.integers(0, 2**31)
)
def test_of_equally_near_examples_the_earlier_is_nearer(positions, num_neighbors, seed):
    xs = torch.tensor(positions, dtype=torch.float64)[None, :, None]
    ys = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, len(positions))))
    predictions = NearestNeighbors(num_neighbors)(xs, ys)
    for k in range(1, len(positions)):
        distances = np.abs(np.array(positions[:k]) - positions[k])
        nearest = np.argsort(distances, kind="stable")[:num_neighbors]
        assert predictions[0, k].item() == pytest.approx(ys[0, nearest].mean().item())


@pytest.mark.parametrize(
    "predictor", [GradientDescent(0.01, 3), IterativeNewton(4), Averaging(), Ridge(0.1)], ids=repr
)
def test_the_label_that_is_never_read_may_be_anything_also_for_the_gradient(predictor):
    xs = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    ys = torch.randn(2, 5, dtype=torch.float64)
    ys[:, -1] = float("nan")
    predictor(xs, ys).sum().backward()
    assert xs.grad is not None
    assert xs.grad.isfinite().all()
