"""Families of filters fitted on half of the prompts and compared on the other half.

Shape letters: B prompts, d dimensions.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.families import (
    FAMILIES,
    FamilyFit,
    Spectra,
    cutoffs,
    fit_family,
)
from incontext_linear.comparison.filters.free import (
    eigenvalue_bins,
    free_residual,
    inverse_variances,
    residual_variances,
)
from incontext_linear.config import BootstrapConfig
from incontext_linear.statistics import interval, paired_log_ratio, sample_draws

# Errors below this share of the implicit weights' size are rounding, and equal.
ROUNDING = 1e-20


def error_ratios(
    first: np.ndarray, second: np.ndarray, config: FilterConfig, seed: int
) -> pd.DataFrame:
    """As `prompt_ratios`, of squared errors: the interval is that of the logarithm.

    Ratios of thousands, to an error at the level of rounding, have limits above 0 too.
    """
    bootstrap = BootstrapConfig(confidence=config.confidence, num_resamples=config.num_resamples)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        table = paired_log_ratio(first, second, bootstrap, seed)
        ratios = {name: np.exp(table[name].to_numpy()) for name in ("log_ratio", "low", "high")}
    return pd.DataFrame({"mean": ratios.pop("log_ratio"), **ratios})


class FilterFits(NamedTuple):
    """Families fitted on one half of the prompts and scored on the other."""

    scores: pd.DataFrame
    """``family``, ``num_parameters``, and each with ``_low`` and ``_high``: ``missed`` (share of
    the implicit weights' variance), ``misfit`` (weighted squared error over the best free filter's:
    1 if the family misses nothing that is a filter) and ``ratio`` (the family's weighted error over
    that of the family with the least, paired).
    """
    parameters: pd.DataFrame
    """``family``, ``parameter``, ``value``, ``low``, ``high``: the fitted numbers, ``scale``, and
    the ``cutoff``, the eigenvalue at which the member's filter is a half.
    """
    curves: pd.DataFrame
    """``family``, ``position``, ``value``: the fitted members in the bins of `filter_bins`."""


def fit_families(
    coordinates: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    fitting: Bool[np.ndarray, " batch"],
    config: FilterConfig,
    seed: int,
) -> FilterFits:
    """Fit each family on the fitting prompts, score it on the others.

    Squared errors are weighted by the inverse of what the best free filter leaves at eigenvalues of
    that size, so that a large scatter at some of them does not hide a misfit at the others.

    Args:
        coordinates: a, the implicit weights in the eigenbasis (`Spectra.coordinates`).
        spectra: of the same prompts.
        fitting: which prompts fit; the others score.
        config: families, confidence and resamples.
        seed: of the bootstrap.
    """
    residual = free_residual(coordinates, spectra, fitting, config.num_bins)
    weights = inverse_variances(residual, spectra, fitting, config.num_bins)
    inside, scored = spectra.select(fitting), spectra.select(~fitting)
    largest = float(spectra.values.max())
    fits = [
        fit_family(FAMILIES[name], coordinates[fitting], inside, weights[fitting], largest)
        for name in config.families
    ]
    missed = np.stack([(coordinates[~fitting] - fit.predict(scored)) ** 2 for fit in fits], axis=-1)
    weighted = (weights[~fitting, :, None] * missed).sum(1)
    floor = (weights * residual**2)[~fitting].sum(1)
    scores = _score(fits, missed.sum(1), weighted, floor, coordinates[~fitting], config, seed)
    numbers = [_parameters(fit, inside, config, seed) for fit in fits]
    return FilterFits(scores, pd.concat(numbers, ignore_index=True), _curves(fits, spectra, config))


def _curves(fits: list[FamilyFit], spectra: Spectra, config: FilterConfig) -> pd.DataFrame:
    inside, centers = eigenvalue_bins(spectra, "eigenvalue", config)
    square = ((spectra.solution**2)[..., None] * inside).sum((0, 1))
    tables = []
    for fit in fits:
        cross = ((fit.predict(spectra) * spectra.solution)[..., None] * inside).sum((0, 1))
        row = {"family": fit.family.name, "position": centers, "value": cross / square}
        tables.append(pd.DataFrame(row))
    return pd.concat(tables, ignore_index=True)


def _score(
    fits: list[FamilyFit],
    raw: np.ndarray,
    weighted: np.ndarray,
    floor: np.ndarray,
    coordinates: np.ndarray,
    config: FilterConfig,
    seed: int,
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "family": [fit.family.name for fit in fits],
            "num_parameters": [fit.family.num_parameters for fit in fits],
        }
    )
    size = (coordinates**2).sum(1)
    rounding = ROUNDING * max(size.mean(), np.finfo(float).tiny)
    over = weighted[:, weighted.sum(0).argmin()]
    for name, numerator, denominator in (
        ("missed", raw, size),
        ("misfit", weighted + rounding, floor + rounding),
        ("ratio", weighted + rounding, over + rounding),
    ):
        ratio = error_ratios(
            numerator, np.repeat(denominator[:, None], len(fits), axis=1), config, seed
        )
        table[[name, f"{name}_low", f"{name}_high"]] = ratio[["mean", "low", "high"]]
    return table


def _parameters(fit: FamilyFit, spectra: Spectra, config: FilterConfig, seed: int) -> pd.DataFrame:
    """The fitted numbers, with the intervals of the arg min over resampled fitting prompts."""
    draws = sample_draws(len(fit.errors), config.num_resamples, seed)
    chosen = draws.sums(fit.errors).argmin(1)
    columns = dict(zip(fit.family.parameters, fit.members.T, strict=True))
    if fit.family.scaled:
        columns["scale"] = fit.scales
    if fit.family.has_cutoff:
        columns["cutoff"] = cutoffs(fit.family, fit.members, spectra)
    rows = []
    for name, values in columns.items():
        low, high = map(float, interval(values[chosen], config.confidence))
        rows.append((fit.family.name, name, values[fit.best], low, high))
    return pd.DataFrame(rows, columns=["family", "parameter", "value", "low", "high"])


def filter_power(
    coordinates: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    fitting: Bool[np.ndarray, " batch"],
    config: FilterConfig,
    seed: int,
) -> pd.DataFrame:
    """Would the families be told apart? Each is planted with noise like the learner's.

    All are fitted to what was planted. The planted member is the one that fits the learner. The
    noise is normal, its variance at each size of eigenvalue that of the learner's residual, times
    ``noise_factors`` squared.

    Args:
        coordinates: the learner's implicit weights in the eigenbasis.
        spectra: of the same prompts.
        fitting: which prompts fit; the others score.
        config: ``plant_families``, noise factors and number of draws.
        seed: of the noise.

    Returns:
        ``planted``, ``noise_factor``, ``family``, ``nearest`` (share of draws in which the family
        scores best), ``ratio`` (median over draws of its weighted error to the planted family's)
        and ``misfit`` (median).
    """
    residual = free_residual(coordinates, spectra, fitting, config.num_bins)
    spread = residual_variances(residual, spectra, fitting, config.num_bins) ** 0.5
    weights = inverse_variances(residual, spectra, fitting, config.num_bins)
    rng = np.random.default_rng(seed)
    inside = spectra.select(fitting)
    names = config.plant_families
    rows = []
    for planted in names:
        member = fit_family(
            FAMILIES[planted], coordinates[fitting], inside, weights[fitting]
        ).predict(spectra)
        for factor in config.noise_factors:
            draws = []
            for _ in range(config.num_plants):
                noisy = member + factor * spread * rng.standard_normal(member.shape)
                noisy[spectra.values == 0] = 0
                draws.append(_weighted_errors(noisy, spectra, fitting, names, config))
            errors, floors = (np.array(part) for part in zip(*draws, strict=True))
            nearest = np.bincount(errors.argmin(1), minlength=len(names)) / len(draws)
            over = np.median(errors / errors[:, [names.index(planted)]], axis=0)
            misfit = np.median(errors / floors[:, None], axis=0)
            rows += zip(
                [planted] * len(names),
                [factor] * len(names),
                names,
                nearest,
                over,
                misfit,
                strict=True,
            )
    return pd.DataFrame(
        rows, columns=["planted", "noise_factor", "family", "nearest", "ratio", "misfit"]
    )


def _weighted_errors(
    coordinates: np.ndarray,
    spectra: Spectra,
    fitting: np.ndarray,
    names: tuple[str, ...],
    config: FilterConfig,
) -> tuple[np.ndarray, float]:
    """Each family's weighted error on the scoring prompts, and that of the best free filter."""
    residual = free_residual(coordinates, spectra, fitting, config.num_bins)
    weights = inverse_variances(residual, spectra, fitting, config.num_bins)
    inside, scored = spectra.select(fitting), spectra.select(~fitting)
    errors = []
    for name in names:
        fit = fit_family(FAMILIES[name], coordinates[fitting], inside, weights[fitting])
        errors.append(
            (weights[~fitting] * (coordinates[~fitting] - fit.predict(scored)) ** 2).sum()
        )
    rounding = ROUNDING * max((coordinates**2).sum(), np.finfo(float).tiny)
    return np.array(errors) + rounding, (weights * residual**2)[~fitting].sum() + rounding
