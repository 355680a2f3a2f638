"""Parameters of the construction: the constants of a constructed network, and what is measured on
it.

The construction replaces three limits by large or small numbers (paper, section 3 and its
appendix): attention that looks at one token only, a LayerNorm that changes nothing, and a GeLU that
squares. Each number trades the error of the unfinished limit against floating-point rounding, so
each has a best value for every dtype; `docs/results/construction.md` shows the measured table from
which the defaults below come.
"""

from typing import Annotated, Literal

from pydantic import Field

from incontext_linear.config import (
    Config,
    Distinct,
    Int,
    ModerateFloat,
    PositiveFloat,
    PositiveInt,
    SizedFloat,
)

DtypeName = Literal["float32", "float64"]
Constant = Annotated[PositiveFloat, Field(ge=1e-30, le=1e30)]
Values = Annotated[tuple[Constant, ...], Field(min_length=1), Distinct]
Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1), Distinct]
Length = Annotated[Int, Field(ge=2)]
"""Of a prompt: one example to learn from, and a query."""


class Constants(Config):
    """The finite stand-ins for the three limits of the construction, and how far its gates
    reach.
    """

    saturation: Constant
    """Score by which the attended token leads its neighbour: each neighbour leaks
    exp(-saturation).
    """
    padding: Constant
    """N: the rows that hold +N and -N fix LayerNorm's scale up to |h|²/N² (√N plays this part in
    `div`).
    """
    gelu_scale: Constant
    """Size at which numbers enter the GeLU when it squares them."""
    gate_range: Constant
    """Largest number that a closed gate holds back; an open one errs by this times the dtype's
    epsilon.
    """


FLOAT64 = Constants(saturation=60.0, padding=1e14, gelu_scale=1e-6, gate_range=2**16)
FLOAT32 = Constants(saturation=30.0, padding=1e8, gelu_scale=1e-3, gate_range=2**10)


class ConstructionConfig(Config):
    """What the `construction` pipeline builds and measures."""

    step_size: ModerateFloat = 0.01
    penalty: ModerateFloat = 0.5
    num_steps: PositiveInt = 4
    """Steps of batch gradient descent."""
    size_dims: Sizes = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    """Dimensions d of the size table."""
    error_dims: Sizes = (1, 2, 4, 8, 16)
    """Dimensions d of the error table."""
    num_examples: Length = 20
    num_prompts: PositiveInt = 4
    noise_std: SizedFloat = 0.5
    float64: Constants = FLOAT64
    float32: Constants = FLOAT32
    sweep_dim: PositiveInt = 4
    """Dimension, and below the prompt, at which each constant is varied while the others stay."""
    sweep_num_examples: Length = 8
    sweep_num_prompts: PositiveInt = 16
    saturations: Values = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 100.0)
    paddings: Values = tuple(10.0**power for power in range(2, 21, 2))
    gelu_scales: Values = tuple(10.0**-power for power in range(1, 9))

    def constants(self, dtype: DtypeName) -> Constants:
        """The chosen constants of one dtype."""
        return self.float64 if dtype == "float64" else self.float32
