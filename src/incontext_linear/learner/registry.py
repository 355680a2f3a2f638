"""From the parameters to a learner: ``model: {type: linear_attention, num_layers: 2, …}``.

A new architecture is one file with a config, whose ``type`` names it, and one line in `LEARNERS`.
A dotted path as type names a network of one's own, `torch.nn.Module`, which is built with the
arguments that stand beside it.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from incontext_linear.config import (
    SIZES,
    CustomConfig,
    LearnerConfig,
    ModelConfig,
    TaskConfig,
    import_dotted,
)
from incontext_linear.learner.base import AnyNetwork, Network
from incontext_linear.learner.delta import DeltaConfig, DeltaNetwork
from incontext_linear.learner.joint import JointConfig, JointTransformer
from incontext_linear.learner.linear_attention import LinearAttention, LinearAttentionConfig
from incontext_linear.learner.looped import LoopedConfig, LoopedTransformer
from incontext_linear.learner.recurrent import Recurrent, RecurrentConfig
from incontext_linear.learner.transformer import Transformer


class Architecture(NamedTuple):
    """How a type of learner is configured and built."""

    config: type[LearnerConfig]
    build: Callable[[int, int, Any], Network]
    """From (dim, num_examples, config); what has no limit of examples leaves the second out."""


LEARNERS: dict[str, Architecture] = {
    "transformer": Architecture(ModelConfig, Transformer),
    "joint_transformer": Architecture(JointConfig, JointTransformer),
    "looped": Architecture(LoopedConfig, LoopedTransformer),
    "linear_attention": Architecture(
        LinearAttentionConfig, lambda dim, _, config: LinearAttention(dim, config)
    ),
    "gru": Architecture(RecurrentConfig, lambda dim, _, config: Recurrent(dim, config)),
    "lstm": Architecture(RecurrentConfig, lambda dim, _, config: Recurrent(dim, config)),
    "delta": Architecture(DeltaConfig, lambda dim, _, config: DeltaNetwork(dim, config)),
}


def build_learner(dim: int, num_examples: int, config: LearnerConfig) -> AnyNetwork:
    """Build the learner that a config describes; its weights are not drawn yet (`draw_initial`).

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt; no limit to learners without positions.
        config: of one of `LEARNERS`, or a `CustomConfig`.

    Raises:
        ValueError: if a dotted path leads to no `torch.nn.Module`, or its arguments do not fit.
    """
    if isinstance(config, CustomConfig):
        return cast(Network, _build_custom(dim, num_examples, config))
    return LEARNERS[config.type].build(dim, num_examples, config)


def draw_initial(model: nn.Module, rng: torch.Generator) -> None:
    """Draw a network's initial weights from a generator: by its own ``initialize(rng)`` where it
    has one, else by its modules' ``reset_parameters()``, as PyTorch's own modules have it.
    """
    if hasattr(model, "initialize"):
        cast(Network, model).initialize(rng)
        return
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(reset):
                reset()


def build_untrained(task: TaskConfig, config: LearnerConfig, rng: torch.Generator) -> Network:
    """A learner with initial weights, in evaluation mode: a control that has learned nothing."""
    model = build_learner(task.dim, task.num_examples, config)
    draw_initial(model, rng)
    return model.eval()


def _build_custom(dim: int, num_examples: int, config: CustomConfig) -> nn.Module:
    """Only a subclass of `torch.nn.Module` is called, whatever a file's header may name."""
    kind = import_dotted(config.type)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{config.type!r} is no learner; allowed: a subclass of torch.nn.Module")
    known = inspect.signature(kind).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    sizes = {"dim": dim, "num_examples": num_examples}
    arguments = {name: value for name, value in sizes.items() if name in known}
    arguments |= {
        name: value
        for name, value in config.arguments.items()
        if takes_all or name in known or name not in SIZES
    }
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{config.type} cannot be made with {', '.join(map(str, arguments)) or 'no arguments'}:"
            f" {error}; allowed: {', '.join(known)}"
        ) from error
