"""What a learner must offer, and the one place where its layers are walked.

Every network is compared through the one interface, ``learner(xs, ys) -> predictions``. A network
that also shows its residual streams (`LayeredLearner`: ``embed``, ``blocks``) can be probed and
read layer by layer, and with ``prediction_tokens`` and ``read`` (`ContinuableLearner`) intervened
on. A network of one's own needs no base class: having these members is enough, and `check_learner`
names those that are missing. The architectures that ship share `Network`.

Shape letters: B prompts, n examples, d dimensions, T tokens, H width, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import LearnerConfig
from incontext_linear.tasks import Xs, Ys


@runtime_checkable
class InContextLearner(Protocol):
    """A network in the one interface: enough to be trained and compared."""

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n); ``[:, k]`` uses ``xs[:, :k+1]`` and ``ys[:, :k]`` only."""
        ...


@runtime_checkable
class LayeredLearner(InContextLearner, Protocol):
    """A learner whose residual streams can be read."""

    blocks: Sequence[Callable[[Tensor], Tensor]]
    """The L layers, each from a residual stream (B, T, H) to the next one."""

    def embed(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token width"]:
        """The residual stream that enters the first layer."""
        ...


@runtime_checkable
class ContinuableLearner(LayeredLearner, Protocol):
    """A learner that can go on from a residual stream that was changed."""

    def prediction_tokens(self, num_tokens: int) -> slice | Tensor:
        """Which of the T tokens predict; the k-th of them has seen k examples, and is the last
        token of a prompt of k+1.
        """
        ...

    def read(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """What a token of the last residual stream predicts."""
        ...


SIGNATURES = {
    "forward": "forward(xs (B, n, d), ys (B, n)) -> predictions (B, n)",
    "embed": "embed(xs (B, n, d), ys (B, n)) -> hidden (B, T, H)",
    "blocks": "blocks, a sequence of callables from hidden (B, T, H) to hidden (B, T, H)",
    "prediction_tokens": "prediction_tokens(num_tokens) -> slice or indices of those that predict",
    "read": "read(hidden (..., H)) -> predictions (...)",
}
"""Member of the protocols → what it is, as error messages say it."""

_ONE_INTERFACE = ("forward",)
NEEDS: dict[str, tuple[str, ...]] = {
    "comparison": _ONE_INTERFACE,
    "identification": _ONE_INTERFACE,
    "probing": (*_ONE_INTERFACE, "embed", "blocks"),
    "layerwise": (*_ONE_INTERFACE, "embed", "blocks", "prediction_tokens"),
    "interventions": (*_ONE_INTERFACE, "embed", "blocks", "prediction_tokens", "read"),
}
"""What is done with a learner → the members that it needs."""


def check_learner(model: object, purpose: str) -> None:
    """Refuse a network that lacks what a pipeline needs of it.

    Args:
        model: the network.
        purpose: one of `NEEDS`.

    Raises:
        ValueError: naming each missing member, and what the network can be used for without it.
    """
    if purpose not in NEEDS:
        raise ValueError(
            f"purpose={purpose!r} is not known; allowed: {', '.join(map(repr, NEEDS))}"
        )
    missing = [name for name in NEEDS[purpose] if not hasattr(model, name)]
    if not missing:
        return
    possible = [name for name in NEEDS if can_be_used(model, name)]
    raise ValueError(
        f"{type(model).__name__} cannot be used for {purpose}: it has no "
        f"{'; no '.join(SIGNATURES[name] for name in missing)}. "
        f"As it is, it can be used for: {', '.join(possible) or 'nothing'}"
    )


def can_be_used(model: object, purpose: str) -> bool:
    """Whether a network has all that a purpose, one of `NEEDS`, needs of it."""
    return all(hasattr(model, name) for name in NEEDS[purpose])


@torch.no_grad()
def check_causality(
    model: Callable[[Tensor, Tensor], Tensor],
    xs: Xs,
    ys: Ys,
) -> None:
    """Try on prompts whether predictions have the right shape, and see only what they may.

    Args:
        model: a network in the one interface.
        xs: (B, n, d), n ≥ 2.
        ys: (B, n).

    Raises:
        ValueError: if the shape is wrong, or the first prefix whose prediction depends on what
        comes later.
    """
    before = model(xs, ys)
    if before.shape != ys.shape:
        raise ValueError(
            f"{type(model).__name__} returns predictions of shape {tuple(before.shape)} for "
            f"{ys.shape[0]} prompts of {ys.shape[1]} examples; allowed: {tuple(ys.shape)}"
        )
    for k in range(ys.shape[1]):
        later_xs, later_ys = xs.clone(), ys.clone()
        later_xs[:, k + 1 :] += 1
        later_ys[:, k:] += 1
        after = model(later_xs, later_ys)
        change = (after - before)[:, : k + 1].abs().max().item()
        if not change <= 1e-4 * (1 + before.abs().max().item()):
            raise ValueError(
                f"{type(model).__name__} sees what it must predict: predictions up to k={k} "
                f"change by {change:.2g} with ys[:, {k}:] and xs[:, {k + 1}:]; allowed: to use "
                "xs[:, :k+1] and ys[:, :k]"
            )


def residual_streams(
    model: LayeredLearner,
    xs: Xs,
    ys: Ys,
) -> Iterator[tuple[int, Float[Tensor, "batch token width"]]]:
    """The residual streams one after another, so that only those that are kept take memory.

    Yields:
        ``(layer, hidden)``, hidden (B, T, H): 0 is the embedding, ``layer`` what layer number
        ``layer`` leaves.

    Raises:
        ValueError: if the network shows no residual streams.
    """
    check_learner(model, "probing")
    hidden = model.embed(xs, ys)
    yield 0, hidden
    for layer, block in enumerate(model.blocks, start=1):
        hidden = block(hidden)
        yield layer, hidden


def predict_from(
    model: ContinuableLearner, hidden: Float[Tensor, "batch token width"], layer: int
) -> Ys:
    """Go on from the residual stream that ``layer`` left (0: the embedding) to the predictions.

    Args:
        model: the network.
        hidden: (B, T, H), as `residual_streams` gives it, changed or not.
        layer: how many layers are behind it.

    Returns:
        Predictions (B, n).

    Raises:
        ValueError: if the network lacks what this needs, or has fewer layers than ``layer``.
    """
    check_learner(model, "interventions")
    num_layers = len(model.blocks)
    if not 0 <= layer <= num_layers:
        raise ValueError(f"layer={layer} is not there; allowed: 0 to {num_layers}")
    for block in list(model.blocks)[layer:]:
        hidden = block(hidden)
    return model.read(hidden[:, model.prediction_tokens(hidden.shape[1])])


class Network(nn.Module):
    """What the architectures that ship share: tokens read in, blocks, and a read-out.

    A subclass sets ``blocks``, ``read_in``, ``final_norm``, ``read_out`` and, where it has learned
    positions, ``positions``; it says in `tokens` how a prompt becomes tokens, unless it has an
    `embed` of its own.

    Args:
        dim: d, the dimension of x.
        num_examples: n, the longest prompt; None: no limit.
        config: of the architecture.
    """

    config: Any
    blocks: Any
    """A sequence of `torch.nn.Module`."""
    read_in: Any
    final_norm: Any
    read_out: Any
    positions: Any
    """Learned, one a token (T, H); None: there are none."""

    def __init__(self, dim: int, num_examples: int | None, config: LearnerConfig):
        super().__init__()
        self.dim, self.num_examples, self.config = dim, num_examples, config
        self.positions = None

    def initialize(self, rng: torch.Generator) -> Self:
        """Draw initial weights, as `draw_weights` does."""
        draw_weights(self, rng, num_branches=2 * getattr(self.config, "num_layers", 1))
        return self

    def forward(self, xs: Xs, ys: Ys) -> Ys:
        """Predict every y from the examples before it: ``predictions[:, k]`` has seen k examples.

        Args:
            xs: (B, n, d), n at most ``num_examples``.
            ys: (B, n); the last one is never read.

        Raises:
            ValueError: if the prompt is too long or of another dimension.
        """
        return predict_from(self, self.embed(xs, ys), layer=0)

    def tokens(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token features"]:
        """A prompt as tokens, (B, 2n−1, d+1)."""
        raise NotImplementedError

    def embed(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch token width"]:
        """The residual stream that enters the first layer: tokens read in, plus positions."""
        check_size(self, xs)
        tokens = self.tokens(xs, ys)
        hidden = self.read_in(tokens)
        return hidden if self.positions is None else hidden + self.positions[: tokens.shape[1]]

    def prediction_tokens(self, num_tokens: int) -> slice | Tensor:
        """The x-tokens, or the queries: the k-th of them has seen k examples."""
        return slice(0, num_tokens, 2)

    def read(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """What a token of the last residual stream predicts."""
        return self.read_out(self.final_norm(hidden)).squeeze(-1)


def check_size(model: Network, xs: Tensor) -> None:
    """Refuse prompts of another dimension than the learner's, or too long for it.

    Raises:
        ValueError: saying both sizes.
    """
    num_examples, dim = xs.shape[1:]
    too_long = model.num_examples is not None and num_examples > model.num_examples
    if dim != model.dim or too_long:
        limit = "any number of" if model.num_examples is None else f"at most {model.num_examples}"
        raise ValueError(
            f"xs has {num_examples} examples of dim {dim}; this learner takes dim {model.dim} "
            f"and {limit} examples"
        )


if TYPE_CHECKING:
    AnyNetwork = Network
else:
    AnyNetwork = nn.Module
"""A learner's network: one of ours, or a user's own module, which may have a part of the methods.
Where one is missing that a pipeline needs, the pipeline says which.
"""


def draw_weights(module: nn.Module, rng: torch.Generator, num_branches: int = 1) -> None:
    """Draw initial weights as the transformer does.

    Matrices are N(0, 1/fan_in), positions N(0, 0.02²), biases zero; norms keep their ones. The
    matrices that write a residual branch (``project_out``, ``mlp_out``) are scaled by
    1/√num_branches.

    Args:
        module: whose parameters are drawn, in the order of their names' registration.
        rng: on the parameters' device; it alone decides.
        num_branches: how many branches add to the residual stream.
    """
    for name, parameter in module.named_parameters():
        if "bias" in name.rpartition(".")[2]:
            nn.init.zeros_(parameter)
        elif name.endswith("positions"):
            nn.init.normal_(parameter, std=0.02, generator=rng)
        elif parameter.ndim >= 2:
            fan_in = parameter[0].numel()
            branch = name.endswith(("project_out.weight", "mlp_out.weight"))
            scale = num_branches**-0.5 if branch else 1.0
            nn.init.normal_(parameter, std=scale * fan_in**-0.5, generator=rng)
