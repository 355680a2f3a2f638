"""The filter as it is, of no family: in bins of the eigenvalues, and the best of all filters.

Shape letters: B prompts, d dimensions.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.families import Spectra
from incontext_linear.config import BootstrapConfig
from incontext_linear.statistics import ratio_interval

# The weight of a coordinate is at most this many times that of an average one.
LARGEST_WEIGHT = 100.0


@dataclass(frozen=True)
class FreeFilter:
    """A filter that is linear in log s between nodes, of s itself or of s/‖XᵀX‖."""

    axis: str
    nodes: Float[np.ndarray, " node"]
    heights: Float[np.ndarray, " node"]

    def __call__(self, spectra: Spectra) -> Float[np.ndarray, "batch dim"]:
        """f(sᵢ)."""
        return np.interp(_position(spectra, self.axis), self.nodes, self.heights)


def _position(spectra: Spectra, axis: str) -> np.ndarray:
    """log s, or log s/‖XᵀX‖; a zero eigenvalue lies at the far left, where its b is 0."""
    values = spectra.values / spectra.norms if axis == "relative" else spectra.values
    return np.log(np.maximum(values, 1e-12 * values.max()))


def _edges(spectra: Spectra, axis: str, number: int) -> np.ndarray:
    position = _position(spectra, axis)[spectra.values > 0]
    low, high = np.quantile(position, [0.005, 0.995])
    return np.linspace(low, high, number)


def fit_free_filter(
    coordinates: Float[np.ndarray, "batch dim"], spectra: Spectra, axis: str, num_nodes: int
) -> FreeFilter:
    """Least squares of a on f(s) b over all f that are piecewise linear in the axis's logarithm."""
    nodes = _edges(spectra, axis, num_nodes)
    hats = np.stack(
        [np.interp(_position(spectra, axis), nodes, unit) for unit in np.eye(num_nodes)], -1
    )
    design = (hats * spectra.solution[..., None]).reshape(-1, num_nodes)
    heights = np.linalg.lstsq(design, coordinates.ravel(), rcond=None)[0]
    return FreeFilter(axis, nodes, heights)


def prompt_ratios(
    numerator: np.ndarray, denominator: np.ndarray, config: FilterConfig, seed: int
) -> pd.DataFrame:
    """Bootstrapped ratios of sums over prompts; of nothing to nothing: not a number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        bootstrap = BootstrapConfig(
            confidence=config.confidence, num_resamples=config.num_resamples
        )
        return ratio_interval(numerator, denominator, bootstrap, seed)


def filter_bins(
    coordinates: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    axis: str,
    config: FilterConfig,
    seed: int,
) -> pd.DataFrame:
    """The filter in bins: regression of a on b among the eigenvalues of each bin.

    Args:
        coordinates: a, the implicit weights in the eigenbasis.
        spectra: of the same prompts.
        axis: ``eigenvalue`` for s, ``relative`` for s/‖XᵀX‖.
        config: number of bins, confidence and resamples.
        seed: of the bootstrap.

    Returns:
        ``axis``, ``position`` (geometric mean of the bin's eigenvalues), ``num_prompts``, ``mean``,
        ``low``, ``high``; a row a bin.
    """
    inside, centers = eigenvalue_bins(spectra, axis, config)
    cross = ((coordinates * spectra.solution)[..., None] * inside).sum(1)
    square = ((spectra.solution**2)[..., None] * inside).sum(1)
    table = prompt_ratios(cross, square, config, seed)
    table.insert(0, "num_prompts", inside.any(1).sum(0))
    table.insert(0, "position", centers)
    table.insert(0, "axis", axis)
    return table


def eigenvalue_bins(
    spectra: Spectra, axis: str, config: FilterConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Which eigenvalue is in which bin (B, d, bins), and the centres of the bins.

    Bins that too few prompts reach are left out.
    """
    position = _position(spectra, axis)
    bins = np.digitize(position, _edges(spectra, axis, config.num_bins + 1)[1:-1])
    inside = (bins[..., None] == np.arange(config.num_bins)) & (spectra.values > 0)[..., None]
    inside = inside[..., inside.any(1).sum(0) >= config.bin_prompts]
    return inside, np.exp((position[..., None] * inside).sum((0, 1)) / inside.sum((0, 1)))


def filter_shares(
    coordinates: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    fitting: Bool[np.ndarray, " batch"],
    config: FilterConfig,
    seed: int,
) -> pd.DataFrame:
    """How much of the implicit weights' variance the best filter explains, on scoring prompts.

    What is left is no function of the eigenvalues: cross-terms between eigenvectors, dependence on
    the labels or on the order of the examples, error of the learner.

    Returns:
        ``axis``, ``mean`` (the share explained), ``low``, ``high``; a row an axis.
    """
    missed = []
    scored, scoring = spectra.select(~fitting), coordinates[~fitting]
    for axis in ("eigenvalue", "relative"):
        free = fit_free_filter(
            coordinates[fitting], spectra.select(fitting), axis, config.num_bins + 1
        )
        missed.append(((scoring - free(scored) * scored.solution) ** 2).sum(1))
    total = (scoring**2).sum(1)
    table = prompt_ratios(np.stack(missed, 1), np.stack([total, total], 1), config, seed)
    shares = pd.DataFrame(
        {"mean": 1 - table["mean"], "low": 1 - table["high"], "high": 1 - table["low"]}
    )
    shares.insert(0, "axis", ["eigenvalue", "relative"])
    return shares


def residual_variances(
    residual: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    fitting: Bool[np.ndarray, " batch"],
    number: int,
) -> Float[np.ndarray, "batch dim"]:
    """Mean square of the fitting prompts' residual among eigenvalues of a size.

    It is at least a hundredth of the overall one, so that no bin takes all the weight.
    """
    edges = _edges(spectra, "eigenvalue", number + 1)[1:-1]
    bins = np.digitize(_position(spectra, "eigenvalue"), edges)
    fitted, squares = bins[fitting].ravel(), (residual[fitting] ** 2).ravel()
    sums = np.bincount(fitted, squares, minlength=number)
    variances = sums / np.maximum(np.bincount(fitted, minlength=number), 1)
    return np.maximum(variances, squares.mean() / LARGEST_WEIGHT)[bins]


def inverse_variances(
    residual: np.ndarray, spectra: Spectra, fitting: np.ndarray, number: int
) -> np.ndarray:
    """Inverse variances of mean 1."""
    if not residual[fitting].any():
        return np.ones_like(residual)
    weights = 1 / residual_variances(residual, spectra, fitting, number)
    return weights / weights.mean()


def free_residual(
    coordinates: np.ndarray, spectra: Spectra, fitting: np.ndarray, number: int
) -> np.ndarray:
    """What the better of the two free filters leaves; fitted on some prompts, for all of them."""
    residuals = []
    for axis in ("eigenvalue", "relative"):
        free = fit_free_filter(coordinates[fitting], spectra.select(fitting), axis, number + 1)
        residuals.append(coordinates - free(spectra) * spectra.solution)
    return min(residuals, key=lambda residual: (residual[fitting] ** 2).sum())
