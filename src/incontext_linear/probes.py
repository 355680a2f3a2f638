"""Probes: which quantities can be read from the hidden states, and in which layer.

Paper, section 5: a probe on layer l pools the hidden states over positions with learned weights,
α = softmax(s_l), and reads v̂ = f(αᵀH^(l)), f linear or a two-layer MLP, trained by squared error. All
probes, over layers, targets and kinds, are trained together in one batched pass: they share the data and
nothing else, so each is what it would be alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from incontext_linear.config import ProbingConfig
from incontext_linear.tasks import generator

Target = Callable[[Tensor, Tensor], Tensor]


def moment(
    xs: Float[Tensor, "batch example dim"], ys: Float[Tensor, "batch example"]
) -> Float[Tensor, "batch dim"]:
    """Xᵀy of the examples, the vector that one step of gradient descent needs."""
    return (xs.mT @ ys.unsqueeze(-1)).squeeze(-1)


def least_squares(
    xs: Float[Tensor, "batch example dim"], ys: Float[Tensor, "batch example"]
) -> Float[Tensor, "batch dim"]:
    """Minimum-norm least-squares weights of the examples, computed in float64."""
    return (torch.linalg.pinv(xs.double()) @ ys.double().unsqueeze(-1)).squeeze(-1).to(ys.dtype)


TARGETS: dict[str, Target] = {"moment": moment, "least_squares": least_squares}


class ProbeSet(nn.Module):
    """G probes on each of L layers; probe g reads target ``g // kinds`` in kind ``g % kinds``.

    Args:
        num_layers: L.
        num_probes: G, probes a layer.
        num_tokens: T, positions pooled over.
        width: H.
        dim: d, the targets' dimension.
        hidden_units: units of the MLP read-out; None for a linear one.
        rng: draws the initial weights.
    """

    def __init__(
        self,
        num_layers: int,
        num_probes: int,
        num_tokens: int,
        width: int,
        dim: int,
        hidden_units: int | None,
        rng: torch.Generator,
    ):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_layers, num_probes, num_tokens))
        sizes = [width, dim] if hidden_units is None else [width, hidden_units, dim]
        self.matrices, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
            matrix = torch.randn(num_layers, num_probes, fan_in, fan_out, generator=rng)
            self.matrices.append(nn.Parameter(matrix / fan_in**0.5))
            self.biases.append(nn.Parameter(torch.zeros(num_layers, num_probes, 1, fan_out)))

    @property
    def attention(self) -> Float[Tensor, "layer probe token"]:
        """α: what each probe takes from each position; sums to one over positions."""
        return self.scores.softmax(-1)

    def forward(
        self, hidden: Float[Tensor, "layer batch token width"]
    ) -> Float[Tensor, "layer probe batch dim"]:
        """Read every target out of every layer."""
        value = torch.einsum("lbth,lgt->lgbh", hidden, self.attention)
        for index, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            if index:
                value = F.gelu(value)
            value = value @ matrix + bias
        return value


class Split(NamedTuple):
    """Disjoint prompts for fitting, for stopping, and for the scores."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class ProbeScores:
    """What the probes of one kind reach on prompts held out from fitting and stopping."""

    squared_error: Float[Tensor, "layer target prompt"]
    """Squared error per test prompt, as a share of the target's variance: 0 perfect, 1 the mean's."""
    attention: Float[Tensor, "layer target token"]
    """The best probe's pooling weights."""


def split_prompts(num_prompts: int, config: ProbingConfig, seed: int) -> Split:
    """Shuffle prompts into training, validation and test parts.

    Raises:
        ValueError: if a part would be empty.
    """
    order = torch.randperm(num_prompts, generator=generator(seed, "probe split"))
    num_test = int(config.test_fraction * num_prompts)
    num_validation = int(config.validation_fraction * num_prompts)
    num_train = num_prompts - num_test - num_validation
    if min(num_test, num_validation, num_train) < 1:
        raise ValueError(
            f"{num_prompts} probing prompts cannot be split into validation_fraction="
            f"{config.validation_fraction} and test_fraction={config.test_fraction}; each part, and what "
            "is left for training, needs at least one prompt"
        )
    return Split(*order.split([num_train, num_validation, num_test]))


