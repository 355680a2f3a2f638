"""Fit every probe at once, and score it on prompts that neither fitting nor stopping has seen.

Paper, section 5: a probe on layer l pools the hidden states over positions with learned weights, α
= softmax(s_l), and reads v̂ = f(αᵀH^(l)), f linear or a two-layer MLP, trained by squared error.
All probes, over layers, targets, numbers of examples and read-outs, are trained together in one
batched pass, or in one a group of layers where the states are large: they share the data and
nothing else, so each is what it would be alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.probing.config import FitConfig
from incontext_linear.probing.readouts import LinearReadout, ProbeSet
from incontext_linear.tasks import generator

STATES_AT_ONCE = 4 * 1024**3
"""Bytes of hidden states that are fitted in one pass; more are fitted by groups of layers. At the
paper's size all of them together would take more than half of an 80 GB card.
"""


class Split(NamedTuple):
    """Disjoint prompts for fitting, for stopping, and for the scores."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Column(NamedTuple):
    """A quantity to read: a target of the first ``examples_seen`` examples, (B, D)."""

    target: str
    examples_seen: int
    values: Tensor
    num_tokens: int | None = None
    """Of a prompt up to the query behind these examples; None: 2k+1, as the paper's tokens are."""

    @property
    def visible(self) -> int:
        """How many tokens it is read from."""
        return 2 * self.examples_seen + 1 if self.num_tokens is None else self.num_tokens

    @property
    def name(self) -> str:
        """Target and number of examples, in one word."""
        return f"{self.target}.k{self.examples_seen}"


class Standardized(NamedTuple):
    """Columns side by side, each centred and scaled by its training prompts, padded to the largest
    size D.
    """

    values: Float[Tensor, "column batch size"]
    weights: Float[Tensor, "column 1 size"]
    """1 over the column's own size; 0 where it is padded."""
    mean: Float[Tensor, "column 1 size"]
    spread: Float[Tensor, "column 1 1"]


@dataclass(frozen=True)
class ProbeFit:
    """The probes' errors on the test prompts, over S refits: other splits, initial weights and
    batches.
    """

    layers: list[int]
    columns: list[tuple[str, int]]
    """(target, examples seen)."""
    hidden_units: list[int | None]
    squared_error: Float[Tensor, "seed layer readout column prompt"]
    """Squared error per test prompt, as a share of the target's variance: 0 perfect, 1 the
    mean's.
    """
    validation_error: Float[Tensor, "seed layer readout column"]
    """The same on the validation prompts, their mean: what may choose among probes."""
    attention: Float[Tensor, "seed layer readout column token"]
    linear: dict[tuple[str, int, int], LinearReadout]
    """The first refit's linear probes, by (target, examples seen, layer)."""

    def halves(self) -> tuple["ProbeFit", "ProbeFit"]:
        """The fits of two learners whose layers were concatenated."""
        half = len(self.layers) // 2
        parts = (slice(None, half), slice(half, None))
        first, second = (
            replace(
                self,
                layers=self.layers[part],
                squared_error=self.squared_error[:, part],
                validation_error=self.validation_error[:, part],
                attention=self.attention[:, part],
                linear={},
            )
            for part in parts
        )
        return first, second

    def error_table(self, source: str) -> pd.DataFrame:
        """One row a probe, seed and test prompt, with the probe's mean error on the validation
        prompts.
        """
        table = self._table(source, self.squared_error, "prompt", "squared_error")
        repeated = self.validation_error.unsqueeze(-1).expand_as(self.squared_error)
        return table.assign(validation_error=repeated.flatten().float().cpu().numpy())

    def attention_table(self, source: str) -> pd.DataFrame:
        """One row a probe and token, the mean over seeds; invisible tokens have no attention."""
        return self._table(source, self.attention.mean(0, keepdim=True), "token", "attention").drop(
            columns="seed"
        )

    def _table(self, source: str, values: Tensor, last: str, name: str) -> pd.DataFrame:
        sizes = [range(size) for size in values.shape]
        index = pd.MultiIndex.from_product(
            sizes, names=["seed", "layer", "readout", "column", last]
        )
        table = pd.DataFrame(
            {name: values.flatten().float().cpu().numpy()}, index=index
        ).reset_index()
        column, readout = table.pop("column").to_numpy(), table.pop("readout").to_numpy()
        table["layer"] = np.array(self.layers)[table["layer"].to_numpy()]
        kinds = np.array(["linear" if units is None else "mlp" for units in self.hidden_units])
        described = {
            "source": pd.Categorical.from_codes(np.zeros(len(table), dtype=int), [source]),
            "target": np.array([target for target, _ in self.columns])[column],
            "kind": kinds[readout],
            "hidden_units": np.array([units or 0 for units in self.hidden_units])[readout],
            "examples_seen": np.array([seen for _, seen in self.columns])[column],
        }
        table = table.assign(**described).astype(
            {"source": "string", "target": "string", "kind": "string"}
        )
        return table[[*PROBE_KEYS, "seed", last, name]]


