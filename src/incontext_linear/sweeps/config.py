"""What ``sweeps.yml`` may say: axes to cross, seeds, what each variant measures, and parameters
that all variants share.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from incontext_linear.config import Bool, Config, PositiveInt, explain
from incontext_linear.parameters import AxisValue

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class SweepError(ValueError):
    """A sweep does not exist, or what it says cannot be run."""


class SweepConfig(Config):
    """One sweep: every combination of the axes' values, with every seed, is one variant.

    Without axes it is a run over seeds.
    """

    axes: dict[str, tuple[AxisValue, ...]] = Field(default={})
    """Dotted parameter names, and the values that each takes."""
    follow: dict[str, dict[str, tuple[AxisValue, ...]]] = Field(default={})
    """Axis → parameters that go along with it, with one value for each of the axis's: a learning
    rate that suits each width. Null in the place of the parameters takes away what another
    environment says of this axis.
    """
    settings: dict[str, dict[str, dict[str, Any]]] = Field(default={})
    """Further axes, whose values are names: axis → name → nested parameters that make it. For what
    differs in several parameters at once, such as architectures.
    """
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    pipelines: Annotated[tuple[str, ...], Field(min_length=1)] = ("behavioral_comparison",)
    """What is measured on every variant's learner."""
    figures: Bool = False
    """Whether every variant draws its figures too."""
    stacked: Bool | Literal["auto"] = "auto"
    """Train variants of one shape in one step (`training.stacked`); auto: on a GPU. On a CPU it
    takes about as long as one after another.
    """
    parameters: dict[str, Any] = Field(default={})
    """A nested tree laid over the environment's parameters in every variant."""
    num_threads: PositiveInt = 1
    """CPU threads of each variant's arithmetic. Sums over more threads are rounded otherwise, so
    this never follows from the machine or from how many variants are left.
    """

    @property
    def all_axes(self) -> dict[str, tuple[AxisValue, ...]]:
        """Axes of parameters and of settings, with their values."""
        return self.axes | {axis: tuple(named) for axis, named in self.settings.items()}

    @model_validator(mode="after")
    def _check_settings(self) -> "SweepConfig":
        for axis, named in self.settings.items():
            if axis in self.axes or axis == "seed" or not _NAME.fullmatch(axis):
                raise ValueError(
                    f"settings: {axis!r} cannot name an axis; allowed: letters, digits, _ and -, "
                    "no axis twice, and not seed"
                )
            if not named:
                raise ValueError(f"settings.{axis}: no names given; allowed: at least one")
        return self

    @field_validator("follow", mode="before")
    @classmethod
    def _without_null(cls, follow: Any) -> Any:
        if not isinstance(follow, dict):
            return follow
        return {axis: one for axis, one in follow.items() if one is not None}

    @field_validator("axes")
    @classmethod
    def _check_axes(
        cls, axes: dict[str, tuple[AxisValue, ...]]
    ) -> dict[str, tuple[AxisValue, ...]]:
        if "seed" in axes:
            raise ValueError("seed is no axis; allowed: list the seeds under seeds")
        for name, values in axes.items():
            if not values:
                raise ValueError(f"{name}: no values given; allowed: at least one")
            _check_distinct(name, values)
        return axes

    @model_validator(mode="after")
    def _check_follow(self) -> "SweepConfig":
        for axis, followers in self.follow.items():
            if axis not in self.axes:
                raise ValueError(
                    f"follow: {axis!r} is not an axis; allowed: {', '.join(self.axes) or 'none'}"
                )
            for name, values in followers.items():
                if len(values) != len(self.axes[axis]):
                    raise ValueError(
                        f"follow.{axis}.{name}: {len(values)} values given; allowed: "
                        f"{len(self.axes[axis])}, one for each value of the axis"
                    )
        return self

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        _check_distinct("seeds", seeds)
        return seeds

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted({"seed", "variant"} & set(parameters))
        if reserved:
            raise ValueError(
                f"{reserved[0]} is set for each variant; allowed: seeds and axes say what varies"
            )
        return parameters


def check_sweep(name: str, raw: Any) -> SweepConfig:
    """Check one sweep of an environment, as the files give it.

    Raises:
        SweepError: naming every offending field, the value given and what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise SweepError(f"{name!r} cannot name a sweep; allowed: letters, digits, _ and -")
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        lines = (_explain(name, problem) for problem in error.errors())
        raise SweepError("\n".join(dict.fromkeys(lines))) from None


def _check_distinct(name: str, values: tuple[AxisValue, ...]) -> None:
    """True and 1 are different values, 1 and 1.0 are one value given twice."""
    seen = set()
    for value in values:
        key = (isinstance(value, bool), value)
        if key in seen:
            raise ValueError(f"{name}: {value!r} is given twice; allowed: distinct values")
        seen.add(key)


def _explain(name: str, problem: dict[str, Any]) -> str:
    """One line for one of pydantic's errors."""
    # Of a union pydantic names the member it tried, which is no part of the name.
    parts = (str(part) for part in problem["loc"] if part not in ("bool", "int", "float", "str"))
    path = [name, *parts]
    return explain(problem, ".".join(path), ", ".join(SweepConfig.model_fields))
