"""Typed parameters: every number a run depends on, checked before the run starts.

Each class is one key of the parameter files. All are frozen and refuse unknown keys, so a misspelt
parameter is an error instead of a silent default.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

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


class LearnerConfig(Config):
    """Shape of a learner: the base of all architectures' configs, chosen among them by ``type``.

    ``LearnerConfig.model_validate`` gives the config of the class that ``type`` names: without one
    the paper's transformer, with a dotted path a network of one's own.
    """

    type: str

    _shipped: ClassVar[dict[str, "type[LearnerConfig]"]] = {}
    """Name → config, of every architecture that has been imported."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Make the types that a class names known."""
        super().__pydantic_init_subclass__(**kwargs)
        for name in get_args(cls.model_fields["type"].annotation):
            LearnerConfig._shipped[name] = cls

    @model_validator(mode="wrap")
    @classmethod
    def _of_the_type_given(cls, value: Any, handler: Callable[[Any], Any]) -> Any:
        if cls is not LearnerConfig or not isinstance(value, Mapping):
            return handler(value)
        chosen = cls.of_type(value.get("type"))
        return chosen.model_validate(chosen.without_foreign_sizes(value))

    @classmethod
    def of_type(cls, name: Any) -> "type[LearnerConfig]":
        """The config of a type; None means the transformer.

        Raises:
            ValueError: on a type that is neither an architecture nor a dotted path.
        """
        if name is None:
            return ModelConfig
        if name in cls._shipped:
            return cls._shipped[name]
        if isinstance(name, str) and "." in name:
            return CustomConfig
        allowed = ", ".join(map(repr, cls._shipped))
        raise ValueError(
            f"type={name!r} is not known; allowed: {allowed}, or the dotted path of a "
            "torch.nn.Module"
        )

    @classmethod
    def without_foreign_sizes(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out the sizes that an environment gives for its transformer, and that this
        architecture does not have.
        """
        return {n: v for n, v in value.items() if n not in SIZES or n in cls.model_fields}

    @property
    def depth(self) -> int | None:
        """Number of residual streams behind the embedding; None: not known before it is built."""
        return getattr(self, "num_layers", None)

    @property
    def any_length(self) -> bool:
        """Whether it takes longer prompts than it was trained on."""
        return True

    @property
    def sizes(self) -> str:
        """All that decides whether weights fit, as ``field=value``."""
        return " ".join(f"{name}={value}" for name, value in self.model_dump().items())

    @property
    def words(self) -> str:
        """For the titles of figures."""
        given = self.model_dump()
        layers, width = given.get("num_layers"), given.get("width")
        parts = [f"{layers} layers" if layers else "", f"width {width}" if width else ""]
        return " of ".join(part for part in parts if part) + f", {self.type}"

    def numerics(self) -> dict[str, Any]:
        """What a training depends on, as JSON: its fingerprint is made of this."""
        return self.model_dump(mode="json")


SIZES = ("num_layers", "num_heads", "width", "mlp_width")
"""Fields of the transformer that every environment gives."""


class ModelConfig(LearnerConfig):
    """Shape of the paper's transformer; the defaults are the paper's."""

    type: Literal["transformer"] = "transformer"
    num_layers: PositiveInt = 16
    num_heads: PositiveInt = 4
    width: PositiveInt = 512
    mlp_width: NonNegativeInt | None = None
    """Hidden units of each MLP; None: four times the width; 0: no MLP."""
    norm: Literal["layer", "none"] = "layer"
    """Before each branch and the read-out: ``layer``, a LayerNorm; ``none``, nothing."""
    positions: Literal["learned", "rotary", "none"] = "learned"
    """``learned``: a vector for each token; ``rotary``: queries and keys are turned by their place
    (RoPE; Su et al. 2021); ``none``: only the causal mask tells places apart (NoPE). Without
    learned ones a prompt may be longer than in training."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide width={self.width}; "
                f"allowed numbers of heads: {', '.join(map(str, _divisors(self.width)))}"
            )
        if self.positions == "rotary" and self.width // self.num_heads % 2:
            raise ValueError(
                f"positions='rotary' turns pairs of channels, and width={self.width} with "
                f"num_heads={self.num_heads} gives a head {self.width // self.num_heads}; allowed: "
                "an even number"
            )
        return self

    @property
    def any_length(self) -> bool:
        """Learned positions end with the longest prompt of the training."""
        return self.positions != "learned"

    @property
    def mlp_units(self) -> int:
        """Hidden units of each MLP; 0: there is none."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def is_plain(self) -> bool:
        """Whether this is the paper's transformer, without any option."""
        return type(self) is ModelConfig and self.mlp_units > 0 and not self._options()

    def _options(self) -> dict[str, Any]:
        """Fields beside the sizes that are not as in the paper's transformer."""
        fields = ModelConfig.model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json", exclude=set(SIZES)).items()
            if name not in fields or value != fields[name].default
        }

    @property
    def sizes(self) -> str:
        """As `LearnerConfig.sizes`; of the paper's transformer its sizes alone."""
        given = {
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "width": self.width,
            "mlp_width": self.mlp_units,
        }
        return " ".join(f"{name}={value}" for name, value in (given | self._options()).items())

    @property
    def words(self) -> str:
        """For the titles of figures."""
        options = [
            value if name == "type" else f"{name}: {value}"
            for name, value in self._options().items()
        ]
        words = f"{self.num_layers} layers of width {self.width}, {self.num_heads} heads"
        return ", ".join([words, *map(str, options)])

    def numerics(self) -> dict[str, Any]:
        """The four sizes and what departs from the paper, so that fingerprints made before there
        were options stay as they are.
        """
        return self.model_dump(mode="json", include=set(SIZES)) | self._options()


class CustomConfig(LearnerConfig):
    """A network of one's own: the dotted path of its class, and its constructor's arguments."""

    model_config = ConfigDict(extra="allow")

    type: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What the parameters give beside the type."""
        return dict(self.model_extra or {})

    @classmethod
    def without_foreign_sizes(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """All of it: which sizes its constructor takes is known once it is imported."""
        return dict(value)

    @property
    def words(self) -> str:
        """For the titles of figures."""
        return self.type.rpartition(".")[2]


class DataGenerationConfig(Config):
    """How many prompts are set aside for the comparison and for the probes."""

    num_evaluation_prompts: PositiveInt = 1024
    num_probing_prompts: PositiveInt = 2048


class EvaluationConfig(Config):
    """Which prompts a learner is measured on: those of its task, but for what is given here."""

    task: dict[str, Any] = Field(default={})
    """Fields of the task that differ at test time: num_examples (also more than in training, where
    the learner takes them), noise_std, inputs, weights, pool_size."""

    def over(self, task: TaskConfig) -> TaskConfig:
        """The task that prompts are drawn from.

        Raises:
            ValueError: if a field does not exist, or decides the learner's shape.
        """
        allowed = [n for n in TaskConfig.model_fields if n != "dim"]
        wrong = [name for name in self.task if name not in allowed]
        if wrong:
            raise ValueError(
                f"evaluation.task.{wrong[0]}: {self.task[wrong[0]]!r} given; allowed here: "
                + ", ".join(allowed)
            )
        return TaskConfig.model_validate(task.model_dump() | self.task)

    def probed(self, task: TaskConfig) -> TaskConfig:
        """As `over`, for the prompts of the probes: as long as in training, or longer."""
        asked = self.over(task)
        longer = max(asked.num_examples, task.num_examples)
        return asked.model_copy(update={"num_examples": longer})


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