PROBE_KEYS = ["source", "target", "kind", "hidden_units", "examples_seen", "layer"]
"""The columns of a table that say which probe a row is about."""


def split_prompts(num_prompts: int, config: FitConfig, seed: int, refit: int = 0) -> Split:
    """Shuffle prompts into training, validation and test parts; the test part is the same in every
    refit.

    Raises:
        ValueError: if a part would be too small.
    """
    num_train, num_validation, num_test = config.split_sizes(num_prompts)
    order = torch.randperm(num_prompts, generator=generator(seed, "probe split"))
    rest, test = order.split([num_train + num_validation, num_test])
    rest = rest[torch.randperm(len(rest), generator=generator(seed, "probe refit", refit))]
    return Split(*rest.split([num_train, num_validation]), test)


def fit_probes(
    hidden: Float[Tensor, "layer token batch width"],
    layers: Sequence[int],
    columns: Sequence[Column],
    config: FitConfig,
    seed: int,
) -> ProbeFit:
    """Train one probe a layer, column and read-out, all together, `config.num_seeds` times over.

    Hidden states and targets are standardised with the training prompts' moments. A column of k
    examples is read from the tokens x₁ y₁ … x_{k+1}. Of each probe the state with the lowest
    validation error is the one that is scored (early stopping, probe by probe).

    Args:
        hidden: hidden states (L, T, B, H), tokens before prompts.
        layers: the numbers of the L layers.
        columns: what is to be read.
        config: read-outs, steps, batch, splits, refits.
        seed: decides the test prompts and, with the refit's number, everything else that is random.
    """
    num_tokens = hidden.shape[1]
    counts = torch.tensor([column.visible for column in columns])
    visible = (torch.arange(num_tokens) < counts[:, None]).to(hidden.device)
    parts = _layer_groups(hidden)
    fits = [
        [
            _refit(hidden[part], layers[part], columns, visible, config, seed, index)
            for part in parts
        ]
        for index in range(config.num_seeds)
    ]
    errors = torch.stack([torch.cat([part.squared_error for part in refit]) for refit in fits])
    validation = torch.stack(
        [torch.cat([part.validation_error for part in refit]) for refit in fits]
    )
    attention = torch.stack([torch.cat([part.attention for part in refit]) for refit in fits])
    linear = {key: readout for part in fits[0] for key, readout in part.linear.items()}
    names, units = [column[:2] for column in columns], [None, *config.hidden_units]
    return ProbeFit(list(layers), names, units, errors, validation, attention, linear)


