"""Typed parameters: every number a run depends on, checked before the run starts.

Each class is one key of the parameter files. All are frozen and refuse unknown keys, so a misspelt
parameter is an error instead of a silent default.
"""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Device = Literal["auto", "cpu", "cuda"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class Config(BaseModel):
    """Base of all parameter classes: frozen, strict about keys, and about booleans for numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value: Any, info) -> Any:
        """Refuse true and false where a number is meant; pydantic would take them for 1 and 0."""
        takes_booleans = bool in get_args(cls.model_fields[info.field_name].annotation)
        given = value if isinstance(value, list | tuple) else [value]
        if not takes_booleans and any(isinstance(item, bool) for item in given):
            raise ValueError(f"a number or a name is meant here, not a boolean; given {value!r}")
        return value

    def flat(self, prefix: str) -> dict[str, Any]:
        """All fields as ``{"prefix.field": value}``, nested fields joined by dots."""
        return flatten(self.model_dump(mode="json"), prefix)


def explain(problem: dict[str, Any], name: str, allowed: str) -> str:
    """One line for one of pydantic's errors.

    Args:
        problem: the error, as ``ValidationError.errors`` lists it.
        name: the dotted name of the field.
        allowed: the names known beside it, said where it is unknown.
    """
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown parameter (given {given!r}); allowed here: {allowed}"
    if problem["type"] == "missing":
        return f"{name}: this parameter is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if problem["type"] == "value_error":  # one of our own messages: it says what was given
        return f"{name}: {message}"
    return f"{name}: {message[0].lower()}{message[1:]}; given {given!r}"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names: ``{"a": {"b": 1}}``, prefix ``p``: ``{"p.a.b": 1}``."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        flat |= flatten(value, name) if isinstance(value, dict) else {name: value}
    return flat


class DistributionConfig(Config):
    """One component: ``scale * z + shift`` with z standard normal, or uniform on [0, 1)."""

    kind: Literal["normal", "uniform"] = "normal"
    scale: NonNegativeFloat = 1.0
    shift: float = 0.0


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMPONENT = re.compile(
    rf"^\s*(?P<kind>normal|uniform)\s*(\*\s*(?P<scale>{_NUMBER})\s*)?(\+\s*(?P<shift>{_NUMBER})\s*)?$"
)


def _parse_mixture(value: Any) -> Any:
    """Accept ``"normal"``, ``"uniform*2+-1"`` and comma-separated mixtures of such strings."""
    if not isinstance(value, str):
        return value
    components = []
    for text in value.split(","):
        match = _COMPONENT.match(text)
        if match is None:
            raise ValueError(
                f"cannot read the distribution {text.strip()!r}; allowed are 'normal*SCALE+SHIFT', "
                "'uniform*SCALE+SHIFT' and comma-separated mixtures of them"
            )
        components.append({name: part for name, part in match.groupdict().items() if part is not None})
    return components


Mixture = Annotated[
    tuple[DistributionConfig, ...], Field(min_length=1, strict=False), BeforeValidator(_parse_mixture)
]
"""One component, or several of equal weight; one component is drawn for each vector."""


class TaskConfig(Config):
    """A family of linear-regression prompts: y = wᵀx + ε, ε ~ N(0, noise_std²)."""

    dim: PositiveInt = 8
    num_examples: PositiveInt = 40
    noise_std: NonNegativeFloat = 0.0
    inputs: Mixture = (DistributionConfig(),)
    weights: Mixture = (DistributionConfig(),)
    pool_size: PositiveInt | None = None
    """Draw w from a fixed pool of this many vectors (Raventós et al. 2023); None: a fresh w a prompt."""

    @property
    def num_tokens(self) -> int:
        """Tokens of one prompt x₁ y₁ … xₙ: the last y is never read."""
        return 2 * self.num_examples - 1

    @property
    def prior_std(self) -> float:
        """Root mean square of a coordinate of w: the Bayes predictor's τ if w is normal and centred."""
        moments = [
            c.scale**2 + c.shift**2 if c.kind == "normal" else c.scale**2 / 12 + (c.scale / 2 + c.shift) ** 2
            for c in self.weights
        ]
        return (sum(moments) / len(moments)) ** 0.5


class ModelConfig(Config):
    """Shape of the in-context learner. The defaults are the paper's."""

    num_layers: PositiveInt = 16
    num_heads: PositiveInt = 4
    width: PositiveInt = 512
    mlp_width: PositiveInt | None = None
    """Hidden units of each MLP; None: four times the width."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.width % self.num_heads:
            divisors = [m for m in range(1, self.width + 1) if self.width % m == 0]
            raise ValueError(
                f"num_heads={self.num_heads} does not divide width={self.width}; "
                f"allowed numbers of heads: {', '.join(map(str, divisors))}"
            )
        return self

    @property
    def mlp_units(self) -> int:
        """Hidden units of each MLP."""
        return self.mlp_width or 4 * self.width


class TrainingConfig(Config):
    """The training loop: AdamW or Muon, linear warm-up, decay to zero, clipped gradients."""

    num_steps: PositiveInt = 4000
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 5e-4
    warmup_fraction: Fraction = 0.1
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls from its peak to zero, after the warm-up."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Of the blocks' matrices; all other parameters follow AdamW, with the same learning rate."""
    beta1: OpenFraction = 0.9
    beta2: OpenFraction = 0.98
    muon_momentum: OpenFraction = 0.95
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat = 1.0
    log_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 1000
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the matrix products; auto: bfloat16 on a GPU, float32 on a CPU."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the blocks with torch.compile; auto: on a GPU only."""
    own_kernels: bool | Literal["auto"] = "auto"
    """Run the blocks on this project's kernels, on a GPU in bfloat16 and where they cover the learner's shape
    (`incontext_linear.fused`); auto: wherever ``compile`` holds."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Replay each step as one captured CUDA graph; auto: on a GPU only."""


class DataGenerationConfig(Config):
    """How many prompts are set aside for the comparison and for the probes."""

    num_evaluation_prompts: PositiveInt = 1024
    num_probing_prompts: PositiveInt = 2048


class ComparisonConfig(Config):
    """Behavioural comparison: SPD, implicit weights, ILWD and their bootstrap intervals."""

    num_queries: PositiveInt = 64
    num_weight_prompts: PositiveInt = 256
    """Prompts on which implicit weights are estimated (each costs num_queries predictions a prefix)."""
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 1000


PROBE_TARGETS = ("moment", "least_squares", "ridge", "gram")


def _check_target(name: str) -> str:
    if name not in PROBE_TARGETS and "." not in name:
        raise ValueError(
            f"unknown target {name!r}; allowed: {', '.join(map(repr, PROBE_TARGETS))}, and the dotted path "
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
    """Numbers of examples that the targets are computed from; None: one fewer than the prompt has."""
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
    causal_targets: Annotated[tuple[ProbeTarget, ...], Field(min_length=1)] = ("moment", "least_squares")
    """Targets, of those above, that are replaced by a donor prompt's."""
    causal_prompts: PositiveInt = 512
    """Test prompts that are intervened on, at most."""
    calibration_prompts: PositiveInt = 2048
    """Prompts, of those above, that the constructed network is tried on, at most."""
    calibration_steps: PositiveInt = 8
    """Steps of gradient descent that the constructed network takes on which all of this is tried out."""
    gradient_step_size: PositiveFloat = 0.01
    """Of the algorithm that the layers are set beside, and of the constructed network."""
    gradient_steps: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (1, 2, 4, 8, 16, 32, 64)
    """Steps of gradient descent that the layers are set beside."""
    newton_steps: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)] = (0, 1, 2, 3, 4, 6, 8, 10, 12)
    """Steps of iterative Newton that the layers are set beside."""
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 1000


