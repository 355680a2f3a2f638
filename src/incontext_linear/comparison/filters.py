"""Spectral filters: which function of the eigenvalues of XᵀX does a learner apply to least squares?

With S = XᵀX = Σ sᵢ uᵢuᵢᵀ of the k examples seen, many algorithms apply a filter f to the
least-squares weights: ŵ = Σ f(sᵢ) (uᵢᵀ w_OLS) uᵢ (`filter_families`). The filter of any predictor
is the regression of aᵢ = uᵢᵀŵ on bᵢ = uᵢᵀw_OLS among eigenvalues of a size, where ŵ are its
implicit weights (paper, section 4). Families of filters are fitted to it on half of the prompts
and compared on the other half.

The prompts have covariances of several condition numbers in random bases, so that the eigenvalues
spread over decades: on isotropic inputs alone the families nearly agree.

Shape letters: B prompts, d dimensions.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from incontext_linear.comparison.divergence import implicit_weights
from incontext_linear.comparison.filter_families import (
    FAMILIES,
    FamilyFit,
    Spectra,
    cutoffs,
    fit_family,
)
from incontext_linear.config import BootstrapConfig, Config, OpenFraction, TaskConfig
from incontext_linear.predictors import Predictor
from incontext_linear.shapes import Xs, Ys
from incontext_linear.statistics import interval, paired_log_ratio, ratio_interval, sample_draws
from incontext_linear.tasks import draw_prompts, generator

# Eigenvalues below this share of a prompt's largest one are zero: fewer examples than dimensions.
ZERO_EIGENVALUE = 1e-10
# The weight of a coordinate is at most this many times that of an average one.
LARGEST_WEIGHT = 100.0
# Errors below this share of the implicit weights' size are rounding, and equal.
ROUNDING = 1e-20


class FilterConfig(Config):
    """Spectral filters of a learner and of its layers."""

    num_prompts: Annotated[int, Field(ge=20)] = 600
    """Half of them fit the filters, half score them."""
    num_queries: PositiveInt = 16
    """Fresh queries a prompt, from which the implicit weights are estimated; more than d."""
    context_length: PositiveInt | None = None
    """Examples seen, k; None: one fewer than the prompt has."""
    conditions: Annotated[tuple[Annotated[float, Field(ge=1.0)], ...], Field(min_length=1)] = (
        1.0,
        10.0,
        100.0,
        1000.0,
    )
    """Condition numbers of the inputs' covariance, in random bases; 1 is the training
    distribution.
    """
    families: Annotated[tuple[str, ...], Field(min_length=2)] = (
        "ridge",
        "gradient_flow",
        "gradient_descent",
        "newton",
        "newton_start",
        "least_squares",
        "scaled_ridge",
        "scaled_least_squares",
        "momentum",
        "conjugate_gradients",
    )
    layer_families: Annotated[tuple[str, ...], Field(min_length=2)] = (
        "scaled_ridge",
        "scaled_gradient_flow",
        "scaled_gradient_descent",
        "scaled_newton",
        "scaled_least_squares",
    )
    """Of single layers, whose answers have no scale of their own."""
    num_bins: Annotated[int, Field(ge=2)] = 10
    """Bins of the eigenvalues, equally wide in log s."""
    bin_prompts: PositiveInt = 20
    """A bin that fewer prompts reach is left out."""
    noise_factors: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.1, 1.0, 3.0)
    """Noise on planted filters, in multiples of the learner's own residual."""
    plant_families: Annotated[tuple[str, ...], Field(min_length=2)] = (
        "scaled_ridge",
        "scaled_gradient_flow",
        "scaled_newton",
        "scaled_least_squares",
    )
    """What is planted, and fitted to what is planted."""
    num_plants: PositiveInt = 5
    """Draws of that noise."""
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 500

    @model_validator(mode="after")
    def _families_exist(self) -> "FilterConfig":
        unknown = [
            name
            for name in (*self.families, *self.layer_families, *self.plant_families)
            if name not in FAMILIES
        ]
        if unknown:
            raise ValueError(f"families: unknown {unknown!r}; allowed: {', '.join(FAMILIES)}")
        return self

    def examples_seen(self, task: TaskConfig) -> int:
        """k.

        Raises:
            ValueError: if the task's prompts are not that long.
        """
        seen = self.context_length or task.num_examples - 1
        if not 1 <= seen < task.num_examples:
            raise ValueError(
                f"context_length={seen} is not allowed: prompts of num_examples="
                f"{task.num_examples} have 1 to {task.num_examples - 1} examples before the query"
            )
        return seen


