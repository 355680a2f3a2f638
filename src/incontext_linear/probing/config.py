"""Parameters of the probes, their controls, the interventions and the layers' read-outs."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from incontext_linear.config import (
    BootstrapConfig,
    Config,
    Distinct,
    ModerateFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
)
from incontext_linear.predictors.validation import MAX_STEPS

PROBE_TARGETS = ("moment", "least_squares", "ridge", "gram")
INTERVENTIONS = (
    "minimal_edit",
    "pattern_edit",
    "interchange_attended",
    "interchange_context",
)
RANDOM = "_random"
"""Ending of a method's name: a random direction of its norm, its control."""


def _check_target(name: str) -> str:
    if name not in PROBE_TARGETS and "." not in name:
        raise ValueError(
            f"unknown target {name!r}; allowed: {', '.join(map(repr, PROBE_TARGETS))}, and the "
            "dotted path of a function of your own, such as 'my_package.my_module.my_target'"
        )
    return name


def _check_method(name: str) -> str:
    if name.removesuffix(RANDOM) not in INTERVENTIONS and "." not in name:
        raise ValueError(
            f"unknown intervention {name!r}; allowed: {', '.join(map(repr, INTERVENTIONS))}, the "
            "dotted path of a class of your own, such as 'my_package.my_module.MyEdit', and each "
            f"of them with {RANDOM!r} behind it, a random direction of its norm"
        )
    return name


ProbeTarget = Annotated[str, AfterValidator(_check_target)]
Targets = Annotated[tuple[ProbeTarget, ...], Field(min_length=1), Distinct]
Method = Annotated[str, AfterValidator(_check_method)]
Iterations = Annotated[PositiveInt, Field(le=MAX_STEPS)]
Steps = Annotated[
    tuple[Annotated[NonNegativeInt, Field(le=MAX_STEPS)], ...], Field(min_length=2), Distinct
]


class FitConfig(Config):
    """How probes are fitted, refitted and scored."""

    hidden_units: Annotated[tuple[PositiveInt, ...], Distinct] = (64,)
    """Sizes of the MLP read-outs, which stand beside the linear one."""
    num_seeds: PositiveInt = 1
    """Refits of every probe, with other splits, initial weights and batches."""
    num_steps: PositiveInt = 1000
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 3e-3
    validation_fraction: OpenFraction = 0.15
    test_fraction: OpenFraction = 0.25

    @model_validator(mode="after")
    def _leaves_prompts_to_fit(self) -> "FitConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction:g} and test_fraction="
                f"{self.test_fraction:g} leave no prompts to fit; allowed: a sum below 1"
            )
        return self

    def split_sizes(self, num_prompts: int) -> tuple[int, int, int]:
        """Numbers of prompts for fitting, for stopping, and for the scores.

        Raises:
            ValueError: if they are too few: a spread needs two to fit, and a pair two to score.
        """
        num_test = int(self.test_fraction * num_prompts)
        num_validation = int(self.validation_fraction * num_prompts)
        sizes = num_prompts - num_test - num_validation, num_validation, num_test
        if any(size < least for size, least in zip(sizes, (2, 1, 2), strict=True)):
            raise ValueError(
                f"{num_prompts} probing prompts cannot be split into validation_fraction="
                f"{self.validation_fraction} and test_fraction={self.test_fraction}: that is "
                "{} to fit, {} to stop and {} to score; allowed: at least 2, 1 and 2".format(*sizes)
            )
        return sizes


class ControlsConfig(Config):
    """The control learner, whose task is a single fixed w = 1."""

    num_steps: PositiveInt = 300
    """Training steps."""


class InterventionsConfig(Config):
    """What is done to the hidden states, and on how many prompts."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1), Distinct] = (
        "minimal_edit",
        "pattern_edit",
        "minimal_edit_random",
        "pattern_edit_random",
        "interchange_attended",
        "interchange_context",
    )
    targets: Targets = ("moment", "least_squares")
    """Targets, of those that are probed, that are replaced by a donor prompt's."""
    num_pairs: PositiveInt = 512
    """Pairs of a recipient and a donor, at most; they are different test prompts, all of them."""


class CalibrationConfig(Config):
    """The constructed network, whose algorithm is known, on which all of this is tried."""

    num_steps: PositiveInt = 8
    """Steps of gradient descent that it takes."""
    num_prompts: PositiveInt = 2048
    """Prompts, of those that are probed, that it is tried on, at most."""


class LayerwiseConfig(Config):
    """The algorithms that the layers are set beside."""

    gradient_steps: Annotated[tuple[Iterations, ...], Field(min_length=2), Distinct] = (
        1,
        2,
        4,
        8,
        16,
        32,
        64,
    )
    newton_steps: Steps = (0, 1, 2, 3, 4, 6, 8, 10, 12)


class ProbingConfig(Config):
    """What is probed, and how: probes, controls, interventions, calibration, layers' progress."""

    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), Distinct] | None = None
    """Layers to probe, 0 being the embedding; None: all of them."""
    num_prompts: PositiveInt | None = None
    """How many of the saved probing prompts are used; None: all of them."""
    targets: Targets = ("moment", "least_squares")
    ridge_penalty: ModerateFloat = 1.0
    """λ of the target ``ridge``."""
    appearance: Annotated[tuple[OpenFraction, ...], Field(min_length=1), Distinct] = (
        0.1,
        0.2,
        0.3,
    )
    """Selectivities, shares of a target's variance, at which it appears; the same for all."""
    context_lengths: Annotated[tuple[PositiveInt | None, ...], Field(min_length=1), Distinct] = (
        None,
    )
    """Numbers of examples that the targets are computed from; None: one fewer than the prompt
    has.
    """
    gradient_step_size: ModerateFloat = 0.01
    """α of the gradient descent that the layers are set beside, and that the constructed network
    carries out.
    """
    fit: FitConfig = FitConfig()
    controls: ControlsConfig = ControlsConfig()
    interventions: InterventionsConfig = InterventionsConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    layerwise: LayerwiseConfig = LayerwiseConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