def _one_level(value: Any) -> Any:
    """``{"model": {"width": 64}}``, as ``--params`` nests dotted names, and ``{"model.width": 64}`` alike."""
    return flatten(value) if isinstance(value, dict) else value


class PhaseDiagramConfig(Config):
    """Which algorithm a sweep's learners are nearest to, along one of the sweep's axes."""

    sweep: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")] = "depth"
    """Name of a finished sweep; its folder below ``data/sweeps``."""
    axis: str | None = None
    """The swept parameter that is drawn, such as ``model.num_layers``; None: the only one that varies."""
    where: Annotated[dict[str, Any], BeforeValidator(_one_level)] = {}
    """Values of the other swept parameters: ``{model.width: 64}``."""
    examples_seen: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Numbers of examples seen, k, that the mean over k is taken of; None: all from 1 on."""
    points: tuple[PositiveFloat, ...] = (1.0, 2.0)
    """Numbers of examples that are reported beside the mean, in multiples of the dimension d."""
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 1000

    @model_validator(mode="after")
    def _axis_is_not_fixed(self) -> "PhaseDiagramConfig":
        if self.axis is not None and self.axis in self.where:
            raise ValueError(
                f"where fixes {self.axis}={self.where[self.axis]!r}, which is the axis; allowed: other axes"
            )
        return self