class FilterPrompts(NamedTuple):
    """Prompts whose spectra separate filters."""

    xs: Xs
    """k + 1 examples, the last of which is never read."""
    ys: Ys
    queries: Float[Tensor, "batch query dim"]
    conditions: Float[np.ndarray, " batch"]
    fitting: Bool[np.ndarray, " batch"]
    """Whether a prompt fits filters; the others score them."""

    def to(self, *args, **kwargs) -> "FilterPrompts":
        """Move or cast the tensors, as `torch.Tensor.to` does."""
        tensors = (tensor.to(*args, **kwargs) for tensor in self[:3])
        return FilterPrompts(*tensors, *self[3:])


def draw_filter_prompts(task: TaskConfig, config: FilterConfig, seed: int) -> FilterPrompts:
    """Prompts of the task, their inputs stretched to each condition number in turn.

    The inputs become x Vᵀ with V symmetric in a basis of each prompt's own, its eigenvalues
    log-spaced and of mean square 1: E‖x‖² stays, the condition number of V² is the one asked for.
    The queries are the task's.

    Args:
        task: priors over w and x, noise.
        config: numbers of prompts and queries, condition numbers, context length.
        seed: the same seed gives the same prompts.

    Raises:
        ValueError: if the task's prompts are too short for the context length.
    """
    seen, number = config.examples_seen(task), config.num_prompts
    base = draw_prompts(task, number, seed, stream="filters")
    xs, ys = base.xs[:, : seen + 1].double(), base.ys[:, : seen + 1].double()
    noise = ys - (xs @ base.ws.double().unsqueeze(-1)).squeeze(-1)
    group = np.arange(number) % len(config.conditions)
    conditions = np.array(config.conditions)[group]
    rng = generator(seed, "filter bases")
    normal = torch.randn(number, task.dim, task.dim, generator=rng, dtype=xs.dtype)
    bases = torch.linalg.qr(normal)[0]
    powers = torch.linspace(0, -0.5, task.dim, dtype=xs.dtype)
    sizes = torch.from_numpy(conditions)[:, None] ** powers
    sizes = sizes / sizes.square().mean(-1, keepdim=True).sqrt()
    stretched = xs @ ((bases * sizes[:, None, :]) @ bases.mT)
    xs = torch.where(torch.from_numpy(conditions > 1)[:, None, None], stretched, xs).float()
    ys = (xs.double() @ base.ws.double().unsqueeze(-1)).squeeze(-1) + noise
    shape = task.model_copy(update={"num_examples": config.num_queries})
    queries = draw_prompts(shape, number, seed, stream="filter queries").xs
    fitting = np.arange(number) // len(config.conditions) % 2 == 0
    return FilterPrompts(xs, ys.float(), queries, conditions, fitting)


def spectra(prompts: FilterPrompts) -> Spectra:
    """The spectra of the examples that come before each prompt's last query."""
    xs, ys = prompts.xs[:, :-1].double(), prompts.ys[:, :-1].double()
    values, vectors = torch.linalg.eigh(xs.mT @ xs)
    moment = torch.einsum("bij,bi->bj", vectors, torch.einsum("bki,bk->bi", xs, ys))
    present = values > ZERO_EIGENVALUE * values[:, -1:]
    values = torch.where(present, values, 0)
    solution = torch.where(present, moment / torch.where(present, values, 1), 0)
    return Spectra(values.numpy(), vectors.numpy(), solution.numpy())


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
    inside, centers = _bins(spectra, axis, config)
    cross = ((coordinates * spectra.solution)[..., None] * inside).sum(1)
    square = ((spectra.solution**2)[..., None] * inside).sum(1)
    table = prompt_ratios(cross, square, config, seed)
    table.insert(0, "num_prompts", inside.any(1).sum(0))
    table.insert(0, "position", centers)
    table.insert(0, "axis", axis)
    return table


