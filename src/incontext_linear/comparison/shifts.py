"""Changes of the prompts' distribution under which algorithms that agree at home part.

A shift takes prompts of the training distribution and changes what its name says; labels are made
again from w, with the noise that the prompts had. Its strength is a field, and `home` the strength
that changes nothing, so that a shift is asked as a curve: where does agreement end? Garg et al.
(2022) are the source of skewed covariances, subspaces, orthants, scales, noise, and of queries that
are orthogonal to, or equal to, what was seen.

Two kinds: a `PromptShift` changes whole prompts. A `QueryShift` changes the query alone; since
every x is a query first and an example after, each k is then asked by prompts of its own, in which
only the query after k examples is another one (`incontext_linear.comparison.conditions`).
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.dotted import import_dotted
from incontext_linear.predictors.validation import Number, check_real
from incontext_linear.shapes import Xs, Ys
from incontext_linear.tasks import Prompts

Strength = Number


class PromptShift(ABC):
    """A change of whole prompts; a subclass is a frozen dataclass with the field ``strength``."""

    home: ClassVar[Strength | None] = None
    """The strength that changes nothing; None: there is none, as for inputs on a sphere."""
    strengths: ClassVar[Sequence[Strength]]
    """Those tried where the parameters name none."""
    unit: ClassVar[str]
    """What the strength is, in words."""

    strength: Strength

    @abstractmethod
    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """Changed prompts, of as many rows; xs (B, n, d), ys (B, n), ws (B, d)."""


class QueryShift(ABC):
    """A change of the query alone; as `PromptShift` otherwise."""

    home: ClassVar[Strength | None] = None
    strengths: ClassVar[Sequence[Strength]]
    unit: ClassVar[str]

    strength: Strength

    @abstractmethod
    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """The query (B, d) that takes the place of ``xs[:, examples_seen]``."""


Shift = PromptShift | QueryShift


def noise_of(prompts: Prompts) -> Ys:
    """The labels' noise, y − wᵀx."""
    return prompts.ys - _labels(prompts.xs, prompts.ws)


def relabel(
    prompts: Prompts,
    xs: Xs | None = None,
    ws: Float[Tensor, "batch dim"] | None = None,
    noise: Float[Tensor, "batch example"] | None = None,
) -> Prompts:
    """The prompts with other inputs, weights or noise, and the labels that follow."""
    xs = prompts.xs if xs is None else xs
    ws = prompts.ws if ws is None else ws
    noise = noise_of(prompts) if noise is None else noise
    return Prompts(xs, _labels(xs, ws) + noise, ws)


def _labels(xs: Tensor, ws: Tensor) -> Tensor:
    return (xs @ ws.unsqueeze(-1)).squeeze(-1)


def _normal(shape: Sequence[int], like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=rng, device=rng.device).to(like)


def _uniform(shape: Sequence[int], like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=rng, device=rng.device).to(like)


def random_rotations(
    num_prompts: int, like: Float[Tensor, "batch example dim"], rng: torch.Generator
) -> Float[Tensor, "batch dim dim"]:
    """Orthogonal matrices, uniformly distributed, one a prompt."""
    dim = like.shape[-1]
    q, r = torch.linalg.qr(_normal((num_prompts, dim, dim), like, rng))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


@dataclass(frozen=True)
class InputScale(PromptShift):
    """x → s x."""

    strength: Strength
    home: ClassVar = 1.0
    strengths: ClassVar = (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0)
    unit: ClassVar = "times as large"

    def __post_init__(self) -> None:
        check_real("strength", self.strength, positive=True)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        return relabel(prompts, prompts.xs * self.strength)


