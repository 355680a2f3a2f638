"""Candidate algorithms as families with free numbers: ridge regression in λ, descent in α and m.

What a learner is compared with is the best member of each family, so that no conclusion rests on
numbers that someone chose. A family is data: a predictor's type (a name of
`incontext_linear.predictors`, or a dotted path of your own), the grids of its free numbers, and
arguments that stay fixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from incontext_linear.comparison.spectra import Prefixes, has_filter, predict_filtered
from incontext_linear.config import Config, TaskConfig
from incontext_linear.predictors import Predictor, build_predictor
from incontext_linear.predictors.registry import PREDICTORS
from incontext_linear.predictors.validation import Number


class Grid(Config):
    """Where the values of a free number are looked for: between two ends, first at some points."""

    low: Number
    high: Number
    points: Annotated[int, Field(ge=2)] = 25
    scale: Literal["log", "linear"] = "log"
    kind: Literal["real", "integer"] = "real"

    @model_validator(mode="after")
    def _ordered(self) -> "Grid":
        if self.low >= self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError(
                f"low={self.low}, high={self.high} are no range; allowed: low < high, and for "
                "scale: log 0 < low"
            )
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The ends, as coordinates: logarithms of a log grid's values."""
        return (self._inward(self.low), self._inward(self.high))

    def coordinates(self) -> np.ndarray:
        """Coordinates of the first points; of integers each once."""
        raw = np.linspace(*self.ends, self.points)
        return np.unique([self.snap(u) for u in raw])

    def snap(self, coordinate: Number) -> float:
        """The nearest allowed coordinate."""
        inside = float(np.clip(coordinate, *self.ends))
        return self._inward(self.value(inside)) if self.kind == "integer" else inside

    def value(self, coordinate: Number) -> Number:
        """The number at a coordinate."""
        value = float(np.exp(coordinate)) if self.scale == "log" else coordinate
        return round(value) if self.kind == "integer" else value

    def _inward(self, value: Number) -> float:
        return float(np.log(value)) if self.scale == "log" else float(value)


class FamilyConfig(Config):
    """One family, as the parameters say it."""

    type: str
    """A predictor's name, or the dotted path of a class of your own."""
    free: dict[str, Grid] = Field(default_factory=dict)
    """The numbers that are fitted to the learner."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments that stay as they are."""
    label: str | None = None
    """What sentences call it; None: its name."""


def _steps(high: int, points: int) -> Grid:
    return Grid(low=1, high=high, points=points, kind="integer")


_STEP_SIZE = Grid(low=1e-5, high=1.0, points=31)

DEFAULT_FAMILIES: dict[str, FamilyConfig] = {
    "zero": FamilyConfig(type="FirstExamples", arguments={"num_examples": 0}, label="predicting 0"),
    "averaging": FamilyConfig(type="Averaging", label="averaging (Xᵀy / k)"),
    "least_squares": FamilyConfig(type="OrdinaryLeastSquares", label="least squares"),
    "bayes": FamilyConfig(type="BayesPosteriorMean", label="the task's posterior mean"),
    "first_examples": FamilyConfig(
        type="FirstExamples",
        free={"num_examples": Grid(low=1, high=64, points=64, scale="linear", kind="integer")},
        label="least squares on the first examples",
    ),
    "ridge": FamilyConfig(
        type="Ridge",
        free={"penalty": Grid(low=1e-8, high=1e4, points=61)},
        label="ridge regression",
    ),
    "newton": FamilyConfig(
        type="IterativeNewton", free={"num_steps": _steps(24, 24)}, label="Newton's iteration"
    ),
    "conjugate_gradients": FamilyConfig(
        type="ConjugateGradients", free={"num_steps": _steps(32, 32)}, label="conjugate gradients"
    ),
    "nearest_neighbors": FamilyConfig(
        type="NearestNeighbors",
        free={"num_neighbors": Grid(low=1, high=16, points=16, scale="linear", kind="integer")},
        label="nearest neighbours",
    ),
    "weighted_neighbors": FamilyConfig(
        type="NearestNeighbors",
        free={"num_neighbors": Grid(low=1, high=16, points=16, scale="linear", kind="integer")},
        arguments={"weights": "distance"},
        label="nearest neighbours weighted by distance",
    ),
    "sgd": FamilyConfig(
        type="OnePassSGD",
        free={"step_size": Grid(low=1e-3, high=1.0, points=31)},
        label="one pass of SGD",
    ),
    "decaying_sgd": FamilyConfig(
        type="DecayingSGD",
        free={
            "step_size": Grid(low=1e-3, high=1.0, points=21),
            "decay": Grid(low=0.05, high=1.5, points=8, scale="linear"),
        },
        label="one pass of SGD with falling steps",
    ),
    "sgd_weight_decay": FamilyConfig(
        type="OnePassSGD",
        free={
            "step_size": Grid(low=1e-3, high=1.0, points=21),
            "penalty": Grid(low=1e-3, high=10.0, points=9),
        },
        label="one pass of SGD with weight decay",
    ),
    "gradient_descent": FamilyConfig(
        type="GradientDescent",
        free={"step_size": _STEP_SIZE, "num_steps": _steps(4096, 33)},
        label="gradient descent",
    ),
    "richardson": FamilyConfig(
        type="Richardson",
        free={"relaxation": Grid(low=0.02, high=4.0, points=17), "num_steps": _steps(4096, 33)},
        label="gradient descent with steps relative to ‖X‖²",
    ),
    "chebyshev": FamilyConfig(
        type="Chebyshev",
        free={"num_steps": _steps(256, 20), "condition": Grid(low=1.5, high=1e5, points=21)},
        label="Chebyshev's iteration",
    ),
    "diagonal_descent": FamilyConfig(
        type="PreconditionedGradientDescent",
        free={"step_size": Grid(low=1e-3, high=1.0, points=21), "num_steps": _steps(4096, 33)},
        arguments={"preconditioner": "diagonal"},
        label="gradient descent with Jacobi's preconditioner",
    ),
    "covariance_descent": FamilyConfig(
        type="PreconditionedGradientDescent",
        free={
            "step_size": Grid(low=0.05, high=1.0, points=17),
            "damping": Grid(low=1e-6, high=1e2, points=25),
        },
        arguments={"preconditioner": "covariance", "num_steps": 1},
        label="one step along the inverse covariance",
    ),
    "heavy_ball": FamilyConfig(
        type="HeavyBall",
        free={
            "step_size": Grid(low=1e-4, high=1.0, points=17),
            "num_steps": _steps(512, 13),
            "momentum": Grid(low=0.1, high=0.95, points=6, scale="linear"),
        },
        label="gradient descent with momentum",
    ),
}
"""The textbook's, simplest first; a task with a finite pool of w adds ``discrete_mmse``."""

