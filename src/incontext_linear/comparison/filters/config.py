"""Settings of the spectral filters."""

from typing import Annotated

from pydantic import Field, model_validator

from incontext_linear.comparison.filters.families import FAMILIES
from incontext_linear.config import (
    Config,
    Distinct,
    NonNegativeFloat,
    OpenFraction,
    PositiveInt,
    TaskConfig,
)


class FilterConfig(Config):
    """Spectral filters of a learner and of its layers."""

    num_prompts: Annotated[int, Field(ge=20)] = 600
    """Half of them fit the filters, half score them."""
    num_queries: PositiveInt = 16
    """Fresh queries a prompt, from which the implicit weights are estimated; more than d."""
    context_length: PositiveInt | None = None
    """Examples seen, k; None: one fewer than the prompt has."""
    conditions: Annotated[
        tuple[Annotated[float, Field(ge=1.0, le=1e12)], ...], Field(min_length=1), Distinct
    ] = (
        1.0,
        10.0,
        100.0,
        1000.0,
    )
    """Condition numbers of the inputs' covariance, in random bases; 1 is the training
    distribution.
    """
    families: Annotated[tuple[str, ...], Field(min_length=2), Distinct] = (
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
    layer_families: Annotated[tuple[str, ...], Field(min_length=2), Distinct] = (
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
    noise_factors: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1), Distinct] = (
        0.1,
        1.0,
        3.0,
    )
    """Noise on planted filters, in multiples of the learner's own residual."""
    plant_families: Annotated[tuple[str, ...], Field(min_length=2), Distinct] = (
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
