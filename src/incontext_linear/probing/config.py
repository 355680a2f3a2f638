"""Parameters of the probes, their controls, the interventions and the layers' read-outs."""

from typing import Annotated

from pydantic import AfterValidator, Field

from incontext_linear.config import Config, NonNegativeInt, OpenFraction, PositiveFloat, PositiveInt

PROBE_TARGETS = ("moment", "least_squares", "ridge", "gram")


def _check_target(name: str) -> str:
    if name not in PROBE_TARGETS and "." not in name:
        raise ValueError(
            f"unknown target {name!r}; allowed: {', '.join(map(repr, PROBE_TARGETS))}, and the "
            "dotted path "
            "of a function of your own, such as 'my_package.my_module.my_target'"
        )
    return name


ProbeTarget = Annotated[str, AfterValidator(_check_target)]


class ProbingConfig(Config):
    """Probes on hidden states, their controls, interventions, and the layers' progress."""

    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Layers to probe, 0 being the embedding; None: all of them."""
    num_prompts: PositiveInt | None = None
    """How many of the saved probing prompts are used; None: all of them."""
    targets: Annotated[tuple[ProbeTarget, ...], Field(min_length=1)] = ("moment", "least_squares")
    ridge_penalty: PositiveFloat = 1.0
    """λ of the target ``ridge``."""
    context_lengths: Annotated[tuple[PositiveInt | None, ...], Field(min_length=1)] = (None,)
    """Numbers of examples that the targets are computed from; None: one fewer than the prompt
    has.
    """
    hidden_units: tuple[PositiveInt, ...] = (64,)
    """Sizes of the MLP read-outs, which stand beside the linear one."""
    num_seeds: PositiveInt = 1
    """Refits of every probe, with other splits, initial weights and batches."""
    num_steps: PositiveInt = 1000
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 3e-3
    validation_fraction: OpenFraction = 0.15
    test_fraction: OpenFraction = 0.25
    control_steps: PositiveInt = 300
    """Training steps of the control learner, whose task is a single fixed w = 1."""
    causal_targets: Annotated[tuple[ProbeTarget, ...], Field(min_length=1)] = (
        "moment",
        "least_squares",
    )
    """Targets, of those above, that are replaced by a donor prompt's."""
    causal_prompts: PositiveInt = 512
    """Test prompts that are intervened on, at most."""
    calibration_prompts: PositiveInt = 2048
    """Prompts, of those above, that the constructed network is tried on, at most."""
    calibration_steps: PositiveInt = 8
    """Steps of gradient descent that the constructed network takes on which all of this is tried
    out.
    """
    gradient_step_size: PositiveFloat = 0.01
    """Of the algorithm that the layers are set beside, and of the constructed network."""
    gradient_steps: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (
        1,
        2,
        4,
        8,
        16,
        32,
        64,
    )
    """Steps of gradient descent that the layers are set beside."""
    newton_steps: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)] = (
        0,
        1,
        2,
        3,
        4,
        6,
        8,
        10,
        12,
    )
    """Steps of iterative Newton that the layers are set beside."""
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 1000
