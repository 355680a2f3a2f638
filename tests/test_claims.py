"""The filters of benchmarks.claims are the predictors that they stand for."""

import pytest
import torch

from benchmarks.claims import SHIFTS, Spectrum, between, shifted_prompts, short
from incontext_linear.predictors import (
    GradientDescent,
    IterativeNewton,
    OrdinaryLeastSquares,
    Ridge,
)

CASES = {
    "least squares": (OrdinaryLeastSquares(), Spectrum.least_squares),
    "ridge": (Ridge(0.3), lambda spectrum: spectrum.ridge(0.3)),
    "gradient descent": (
        GradientDescent(0.01, 7),
        lambda spectrum: spectrum.gradient_descent(7, 0.01),
    ),
    "Newton": (IterativeNewton(6), lambda spectrum: spectrum.newton(6)),
}


@pytest.mark.parametrize("seen", [1, 3, 5, 9])
@pytest.mark.parametrize("name", CASES)
def test_a_filter_predicts_what_its_predictor_does(name, seen):
    rng = torch.Generator().manual_seed(0)
    xs = torch.randn(32, 10, 5, generator=rng, dtype=torch.float64)
    ys = torch.randn(32, 10, generator=rng, dtype=torch.float64)
    predictor, filtered = CASES[name]
    expected = predictor(xs, ys)[:, seen]
    torch.testing.assert_close(filtered(Spectrum.of(xs, ys, seen)), expected, rtol=1e-6, atol=1e-7)


def test_shifts_are_what_they_are_called():
    def spread(name: str) -> float:
        return shifted_prompts(name, 16, 2000)[0][:, :16].square().mean().item()

    assert spread("x × 3") == pytest.approx(9, rel=0.05)
    for name in ("covariance of condition 32", "inputs of rank 2", "sphere of radius √8"):
        assert spread(name) == pytest.approx(1, rel=0.05)
    xs, _ = shifted_prompts("inputs of rank 2", 16, 4)
    assert torch.linalg.matrix_rank(xs, atol=1e-4).tolist() == [2] * 4
    blocks = shifted_prompts("orthogonal blocks", 16, 4)[0][:, :8]
    torch.testing.assert_close(blocks @ blocks.mT, 8 * torch.eye(8).expand(4, 8, 8))
    twice = shifted_prompts("every example twice", 16, 4)[0]
    torch.testing.assert_close(twice[:, 0:16:2], twice[:, 1:16:2])
    plain = shifted_prompts("query alone × 3", 16, 2000)[0]
    assert plain[:, 16].std().item() == pytest.approx(3, rel=0.05)
    assert plain[:, :16].std().item() == pytest.approx(1, rel=0.05)


def test_every_shift_gives_noiseless_labels():
    for name in SHIFTS:
        xs, ys = shifted_prompts(name, 39, 3)
        residual = torch.linalg.lstsq(xs.double(), ys.double().unsqueeze(-1), driver="gelsd")
        missed = (xs.double() @ residual.solution).squeeze(-1) - ys
        assert missed.abs().max() < 1e-4


def test_numbers_are_printed_with_two_digits():
    assert [short(x) for x in (0.3123, 1.74e-5, 12.0, 3e7)] == ["0.31", "1.7e-5", "12", "diverges"]
    assert between(torch.arange(1000.0).numpy()) == "[24, 974]"
