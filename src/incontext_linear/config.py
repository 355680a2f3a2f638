"""Typed parameters: every number a run depends on, checked before the run starts.

Each class is one key of the parameter files. All are frozen and refuse unknown keys, so a misspelt
parameter is an error instead of a silent default.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    model_validator,
)

if TYPE_CHECKING:
    import torch

# Numbers are strict: neither a boolean nor a string is taken for one. An integer is a float, as in
# Python.
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
# NumPy and PyTorch count no further in places; nothing that is counted here comes near.
MOST = 2**31 - 1
PositiveInt = Annotated[Int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[Int, Field(ge=0, le=MOST)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
# Of numbers that enter a computation in float32, whose range ends near 1e38: their squares fit.
ModerateFloat = Annotated[Float, Field(ge=1e-15, le=1e15)]
SizedFloat = Annotated[Float, Field(ge=0, le=1e15)]
Fraction = Annotated[Float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[Float, Field(gt=0.0, lt=1.0)]
Bool = StrictBool
Device = Literal["auto", "cpu", "cuda"]


def _each_once(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    twice = [value for n, value in enumerate(values or ()) if value in (values or ())[:n]]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice; allowed: each value once")
    return values


Distinct = AfterValidator(_each_once)
"""Annotates a tuple whose values each name something of their own: a layer, a target, a curve."""


class MeasurementError(ValueError):
    """There is nothing to measure, for reasons that lie in the parameters; one line says which."""


class Config(BaseModel):
    """Base of all parameter classes: frozen, and strict about keys and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    """Nested dictionaries as one, with dotted names: ``{"a": {"b": 1}}``, prefix ``p``: ``{"p.a.b":
    1}``.
    """
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        flat |= flatten(value, name) if isinstance(value, dict) else {name: value}
    return flat


NO_EFFECT = frozenset({"checkpoint_every", "compile", "own_kernels", "cuda_graph"})
"""Training parameters that the result does not depend on."""


class DistributionConfig(Config):
    """One component: ``scale * z + shift`` with z standard normal, or uniform on [0, 1)."""

    kind: Literal["normal", "uniform"] = "normal"
    scale: SizedFloat = 1.0
    shift: Annotated[Float, Field(ge=-1e15, le=1e15)] = 0.0

    @property
    def is_zero(self) -> bool:
        """Whether it gives nothing but 0."""
        return self.scale == 0 and self.shift == 0


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
                "'uniform*SCALE+SHIFT' (each SCALE and SHIFT one number) and comma-separated "
                f"mixtures of them; given {value!r}"
            )
        components.append(
            {
                name: part if name == "kind" else float(part)
                for name, part in match.groupdict().items()
                if part is not None
            }
        )
    return components


Mixture = Annotated[
    tuple[DistributionConfig, ...],
    Field(min_length=1, strict=False),
    BeforeValidator(_parse_mixture),
]
"""One component, or several of equal weight; one component is drawn for each vector."""


class TaskConfig(Config):
    """A family of linear-regression prompts: y = wᵀx + ε, ε ~ N(0, noise_std²)."""

    dim: PositiveInt = 8
    num_examples: PositiveInt = 40
    noise_std: SizedFloat = 0.0
    inputs: Mixture = (DistributionConfig(),)
    weights: Mixture = (DistributionConfig(),)
    pool_size: PositiveInt | None = None
    """Draw w from a fixed pool of this many vectors (Raventós et al. 2023); None: a fresh w a
    prompt.
    """

    @property
    def num_tokens(self) -> int:
        """Tokens of one prompt x₁ y₁ … xₙ: the last y is never read."""
        return 2 * self.num_examples - 1

    @property
    def prior_std(self) -> float:
        """Root mean square of a coordinate of w: the Bayes predictor's τ if w is normal and
        centred.
        """
        moments = [
            c.scale**2 + c.shift**2
            if c.kind == "normal"
            else c.scale**2 / 12 + (c.scale / 2 + c.shift) ** 2
            for c in self.weights
        ]
        return (sum(moments) / len(moments)) ** 0.5


def _divisors(number: int) -> list[int]:
    """All divisors, in order, in some √number steps."""
    small = [m for m in range(1, math.isqrt(number) + 1) if number % m == 0]
    return sorted({*small, *(number // m for m in small)})


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
            raise ValueError(
                f"num_heads={self.num_heads} does not divide width={self.width}; "
                f"allowed numbers of heads: {', '.join(map(str, _divisors(self.width)))}"
            )
        return self

    @property
    def mlp_units(self) -> int:
        """Hidden units of each MLP."""
        return self.mlp_width or 4 * self.width


class DataGenerationConfig(Config):
    """How many prompts are set aside for the comparison and for the probes."""

    num_evaluation_prompts: PositiveInt = 1024
    num_probing_prompts: PositiveInt = 2048


class EvaluationConfig(Config):
    """Which prompts a learner is measured on: those of its task, but for what is given here."""

    task: dict[str, Any] = Field(default={})
    """Fields of the task that differ at test time: noise_std, inputs, weights, pool_size."""

    def over(self, task: TaskConfig) -> TaskConfig:
        """The task that prompts are drawn from.

        Raises:
            ValueError: if a field does not exist, or decides the learner's shape.
        """
        allowed = [n for n in TaskConfig.model_fields if n not in ("dim", "num_examples")]
        wrong = [name for name in self.task if name not in allowed]
        if wrong:
            raise ValueError(
                f"evaluation.task.{wrong[0]}: {self.task[wrong[0]]!r} given; allowed here: "
                + ", ".join(allowed)
            )
        return TaskConfig.model_validate(task.model_dump() | self.task)


class BootstrapConfig(Config):
    """Intervals by resampling: one place in each package's parameters, ``….bootstrap``."""

    confidence: OpenFraction = 0.95
    """Level of the intervals."""
    num_resamples: PositiveInt = 1000

    @property
    def tail(self) -> float:
        """Probability on either side of an interval."""
        return (1 - self.confidence) / 2


def resolve_device(name: str) -> "torch.device":
    """``auto``: a GPU where there is one, else the CPU.

    Raises:
        ValueError: if ``cuda`` is asked for and there is none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda was asked for, but torch finds no GPU here; allowed: auto, cpu"
        )
    return torch.device(name)


def import_dotted(path: str) -> Any:
    """What a dotted path in the parameters names, ``my_package.my_module.MyPredictor``.

    To import is to run code: configuration is as trusted as code, and a path in it must lead to
    something of the interface before anything there is called.

    Raises:
        ValueError: if the module cannot be imported, for whatever reason (it may raise, or end the
            process by ``sys.exit``), or lacks the name.
    """
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ValueError(f"{path!r} is no dotted path")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise ValueError(f"importing it raised {reason}") from error


def takes_prompts(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with (xs, ys)."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of C code, which does not say what it takes
        return True
    return True