def fit_probes(
    hidden: Float[Tensor, "layer batch token width"],
    targets: Float[Tensor, "target batch dim"],
    kind: str,
    config: ProbingConfig,
    seed: int,
) -> ProbeScores:
    """Train one probe a layer and target, all together, and score them on held-out prompts.

    Hidden states and targets are standardised with the training prompts' moments. Of each probe the
    state with the lowest validation error is the one that is scored (early stopping, probe by probe).

    Args:
        hidden: hidden states (L, B, T, H).
        targets: one (B, d) array for each target.
        kind: ``linear`` or ``mlp``.
        config: steps, batch, splits.
        seed: decides the split, the initial weights and the batches.

    Returns:
        Errors on the test prompts and the attention over positions.
    """
    split = split_prompts(hidden.shape[1], config, seed)
    hidden, targets = _standardize(hidden, targets, split.train)
    rng = generator(seed, f"{kind} probes")
    units = config.hidden_units if kind == "mlp" else None
    num_layers, _, num_tokens, width = hidden.shape
    shape = num_layers, len(targets), num_tokens, width, targets.shape[-1]
    probes = ProbeSet(*shape, units, rng).to(hidden.device)
    _fit(probes, hidden, targets, split, config, rng)
    with torch.no_grad():
        errors = _squared_errors(probes, hidden[:, split.test], targets[:, split.test])
        return ProbeScores(errors, probes.attention.clone())


def _standardize(hidden: Tensor, targets: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    # One scale a layer (not a coordinate): the geometry that a linear read-out sees stays as it is.
    center = hidden[:, train].mean(1, keepdim=True)
    scale = hidden[:, train].sub(center).square().mean((1, 2, 3), keepdim=True).sqrt()
    mean = targets[:, train].mean(1, keepdim=True)
    spread = targets[:, train].var(1, keepdim=True).mean(-1, keepdim=True).sqrt()
    return (hidden - center) / scale.clamp_min(1e-12), (targets - mean) / spread.clamp_min(1e-12)


def _squared_errors(probes: ProbeSet, hidden: Tensor, targets: Tensor) -> Tensor:
    # Mean over the d coordinates of standardised targets: the error as a share of the variance.
    return (probes(hidden) - targets).square().mean(-1)


def _fit(
    probes: ProbeSet,
    hidden: Tensor,
    targets: Tensor,
    split: Split,
    config: ProbingConfig,
    rng: torch.Generator,
) -> None:
    optimizer = torch.optim.AdamW(probes.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    validation = hidden[:, split.validation], targets[:, split.validation]
    best_error = torch.full(probes.scores.shape[:2], float("inf"), device=hidden.device)
    best = [parameter.detach().clone() for parameter in probes.parameters()]
    check_every = max(1, config.num_steps // 50)
    for step in range(1, config.num_steps + 1):
        chosen = torch.randint(len(split.train), (config.batch_size,), generator=rng)
        batch = split.train[chosen]
        # A sum over probes: each sees the gradient of its own loss only.
        _squared_errors(probes, hidden[:, batch], targets[:, batch]).mean(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % check_every == 0 or step == config.num_steps:
            with torch.no_grad():
                error = _squared_errors(probes, *validation).mean(-1)
                better = error < best_error
                best_error = torch.where(better, error, best_error)
                for kept, parameter in zip(best, probes.parameters(), strict=True):
                    kept[better] = parameter.detach()[better]
    with torch.no_grad():
        for kept, parameter in zip(best, probes.parameters(), strict=True):
            parameter.copy_(kept)
