"""From the parameters to a learner: ``model: {type: linear_attention, num_layers: 2, …}``.

A new architecture is one file with a config, whose ``type`` names it, and one line in `LEARNERS`.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError
from torch import nn

from incontext_linear.config import Config, ModelConfig, explain
from incontext_linear.learner.delta import DeltaConfig, DeltaNetwork
from incontext_linear.learner.joint import JointConfig, JointTransformer
from incontext_linear.learner.linear_attention import LinearAttention, LinearAttentionConfig
from incontext_linear.learner.looped import LoopedConfig, LoopedTransformer
from incontext_linear.learner.recurrent import Recurrent, RecurrentConfig
from incontext_linear.learner.transformer import Transformer


class TransformerConfig(ModelConfig):
    """The paper's transformer, the type that is meant where none is given."""

    type: Literal["transformer"] = "transformer"


class Architecture(NamedTuple):
    """How a type of learner is configured and built."""

    config: type[Config]
    build: Callable[[int, int, Any], nn.Module]
    """From (dim, num_examples, config); what has no limit of examples leaves the second out."""


LEARNERS: dict[str, Architecture] = {
    "transformer": Architecture(TransformerConfig, Transformer),
    "joint_transformer": Architecture(JointConfig, JointTransformer),
    "looped": Architecture(LoopedConfig, LoopedTransformer),
    "linear_attention": Architecture(
        LinearAttentionConfig, lambda dim, _, config: LinearAttention(dim, config)
    ),
    "gru": Architecture(RecurrentConfig, lambda dim, _, config: Recurrent(dim, config)),
    "lstm": Architecture(RecurrentConfig, lambda dim, _, config: Recurrent(dim, config)),
    "delta": Architecture(DeltaConfig, lambda dim, _, config: DeltaNetwork(dim, config)),
}


def type_of(value: Any) -> str:
    """The type that a config, or its entry in the parameters, names; ``transformer`` if none."""
    given = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "transformer" if given is None else str(given)


LearnerConfig = Annotated[
    Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[JointConfig, Tag("joint_transformer")]
    | Annotated[LoopedConfig, Tag("looped")]
    | Annotated[LinearAttentionConfig, Tag("linear_attention")]
    | Annotated[RecurrentConfig, Tag("gru")]
    | Annotated[RecurrentConfig, Tag("lstm")]
    | Annotated[DeltaConfig, Tag("delta")],
    Discriminator(type_of),
]
"""The parameters' key ``model``, for a field of a pydantic class: chosen by ``type``."""


def read_config(entry: Mapping[str, Any]) -> Config:
    """Check the entry ``model`` of the parameters.

    Args:
        entry: ``{"type": …, field: value, …}``; without a type, a transformer's.

    Raises:
        ValueError: on an unknown type, an unknown field, or a value that is not allowed, in one
        line.
    """
    kind = type_of(entry)
    if kind not in LEARNERS:
        raise ValueError(
            f"model.type={kind!r} is not known; allowed: {', '.join(map(repr, LEARNERS))}"
        )
    try:
        return TypeAdapter(LEARNERS[kind].config).validate_python({**entry, "type": kind})
    except ValidationError as error:
        allowed = ", ".join(LEARNERS[kind].config.model_fields)
        problems = (
            explain(problem, ".".join(("model", *map(str, problem["loc"]))), allowed)
            for problem in error.errors()
        )
        raise ValueError("; ".join(problems)) from None


def build_learner(dim: int, num_examples: int, config: Config) -> nn.Module:
    """Build the learner that a config describes; its weights are not drawn yet (``initialize``).

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt; no limit to learners without positions.
        config: one of `LEARNERS`' configs, or a plain `ModelConfig`, which means the transformer.

    Raises:
        ValueError: if no architecture has this config.
    """
    kind = type_of(config)
    if kind not in LEARNERS or not isinstance(config, ModelConfig | LEARNERS[kind].config):
        raise ValueError(
            f"{type(config).__name__} describes no learner; allowed: "
            f"{', '.join(sorted({entry.config.__name__ for entry in LEARNERS.values()}))}"
        )
    return LEARNERS[kind].build(dim, num_examples, config)