def _layer_groups(hidden: Tensor) -> list[slice]:
    """Layers whose states fit `STATES_AT_ONCE` bytes, or a single one: fitting copies them."""
    size = hidden[0].numel() * hidden.element_size()
    count = max(1, STATES_AT_ONCE // size)
    return [slice(start, start + count) for start in range(0, len(hidden), count)]


class _Refit(NamedTuple):
    """Errors on the test prompts and, as means, on the validation prompts; attention; linear
    read-outs.
    """

    squared_error: Tensor
    validation_error: Tensor
    attention: Tensor
    linear: dict[tuple[str, int, int], LinearReadout]


def _refit(
    hidden: Tensor,
    layers: Sequence[int],
    columns: Sequence[Column],
    visible: Tensor,
    config: FitConfig,
    seed: int,
    index: int,
) -> _Refit:
    """One refit.

    A function of its own, so that its copy of the states is gone before the next refit makes
    another.
    """
    split = split_prompts(hidden.shape[2], config, seed, index)
    sizes, units = [column.values.shape[1] for column in columns], [None, *config.hidden_units]
    names = [column.name for column in columns]
    probes = ProbeSet(layers, units, names, visible, hidden.shape[3], sizes, seed + index)
    probes.to(hidden.device, hidden.dtype)
    # Training, validation and test prompts are concatenated: every part is a slice, none a copy.
    order = torch.cat(split).to(hidden.device)
    states, center, scale = _standardize_states(hidden[:, :, order], len(split.train))
    targets = _standardize_targets(columns, order, len(split.train), max(sizes))
    rng = generator(seed, "probe batches", index)
    validation = _fit(probes, states, targets, split, config, rng)
    with torch.no_grad():
        errors = _squared_errors(probes, states, targets, slice(len(order) - len(split.test), None))
        attention = probes.attention.clone()
    r_squared = 1 - errors[:, 0].mean(-1)
    linear = _linear_readouts(probes, layers, columns, center, scale, targets, r_squared)
    return _Refit(errors, validation, attention, dict(linear))


def _standardize_states(hidden: Tensor, num_train: int) -> tuple[Tensor, Tensor, Tensor]:
    """In place: ``hidden`` is a copy. One scale a layer keeps the geometry that a linear read-out
    sees.
    """
    center = hidden[:, :, :num_train].mean(2, keepdim=True)
    hidden.sub_(center)
    # By way of norms, small beside the states, where their squares would be a second copy of them.
    norms = torch.linalg.vector_norm(hidden[:, :, :num_train], dim=3, keepdim=True)
    variance = norms.square().mean((1, 2), keepdim=True) / hidden.shape[3]
    scale = variance.sqrt().clamp_min_(1e-12)
    return hidden.div_(scale), center, scale


def _standardize_targets(
    columns: Sequence[Column], order: Tensor, num_train: int, size: int
) -> Standardized:
    own = torch.tensor([column.values.shape[1] for column in columns], device=order.device)
    padded = [
        torch.nn.functional.pad(column.values[order], (0, size - column.values.shape[1]))
        for column in columns
    ]
    values = torch.stack(padded)
    weights = ((torch.arange(size, device=order.device) < own[:, None]) / own[:, None]).to(
        values.dtype
    )
    mean = values[:, :num_train].mean(1, keepdim=True)
    variance = values[:, :num_train].var(1, keepdim=True)
    spread = (variance * weights[:, None]).sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
    return Standardized((values - mean) / spread, weights[:, None], mean, spread)


def _squared_errors(
    probes: ProbeSet, hidden: Tensor, targets: Standardized, prompts: slice
) -> Tensor:
    # Mean over the coordinates of standardised targets: the error as a share of the variance.
    missed = probes(hidden[:, :, prompts]) - targets.values[:, prompts]
    return (missed.square() * targets.weights).sum(-1)


def _fit(
    probes: ProbeSet,
    hidden: Tensor,
    targets: Standardized,
    split: Split,
    config: FitConfig,
    rng: torch.Generator,
) -> Float[Tensor, "layer readout column"]:
    """Train the probes; their validation errors."""
    parameters = list(probes.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    validation = slice(len(split.train), len(split.train) + len(split.validation))
    best_error = torch.full(
        probes.scores.shape[:3], float("inf"), device=hidden.device, dtype=hidden.dtype
    )
    best = [parameter.detach().clone() for parameter in parameters]
    check_every = max(1, config.num_steps // 25)
    for step, batch in enumerate(_windows(len(split.train), config, rng), start=1):
        # A sum over probes: each sees the gradient of its own loss only.
        _squared_errors(probes, hidden, targets, batch).mean(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % check_every == 0 or step == config.num_steps:
            with torch.no_grad():
                error = _squared_errors(probes, hidden, targets, validation).mean(-1)
                better = error < best_error
                best_error = torch.where(better, error, best_error)
                _keep(probes, best, better)
    with torch.no_grad():
        for parameter, kept in zip(parameters, best, strict=True):
            parameter.copy_(kept)
    return best_error


def _windows(num_train: int, config: FitConfig, rng: torch.Generator) -> Iterator[slice]:
    """Batches: windows of the shuffled training prompts at random places, read without a copy."""
    size = min(config.batch_size, num_train)
    starts = torch.randint(num_train - size + 1, (config.num_steps,), generator=rng)
    return (slice(start, start + size) for start in starts.tolist())


def _keep(probes: ProbeSet, best: list[Tensor], better: Tensor) -> None:
    """Remember the present state of the probes that are ``better`` (L, R, C) than ever before."""
    kept = iter(best)
    for name, parameter in probes.named_parameters():
        # Scores hold all read-outs; a matrix or bias, named "matrices.<read-out>.<index>", one of
        # them.
        chosen = better if name == "scores" else better[:, int(name.split(".")[1])]
        next(kept)[chosen] = parameter.detach()[chosen]


def _linear_readouts(
    probes: ProbeSet,
    layers: Sequence[int],
    columns: Sequence[Column],
    center: Float[Tensor, "layer token 1 width"],
    scale: Float[Tensor, "layer 1 1 1"],
    targets: Standardized,
    r_squared: Float[Tensor, "layer column"],
) -> Iterator[tuple[tuple[str, int, int], LinearReadout]]:
    """Undo the standardisation: read-outs in the units of the hidden states and of the targets."""
    attention = probes.attention.detach()[:, 0]
    matrices, biases = probes.matrices[0][0].detach(), probes.biases[0][0].detach()[:, :, 0]
    for row, layer in enumerate(layers):
        for c, column in enumerate(columns):
            size, spread = column.values.shape[1], targets.spread[c, 0, 0]
            matrix = matrices[row, c, :, :size] * spread / scale[row, 0, 0, 0]
            offset = biases[row, c, :size] * spread + targets.mean[c, 0, :size]
            bias = offset - attention[row, c] @ center[row, :, 0] @ matrix
            parts = attention[row, c].clone(), matrix, bias, r_squared[row, c].item()
            yield (*column[:2], layer), LinearReadout(*parts)