@dataclass(frozen=True)
class ConditionNumber(PromptShift):
    """Covariance of condition number κ in a basis of each prompt's own; its trace is kept.

    Eigenvalues fall geometrically from the largest to the κ-th part of it (Garg et al.'s skewed
    covariance has a power law).
    """

    strength: Strength
    home: ClassVar = 1
    strengths: ClassVar = (1, 10, 100, 1000)
    unit: ClassVar = "condition number"

    def __post_init__(self) -> None:
        _at_least("strength", self.strength, 1)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        if self.strength == 1:
            return prompts
        dim = prompts.xs.shape[-1]
        exponents = torch.linspace(0, -1, dim).to(prompts.xs)
        variances = float(self.strength) ** exponents
        scales = (variances * dim / variances.sum()).sqrt()
        basis = random_rotations(len(prompts.xs), prompts.xs, rng)
        return relabel(prompts, prompts.xs @ (basis * scales.unsqueeze(-2)) @ basis.mT)


@dataclass(frozen=True)
class Subspace(PromptShift):
    """Inputs in a random subspace that has a share of the dimensions; their mean square is kept."""

    strength: Strength
    home: ClassVar = 1.0
    strengths: ClassVar = (0.25, 0.5, 0.75, 1.0)
    unit: ClassVar = "share of the dimensions"

    def __post_init__(self) -> None:
        _share("strength", self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        dim = prompts.xs.shape[-1]
        rank = max(1, round(self.strength * dim))
        if rank == dim:
            return prompts
        basis = random_rotations(len(prompts.xs), prompts.xs, rng)[..., :rank]
        return relabel(prompts, prompts.xs @ basis @ basis.mT * (dim / rank) ** 0.5)


@dataclass(frozen=True)
class InputMean(PromptShift):
    """x → x + a u with a random direction u of each prompt's own, |u| = √d."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5, 1.0, 2.0)
    unit: ClassVar = "added to each coordinate"

    def __post_init__(self) -> None:
        check_real("strength", self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        if self.strength == 0:
            return prompts
        batch, _, dim = prompts.xs.shape
        direction = _normal((batch, 1, dim), prompts.xs, rng)
        direction = direction / direction.norm(dim=-1, keepdim=True) * dim**0.5
        return relabel(prompts, prompts.xs + self.strength * direction)


@dataclass(frozen=True)
class Orthant(PromptShift):
    """A share of the coordinates keeps one sign through the prompt (Garg et al.)."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5, 1.0)
    unit: ClassVar = "share of the coordinates with one sign"

    def __post_init__(self) -> None:
        _share("strength", self.strength, zero=True)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        batch, _, dim = prompts.xs.shape
        signs = _normal((batch, 1, dim), prompts.xs, rng).sign()
        held = torch.arange(dim, device=prompts.xs.device) < round(self.strength * dim)
        return relabel(prompts, torch.where(held, signs * prompts.xs.abs(), prompts.xs))


@dataclass(frozen=True)
class Sphere(PromptShift):
    """Norms drawn together: ‖x‖ → ‖x‖^(1−s) · (root mean square norm)^s; with s = 1 a sphere."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0)
    unit: ClassVar = "of the way to a sphere"

    def __post_init__(self) -> None:
        _share("strength", self.strength, zero=True)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        if self.strength == 0:
            return prompts
        norms = prompts.xs.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        typical = norms.square().mean().sqrt()
        return relabel(prompts, prompts.xs * (typical / norms) ** self.strength)


@dataclass(frozen=True)
class HeavyTailedInputs(PromptShift):
    """Each x divided by √(χ²_ν / (ν − 2)): multivariate t of the same variance, if x is normal.

    The strength is 1/ν, 0 for normal inputs; below 1/2, where the variance exists.
    """

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.1, 0.2, 0.33)
    unit: ClassVar = "1 / degrees of freedom"

    def __post_init__(self) -> None:
        _inverse_freedom(self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        scale = _tail_scale(self.strength, (*prompts.xs.shape[:2], 1), prompts.xs, rng)
        return relabel(prompts, prompts.xs * scale)


@dataclass(frozen=True)
class HeavyTailedCoordinates(PromptShift):
    """As `HeavyTailedInputs`, with a divisor for each coordinate: independent t coordinates."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.1, 0.2, 0.33)
    unit: ClassVar = "1 / degrees of freedom"

    def __post_init__(self) -> None:
        _inverse_freedom(self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        scale = _tail_scale(self.strength, prompts.xs.shape, prompts.xs, rng)
        return relabel(prompts, prompts.xs * scale)


def _tail_scale(
    inverse: Number, shape: Sequence[int], like: Tensor, rng: torch.Generator
) -> Tensor | float:
    """√((ν − 2) / χ²_ν), by χ²_ν = 2 Gamma(ν/2) and Marsaglia and Tsang's method (2000)."""
    if inverse == 0:
        return 1.0
    freedom = 1 / inverse
    # Of Gamma(a + 1): a > 1/3 then, where the method holds; U^(1/a) brings it to Gamma(a).
    shape_less_third = freedom / 2 + 1 - 1 / 3
    factor = 1 / (9 * shape_less_third) ** 0.5
    gamma = torch.zeros(tuple(shape)).to(like)
    missing = torch.ones_like(gamma, dtype=torch.bool)
    while bool(missing.any()):
        normal, uniform = _normal(shape, like, rng), _uniform(shape, like, rng)
        cube = (1 + factor * normal) ** 3
        safe = torch.where(cube > 0, cube, 1)
        bound = normal**2 / 2 + shape_less_third * (1 - cube + safe.log())
        taken = missing & (cube > 0) & (uniform.log() < bound)
        gamma, missing = torch.where(taken, shape_less_third * cube, gamma), missing & ~taken
    gamma = gamma * _uniform(shape, like, rng).clamp(min=1e-12) ** (2 / freedom)
    return ((freedom - 2) / (2 * gamma).clamp(min=1e-12)).sqrt()


@dataclass(frozen=True)
class WeightScale(PromptShift):
    """w → s w, the noise as it was."""

    strength: Strength
    home: ClassVar = 1.0
    strengths: ClassVar = (0.3, 1.0, 2.0, 3.0, 5.0)
    unit: ClassVar = "times as large"

    def __post_init__(self) -> None:
        check_real("strength", self.strength, positive=True)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        return relabel(prompts, ws=prompts.ws * self.strength)


@dataclass(frozen=True)
class SparseWeights(PromptShift):
    """A share of the coordinates of w set to 0, at random places; its mean square is kept."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5, 0.75)
    unit: ClassVar = "share of the weights that are 0"

    def __post_init__(self) -> None:
        _share("strength", self.strength, zero=True)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        dim = prompts.ws.shape[-1]
        kept = max(1, dim - round(self.strength * dim))
        places = _uniform(prompts.ws.shape, prompts.ws, rng).argsort(-1)
        return relabel(prompts, ws=prompts.ws * (places < kept) * (dim / kept) ** 0.5)


@dataclass(frozen=True)
class LabelNoise(PromptShift):
    """Normal noise of this standard deviation, added to what the labels have."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.1, 0.5, 1.0)
    unit: ClassVar = "standard deviation of the noise that is added"

    def __post_init__(self) -> None:
        check_real("strength", self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        added = self.strength * _normal(prompts.ys.shape, prompts.ys, rng)
        return prompts._replace(ys=prompts.ys + added)


@dataclass(frozen=True)
class HeavyTailedNoise(PromptShift):
    """As `LabelNoise`, with Student's t of 3 degrees of freedom, of this standard deviation."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 0.5)
    unit: ClassVar = "standard deviation of the noise that is added"

    def __post_init__(self) -> None:
        check_real("strength", self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        normal = _normal(prompts.ys.shape, prompts.ys, rng)
        added = normal * _tail_scale(1 / 3, prompts.ys.shape, prompts.ys, rng)
        return prompts._replace(ys=prompts.ys + self.strength * added)


@dataclass(frozen=True)
class LabelOutlier(PromptShift):
    """The label of one example of the first quarter is off by this many times √E[y²]."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0, 3.0)
    unit: ClassVar = "error of one label, in their standard deviations"

    def __post_init__(self) -> None:
        check_real("strength", self.strength)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        batch, num_examples = prompts.ys.shape
        first = max(1, num_examples // 4)
        place = torch.randint(first, (batch, 1), generator=rng, device=rng.device)
        sign = _normal((batch, 1), prompts.ys, rng).sign()
        size = self.strength * prompts.ys.square().mean().sqrt()
        return prompts._replace(
            ys=prompts.ys.scatter_add(1, place.to(prompts.ys.device), sign * size)
        )


@dataclass(frozen=True)
class RepeatedExamples(PromptShift):
    """Each example comes this many times in a row; a label's noise repeats with it."""

    strength: Strength
    home: ClassVar = 1
    strengths: ClassVar = (1, 2, 4)
    unit: ClassVar = "times each example"

    def __post_init__(self) -> None:
        _at_least("strength", self.strength, 1)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        rows = torch.arange(prompts.ys.shape[1], device=prompts.ys.device) // int(self.strength)
        return prompts._replace(xs=prompts.xs[:, rows], ys=prompts.ys[:, rows])


@dataclass(frozen=True)
class PromptLength(PromptShift):
    """Prompts longer than those of training, by inputs and noise of another prompt of the batch.

    A learner whose positions end earlier refuses them; the shift is then left out.
    """

    strength: Strength
    home: ClassVar = 1.0
    strengths: ClassVar = (1.0, 1.5)
    unit: ClassVar = "times as long"

    def __post_init__(self) -> None:
        _at_least("strength", self.strength, 1)
        _at_most("strength", self.strength, 2)

    def __call__(self, prompts: Prompts, rng: torch.Generator) -> Prompts:
        """As `PromptShift`."""
        length = round(self.strength * prompts.ys.shape[1])
        xs, noise = (
            torch.cat((t, t.roll(1, 0)), 1)[:, :length] for t in (prompts.xs, noise_of(prompts))
        )
        return relabel(prompts, xs, noise=noise)


@dataclass(frozen=True)
class QueryScale(QueryShift):
    """The query is this many times as large: a predictor that is linear in it scales with it."""

    strength: Strength
    home: ClassVar = 1.0
    strengths: ClassVar = (0.3, 1.0, 2.0, 3.0)
    unit: ClassVar = "times as large"

    def __post_init__(self) -> None:
        check_real("strength", self.strength, positive=True)

    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """As `QueryShift`."""
        return self.strength * prompts.xs[:, examples_seen]


@dataclass(frozen=True)
class OrthogonalQuery(QueryShift):
    """The query's part in the span of what was seen is taken away by this share, its norm kept.

    Where the examples span everything there is nothing orthogonal; the query then has its part
    along the direction in which they vary least alone.
    """

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0)
    unit: ClassVar = "of the way to a query orthogonal to the examples"

    def __post_init__(self) -> None:
        _share("strength", self.strength, zero=True)

    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """As `QueryShift`."""
        query, seen = prompts.xs[:, examples_seen], prompts.xs[:, :examples_seen].double()
        _, directions = torch.linalg.eigh(seen.mT @ seen)
        free = max(1, query.shape[-1] - examples_seen)
        basis = directions[..., :free].to(query)
        outside = (basis @ (basis.mT @ query.unsqueeze(-1))).squeeze(-1)
        moved = (1 - self.strength) * query + self.strength * outside
        size = query.norm(dim=-1, keepdim=True)
        return moved * size / moved.norm(dim=-1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class SeenQuery(QueryShift):
    """The query moves this share of the way to an example that was seen."""

    strength: Strength
    home: ClassVar = 0.0
    strengths: ClassVar = (0.0, 1.0)
    unit: ClassVar = "of the way to an example seen"

    def __post_init__(self) -> None:
        _share("strength", self.strength, zero=True)

    def query(
        self, prompts: Prompts, examples_seen: int, rng: torch.Generator
    ) -> Float[Tensor, "batch dim"]:
        """As `QueryShift`."""
        batch = len(prompts.xs)
        place = torch.randint(examples_seen, (batch,), generator=rng, device=rng.device)
        rows = torch.arange(batch, device=prompts.xs.device)
        seen = prompts.xs[rows, place.to(prompts.xs.device)]
        return (1 - self.strength) * prompts.xs[:, examples_seen] + self.strength * seen


SHIFTS: dict[str, type] = {
    "input_scale": InputScale,
    "condition_number": ConditionNumber,
    "subspace": Subspace,
    "input_mean": InputMean,
    "orthant": Orthant,
    "sphere": Sphere,
    "heavy_tailed_inputs": HeavyTailedInputs,
    "heavy_tailed_coordinates": HeavyTailedCoordinates,
    "weight_scale": WeightScale,
    "sparse_weights": SparseWeights,
    "label_noise": LabelNoise,
    "heavy_tailed_noise": HeavyTailedNoise,
    "label_outlier": LabelOutlier,
    "repeated_examples": RepeatedExamples,
    "prompt_length": PromptLength,
    "query_scale": QueryScale,
    "orthogonal_query": OrthogonalQuery,
    "seen_query": SeenQuery,
}


def find_shift(kind: str) -> type:
    """The class that a name of this module, or a dotted path of your own, stands for.

    Raises:
        ValueError: on an unknown name, listing those that exist.
    """
    known = f"shifts that exist are {', '.join(SHIFTS)}, and dotted paths of your own classes"
    if kind in SHIFTS:
        return SHIFTS[kind]
    if "." not in kind:
        raise ValueError(f"unknown shift {kind!r}; {known}")
    try:
        found = import_dotted(kind)
    except ValueError as error:
        raise ValueError(f"cannot import the shift {kind!r} ({error}); {known}") from error
    if not (inspect.isclass(found) and issubclass(found, PromptShift | QueryShift)):
        raise ValueError(f"{kind!r} is no PromptShift or QueryShift; {known}")
    return found


def build_shifts(
    chosen: Mapping[str, Sequence[Strength] | None] | None = None,
) -> dict[str, list[Any]]:
    """Shifts at each of their strengths.

    Args:
        chosen: name or dotted path → strengths, None for the shift's own list; None: all that
        exist.

    Returns:
        Name → one shift a strength, in the order given.

    Raises:
        ValueError: on an unknown shift, or a strength that is not allowed, naming both.
    """
    built = {}
    for name, strengths in (dict.fromkeys(SHIFTS) if chosen is None else chosen).items():
        kind = find_shift(name)
        try:
            built[name] = [kind(s) for s in (kind.strengths if strengths is None else strengths)]
        except ValueError as error:
            raise ValueError(f"shift {name!r}: {error}") from error
    return built


def _at_least(name: str, value: Any, minimum: Number) -> None:
    check_real(name, value)
    if value < minimum:
        raise ValueError(f"{name}={value!r} is not allowed: {name} must be ≥ {minimum}")


def _at_most(name: str, value: Any, maximum: Number) -> None:
    if value > maximum:
        raise ValueError(f"{name}={value!r} is not allowed: {name} must be ≤ {maximum}")


def _share(name: str, value: Any, zero: bool = False) -> None:
    check_real(name, value, positive=not zero)
    _at_most(name, value, 1)


def _inverse_freedom(value: Any) -> None:
    check_real("strength", value)
    if value >= 0.5:
        raise ValueError(
            f"strength={value!r} is not allowed: strength must be < 0.5, since with 2 degrees of "
            "freedom or fewer there is no variance"
        )
