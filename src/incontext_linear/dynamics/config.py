"""Parameters of the measurements along training."""

from typing import Annotated

from pydantic import Field

from incontext_linear.comparison.families import FamilyConfig
from incontext_linear.config import (
    BootstrapConfig,
    Config,
    NonNegativeInt,
    OpenFraction,
    PositiveInt,
)
from incontext_linear.probing.config import FitConfig, Targets


class DynamicsConfig(Config):
    """Which trainings are followed, at how many steps, and what is measured there."""

    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """One training each, of the same task, shape and recipe."""
    num_snapshots: Annotated[PositiveInt, Field(ge=2)] = 24
    """Steps at which the learner is kept, spaced by logarithm, beside step 0."""
    num_fit_prompts: PositiveInt = 256
    """Prompts on which the families' free numbers are fitted."""
    num_prompts: PositiveInt = 512
    """Other prompts, on which everything is scored."""
    families: dict[str, FamilyConfig | None] = Field(default={})
    """Families beside the default ones, or in their place; None takes one away."""
    plane: tuple[str, str] | None = None
    """Two baselines, whose distances span the plane of the trajectories; None: ``zero`` and
    ``ols``, with a pool ``discrete_mmse`` and ``bayes``.
    """
    looking_back: OpenFraction = 0.5
    """How far above evenly spread attention a head must be to count as looking back
    (`dynamics.heads`).
    """
    targets: Targets = ("moment", "least_squares")
    """What is read from every layer's states by linear probes."""
    num_probe_prompts: PositiveInt = 512
    fit: FitConfig = FitConfig(hidden_units=(), num_steps=150, batch_size=128, learning_rate=1e-2)
    """How the probes are fitted."""
    bootstrap: BootstrapConfig = BootstrapConfig()
