"""Families of spectral filters: ridge, gradient descent, Newton and others, as filters of XᵀX.

Each is a filter f(s) with some free numbers: ridge s/(s + λ); m gradient steps 1 − (1 − 2αs)^m, and
1 − exp(−ts) in the limit of many small ones; m Newton steps from M₀ = S/‖S‖² (Fu et al. 2023)
1 − (1 − s²/‖S‖²)^(2^m); least squares 1. Conjugate gradients are a filter that depends on the
labels. A family is fitted by trying a grid, refined around its best members.

Shape letters: B prompts, d dimensions, G members of a family, P free numbers of a family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from incontext_linear.predictors.validation import Number

# A step size that is too large diverges; beyond this a filter is as wrong as it needs to be.
LARGEST_FILTER = 1e6
# Rounds in which a family's grid is made four times finer around its best members.
ZOOMS = 3


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues and eigenvectors of XᵀX, and least squares in their basis, a row a prompt."""

    values: Float[np.ndarray, "batch dim"]
    """sᵢ."""
    vectors: Float[np.ndarray, "batch dim dim"]
    """uᵢ is ``[:, :, i]``."""
    solution: Float[np.ndarray, "batch dim"]
    """bᵢ = uᵢᵀw_OLS; 0 where sᵢ is."""

    @property
    def norms(self) -> Float[np.ndarray, "batch 1"]:
        """‖XᵀX‖, Frobenius."""
        return np.linalg.norm(self.values, axis=1, keepdims=True)

    def coordinates(
        self, weights: Float[np.ndarray, "batch dim"]
    ) -> Float[np.ndarray, "batch dim"]:
        """aᵢ = uᵢᵀŵ."""
        return np.einsum("bij,bi->bj", self.vectors, weights)

    def weights(
        self, coordinates: Float[np.ndarray, "*member batch dim"]
    ) -> Float[np.ndarray, "*member batch dim"]:
        """The weights that have these coordinates, the inverse of `coordinates`."""
        return np.einsum("bij,...bj->...bi", self.vectors, coordinates)

    def select(self, prompts: Bool[np.ndarray, " batch"] | Int[np.ndarray, " chosen"]) -> "Spectra":
        """Some of the prompts."""
        return Spectra(self.values[prompts], self.vectors[prompts], self.solution[prompts])


@dataclass(frozen=True)
class Family:
    """Filters that differ in free numbers, tried on a grid.

    ``grid`` takes the largest eigenvalue and gives the members (G, P); ``apply`` takes spectra and
    members and gives each member's weights in the eigenbasis (G, B, d). A scaled family has one
    more free number, a factor on all its predictions, fitted in closed form.
    """

    name: str
    parameters: tuple[str, ...]
    grid: Callable[[float], np.ndarray]
    apply: Callable[[Spectra, np.ndarray], np.ndarray]
    spacing: tuple[float, ...]
    """Of each free number on the grid, in octaves; 0 for one that is not refined."""
    scaled: bool = False

    @property
    def has_cutoff(self) -> bool:
        """Whether its filters rise with the eigenvalue, whatever the labels are."""
        return self.apply not in (_conjugate_gradients, _least_squares)

    @property
    def num_parameters(self) -> int:
        """Free numbers."""
        return len(self.parameters) + self.scaled


def _columns(members: np.ndarray) -> list[np.ndarray]:
    """Each free number as (G, 1, 1)."""
    return [column[:, None, None] for column in members.T]


def _combinations(*values: Sequence[Number] | np.ndarray) -> np.ndarray:
    """All combinations, (G, P)."""
    grids = np.meshgrid(*values, indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=-1).astype(float)


def _step_sizes(size: float, spacing: float, *others: Sequence[Number] | np.ndarray) -> np.ndarray:
    """Members (G, P): the step size first, the number of steps last.

    2α goes up to 2 over the largest eigenvalue, beyond which descent diverges there, and to 4 for a
    few steps.
    """
    members = _combinations(2.0 ** np.arange(-6, 2.1, spacing) / (2 * size), *others)
    return members[(members[:, 0] * size <= 1) | (members[:, -1] <= 8)]