DISCRETE_MMSE = FamilyConfig(type="DiscreteMMSE", label="the posterior mean over the task's pool")


@dataclass(frozen=True)
class Family:
    """A candidate: how its members are built, and which of their numbers are free.

    Attributes:
        name: what tables call it.
        label: what sentences call it.
        config: type, fixed arguments and grids.
        task: where arguments come from that the type requires and nothing here gives.
    """

    name: str
    label: str
    config: FamilyConfig
    task: TaskConfig

    @property
    def grids(self) -> dict[str, Grid]:
        """Of the free numbers."""
        return self.config.free

    @cached_property
    def filtered(self) -> bool:
        """Whether its members are filters of the eigenvalues, and hence cheap."""
        kind = PREDICTORS.get(self.config.type)
        return kind is not None and has_filter(kind, self.config.arguments)

    def member(self, numbers: Mapping[str, Number]) -> "Member":
        """The member with these values of the free numbers."""
        return Member(self, dict(numbers))

    def predict(
        self, members: Sequence[Mapping[str, Number]], prefixes: Prefixes
    ) -> Float[Tensor, "member batch prefix"]:
        """Predictions of several members, float64; not finite where one diverges."""
        if self.filtered:
            arguments = [{**self.config.arguments, **numbers} for numbers in members]
            return predict_filtered(PREDICTORS[self.config.type], arguments, prefixes)
        kept = list(prefixes.examples_seen)
        called = [self.member(n).predictor(prefixes.xs, prefixes.ys)[:, kept] for n in members]
        return torch.stack([prediction.double() for prediction in called])


@dataclass(frozen=True)
class Member:
    """One member of a family: an algorithm with all its numbers."""

    family: Family
    numbers: dict[str, Number] = field(default_factory=dict)

    @cached_property
    def predictor(self) -> Predictor:
        """In the one form, ``predictor(xs, ys)``."""
        config = self.family.config
        spec = {"type": config.type, **config.arguments, **self.numbers}
        return build_predictor(self.family.name, spec, self.family.task)

    def predict(self, prefixes: Prefixes) -> Float[Tensor, "batch prefix"]:
        """Its predictions, float64."""
        return self.family.predict([self.numbers], prefixes)[0]

    @property
    def words(self) -> str:
        """``gradient descent (step size = 0.0032, steps = 4,100)``."""
        values = ", ".join(
            f"{name.removeprefix('num_').replace('_', ' ')} = "
            + (f"{value:,}" if isinstance(value, int) else f"{value:.3g}")
            for name, value in self.numbers.items()
        )
        return f"{self.family.label} ({values})" if values else self.family.label


def _within(config: FamilyConfig, task: TaskConfig) -> FamilyConfig:
    """Without numbers beyond what prompts have: they would all be the same algorithm."""
    longest, rank = max(2, task.num_examples - 1), max(2, 2 * task.dim)
    ends = {"num_examples": longest, "num_neighbors": longest}
    if config.type == "ConjugateGradients":
        ends["num_steps"] = rank
    free = {
        name: grid.model_copy(update={"high": min(grid.high, ends.get(name, grid.high))})
        for name, grid in config.free.items()
    }
    return config.model_copy(update={"free": free})


def build_families(
    task: TaskConfig, own: Mapping[str, FamilyConfig | None] | None = None
) -> list[Family]:
    """The candidates for a task: the defaults, a user's own, and what the task's prior adds.

    Args:
        task: the training task.
        own: families added to the defaults, or put in the place of one; None takes one away.

    Raises:
        ValueError: if a family cannot be built, as `build_predictor` says it.
    """
    configs: dict[str, FamilyConfig | None] = dict(DEFAULT_FAMILIES)
    if task.pool_size is not None:
        configs["discrete_mmse"] = DISCRETE_MMSE
    configs |= own or {}
    families = [
        Family(name, config.label or name.replace("_", " "), _within(config, task), task)
        for name, config in configs.items()
        if config is not None
    ]
    for family in families:
        # Once, at one point: a misspelt type or argument is said before anything is run.
        lowest = {name: grid.value(grid.ends[0]) for name, grid in family.grids.items()}
        _ = family.member(lowest).predictor
    return families