def _bins(spectra: Spectra, axis: str, config: FilterConfig) -> tuple[np.ndarray, np.ndarray]:
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


def _weights(
    residual: np.ndarray, spectra: Spectra, fitting: np.ndarray, number: int
) -> np.ndarray:
    """Inverse variances of mean 1."""
    if not residual[fitting].any():
        return np.ones_like(residual)
    weights = 1 / residual_variances(residual, spectra, fitting, number)
    return weights / weights.mean()


def _noise(
    coordinates: np.ndarray, spectra: Spectra, fitting: np.ndarray, number: int
) -> np.ndarray:
    """What the better of the two free filters leaves; fitted on some prompts, for all of them."""
    residuals = []
    for axis in ("eigenvalue", "relative"):
        free = fit_free_filter(coordinates[fitting], spectra.select(fitting), axis, number + 1)
        residuals.append(coordinates - free(spectra) * spectra.solution)
    return min(residuals, key=lambda residual: (residual[fitting] ** 2).sum())


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
    residual = _noise(coordinates, spectra, fitting, config.num_bins)
    weights = _weights(residual, spectra, fitting, config.num_bins)
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
    inside, centers = _bins(spectra, "eigenvalue", config)
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
    residual = _noise(coordinates, spectra, fitting, config.num_bins)
    spread = residual_variances(residual, spectra, fitting, config.num_bins) ** 0.5
    weights = _weights(residual, spectra, fitting, config.num_bins)
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
    residual = _noise(coordinates, spectra, fitting, config.num_bins)
    weights = _weights(residual, spectra, fitting, config.num_bins)
    inside, scored = spectra.select(fitting), spectra.select(~fitting)
    errors = []
    for name in names:
        fit = fit_family(FAMILIES[name], coordinates[fitting], inside, weights[fitting])
        errors.append(
            (weights[~fitting] * (coordinates[~fitting] - fit.predict(scored)) ** 2).sum()
        )
    rounding = ROUNDING * max((coordinates**2).sum(), np.finfo(float).tiny)
    return np.array(errors) + rounding, (weights * residual**2)[~fitting].sum() + rounding


class FilterMeasurement(NamedTuple):
    """All tables of one learner, or of one read-out of one layer."""

    bins: pd.DataFrame
    shares: pd.DataFrame
    scores: pd.DataFrame
    parameters: pd.DataFrame
    curves: pd.DataFrame


def measure_filter(
    weights: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    fitting: Bool[np.ndarray, " batch"],
    config: FilterConfig,
    seed: int,
) -> FilterMeasurement:
    """The filter of some implicit weights: in bins, as a share of their variance, and by families.

    Args:
        weights: ŵ (B, d).
        spectra: of the prompts they were estimated on.
        fitting: which prompts fit; the others score.
        config: settings.
        seed: of the bootstrap.
    """
    coordinates = spectra.coordinates(weights)
    bins = [
        filter_bins(coordinates, spectra, axis, config, seed) for axis in ("eigenvalue", "relative")
    ]
    return FilterMeasurement(
        pd.concat(bins, ignore_index=True),
        filter_shares(coordinates, spectra, fitting, config, seed),
        *fit_families(coordinates, spectra, fitting, config, seed),
    )


def learner_weights(predictor: Predictor, prompts: FilterPrompts) -> Float[np.ndarray, "batch dim"]:
    """Implicit weights (B, d) of any predictor at the prompts' context length, float64.

    Raises:
        ValueError: if there are no more queries than dimensions.
    """
    weights = implicit_weights(predictor, prompts.xs, prompts.ys, prompts.queries).weights
    return weights[:, -1].cpu().numpy()


def learner_filter(
    predictor: Predictor,
    task: TaskConfig,
    config: FilterConfig,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> FilterMeasurement:
    """The filter of a learner's, or any predictor's, final predictions on separating prompts.

    Args:
        predictor: what is measured.
        task: the task whose prompts are stretched.
        config: settings.
        seed: of prompts and bootstrap.
        dtype: of the prompts: that of the learner's weights.
    """
    prompts = draw_filter_prompts(task, config, seed).to(dtype)
    weights = learner_weights(predictor, prompts)
    return measure_filter(weights, spectra(prompts), prompts.fitting, config, seed)