def _ridge(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    (penalty,) = _columns(members)
    return spectra.values / (spectra.values + penalty) * spectra.solution


def _residual_power(base: np.ndarray, power: np.ndarray) -> np.ndarray:
    """1 − base^power; a base below −1 diverges, and is cut off."""
    with np.errstate(over="ignore"):
        return (1 - base**power).clip(-LARGEST_FILTER, LARGEST_FILTER)


def _gradient_descent(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    step_size, num_steps = _columns(members)
    return _residual_power(1 - 2 * step_size * spectra.values, num_steps) * spectra.solution


def _flow(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    """Gradient descent with many small steps: 1 − exp(−ts), t = 2αm."""
    (time,) = _columns(members)
    return -np.expm1(-time * spectra.values) * spectra.solution


def _newton(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    """From M₀ = start · S/‖S‖², start = 1 unless it is a free number."""
    num_steps, *others = _columns(members)
    start = others[0] if others else 1.0
    relative = (spectra.values / spectra.norms) ** 2
    return _residual_power(1 - start * relative, 2**num_steps) * spectra.solution


def _momentum(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    """Heavy ball: 1 − f follows r ← (1 + β − 2αs) r − β r₋₁ from r₀ = 1, r₁ = 1 − 2αs."""
    step_size, momentum, num_steps = _columns(members)
    descent = 1 - 2 * step_size * spectra.values
    before, residual = np.ones_like(descent), descent
    kept = residual
    for step in range(2, int(members[:, 2].max()) + 1):
        after = (descent + momentum) * residual - momentum * before
        before, residual = residual, after.clip(-LARGEST_FILTER, LARGEST_FILTER)
        kept = np.where(num_steps == step, residual, kept)
    return (1 - kept) * spectra.solution


def _conjugate_gradients(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    """m steps of conjugate gradients from 0: a filter that depends on the labels too."""
    values, moment = spectra.values, spectra.values * spectra.solution
    weights, residual = np.zeros_like(moment), moment
    direction, size = residual, (residual**2).sum(-1, keepdims=True)
    floor = np.finfo(float).tiny + 1e-28 * size
    reached = [weights]
    for _ in range(int(members.max())):
        curvature = (values * direction**2).sum(-1, keepdims=True)
        rate = np.where(size > floor, size / np.maximum(curvature, floor), 0)
        weights = weights + rate * direction
        residual = residual - rate * values * direction
        smaller = (residual**2).sum(-1, keepdims=True)
        kept = np.where(size > floor, smaller / np.maximum(size, floor), 0)
        direction = residual + kept * direction
        size = smaller
        reached.append(weights)
    return np.stack(reached)[members[:, 0].astype(int)]


def _least_squares(spectra: Spectra, members: np.ndarray) -> np.ndarray:
    return np.broadcast_to(spectra.solution, (len(members), *spectra.solution.shape))


_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, *(2**power for power in range(6, 16)))
_RIDGE = Family(
    "ridge",
    ("penalty",),
    lambda size: size * 2.0 ** np.arange(-24, 4.1, 0.25)[:, None],
    _ridge,
    (0.25,),
)
_FLOW = Family(
    "gradient_flow",
    ("time",),
    lambda size: 2.0 ** np.arange(-4, 24.1, 0.25)[:, None] / size,
    _flow,
    (0.25,),
)
_DESCENT = Family(
    "gradient_descent",
    ("step_size", "num_steps"),
    lambda size: _step_sizes(size, 0.5, _STEPS),
    _gradient_descent,
    (0.5, 0.0),
)
_NEWTON = Family("newton", ("num_steps",), lambda size: np.arange(31.0)[:, None], _newton, (0.0,))
_NEWTON_START = Family(
    "newton_start",
    ("num_steps", "start"),
    lambda size: _combinations(range(31), 2.0 ** np.arange(-3, 1.1, 0.5)),
    _newton,
    (0.0, 0.5),
)
_MOMENTUM = Family(
    "momentum",
    ("step_size", "momentum", "num_steps"),
    lambda size: _step_sizes(size, 1.0, (0.25, 0.5, 0.75, 0.9), (2, 3, 4, 6, 8, 12, 16, 32, 64)),
    _momentum,
    (1.0, 0.0, 0.0),
)
_CONJUGATE = Family(
    "conjugate_gradients",
    ("num_steps",),
    lambda size: np.arange(1.0, 17)[:, None],
    _conjugate_gradients,
    (0.0,),
)
_OLS = Family("least_squares", (), lambda size: np.empty((1, 0)), _least_squares, ())
_UNSCALED = (_RIDGE, _FLOW, _DESCENT, _NEWTON, _NEWTON_START, _MOMENTUM, _CONJUGATE, _OLS)
FAMILIES: dict[str, Family] = {
    family.name: family
    for plain in _UNSCALED
    for family in (plain, replace(plain, name=f"scaled_{plain.name}", scaled=True))
}
"""By name; each also scaled: c f(s), c fitted."""


@dataclass(frozen=True)
class FamilyFit:
    """A family's members as tried on the fitting prompts."""

    family: Family
    members: Float[np.ndarray, "member number"]
    scales: Float[np.ndarray, " member"]
    """The factor on each member's predictions; 1 unless the family is scaled."""
    errors: Float[np.ndarray, "prompt member"]
    """Squared, weighted."""

    @property
    def best(self) -> int:
        """The member with the least error."""
        return int(self.errors.sum(0).argmin())

    @property
    def number(self) -> np.ndarray:
        """The free numbers of the best member."""
        return self.members[self.best]

    def best_of(self, groups: np.ndarray) -> np.ndarray:
        """The best member of each group, a group being a row of ``groups`` that members share."""
        order = np.argsort(self.errors.sum(0), kind="stable")
        if groups.shape[1] == 0:
            return order[:1]
        return order[np.unique(groups[order], axis=0, return_index=True)[1]]

    def join(self, other: "FamilyFit") -> "FamilyFit":
        """The members of both."""
        return FamilyFit(
            self.family,
            np.concatenate((self.members, other.members)),
            np.concatenate((self.scales, other.scales)),
            np.concatenate((self.errors, other.errors), axis=1),
        )

    def predict(self, spectra: Spectra) -> Float[np.ndarray, "batch dim"]:
        """The best member's coordinates on any prompts."""
        return self.scales[self.best] * self.family.apply(spectra, self.number[None])[0]


def fit_family(
    family: Family,
    coordinates: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    weights: Float[np.ndarray, "batch dim"],
    largest: float | None = None,
) -> FamilyFit:
    """All members' weighted squared errors, the grid refined around the best; the least is the fit.

    Continuous numbers are refined for each combination of the others, so that each number of steps
    has its own step size. ``largest`` is the largest eigenvalue that the grid is laid out for;
    None: of these prompts.
    """
    grid = family.grid(largest or float(spectra.values.max()))
    fit = _try(family, grid, coordinates, spectra, weights)
    if not any(family.spacing):
        return fit
    spacing = np.array(family.spacing)
    for finer in range(ZOOMS):
        offsets = [
            np.arange(-3, 4) * width / 4 ** (finer + 1) if width else [0.0] for width in spacing
        ]
        best = fit.best_of(fit.members[:, spacing == 0])
        near = fit.members[best][:, None] * 2.0 ** _combinations(*offsets)
        near = near.reshape(-1, len(spacing))
        fit = fit.join(_try(family, near, coordinates, spectra, weights))
    return fit


def _try(
    family: Family,
    members: np.ndarray,
    coordinates: np.ndarray,
    spectra: Spectra,
    weights: np.ndarray,
) -> FamilyFit:
    predicted = family.apply(spectra, members)
    scales = np.ones(len(members))
    if family.scaled:
        cross, square = (
            (weights * predicted * other).sum((1, 2)) for other in (coordinates, predicted)
        )
        scales = cross / np.where(square > 0, square, 1)
    errors = (weights * (coordinates - scales[:, None, None] * predicted) ** 2).sum(-1).T
    return FamilyFit(family, members, scales, errors)


def member_curve(
    family: Family,
    members: Float[np.ndarray, "member number"],
    values: Float[np.ndarray, " value"],
    norm: float,
) -> Float[np.ndarray, "member value"]:
    """f(s) of members at eigenvalues of a matrix that has that Frobenius norm."""
    one = _Curve(values[:, None], np.ones((len(values), 1, 1)), np.ones((len(values), 1)), norm)
    return family.apply(one, members)[..., 0]


@dataclass(frozen=True)
class _Curve(Spectra):
    """Single eigenvalues, of a matrix whose norm is given."""

    norm: float = 1.0

    @property
    def norms(self) -> Float[np.ndarray, "batch 1"]:
        return np.full((len(self.values), 1), self.norm)


def cutoffs(family: Family, members: np.ndarray, spectra: Spectra) -> np.ndarray:
    """The smallest eigenvalue at which each member's filter is a half; not a number if none is."""
    top = spectra.values.max()
    values = top * np.logspace(-9, 2, 441)
    reached = member_curve(family, members, values, float(np.median(spectra.norms))) >= 0.5
    return np.where(reached.any(1), values[reached.argmax(1)], np.nan)
