"""Parameters of the phase diagrams."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from incontext_linear.config import (
    BootstrapConfig,
    Config,
    Distinct,
    PositiveFloat,
    PositiveInt,
    flatten,
)


def _one_level(value: Any) -> Any:
    """``{"model": {"width": 64}}``, as ``--params`` nests dotted names, and ``{"model.width": 64}``
    alike.
    """
    return flatten(value) if isinstance(value, dict) else value


SweepName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]


class DiversityConfig(Config):
    """Learners of a sweep over ``task.pool_size``, against the pool's posterior mean and ridge."""

    sweep: SweepName = "diversity"
    """Name of a finished sweep; its folder below ``data/sweeps``."""
    num_prompts: PositiveInt = 1024
    """Of each pool, and as many of the prior."""
    bootstrap: BootstrapConfig = BootstrapConfig()


class PhaseDiagramConfig(Config):
    """Which algorithm a sweep's learners are nearest to, along one of the sweep's axes."""

    sweep: SweepName = "depth"
    """Name of a finished sweep; its folder below ``data/sweeps``."""
    axis: str | None = None
    """The swept parameter that is drawn, such as ``model.num_layers``; None: the only one that
    varies.
    """
    where: Annotated[dict[str, Any], BeforeValidator(_one_level)] = Field(default={})
    """Values of the other swept parameters: ``{model.width: 64}``."""
    examples_seen: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Distinct] | None = None
    """Numbers of examples seen, k, that the mean over k is taken of; None: all from 1 on."""
    points: Annotated[tuple[PositiveFloat, ...], Distinct] = (1.0, 2.0)
    """Numbers of examples that are reported beside the mean, in multiples of the dimension d."""
    bootstrap: BootstrapConfig = BootstrapConfig()

    @model_validator(mode="after")
    def _axis_is_not_fixed(self) -> "PhaseDiagramConfig":
        if self.axis is not None and self.axis in self.where:
            raise ValueError(
                f"where fixes {self.axis}={self.where[self.axis]!r}, which is the axis; allowed: "
                "other axes"
            )
        return self
