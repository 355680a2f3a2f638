"""The probes: attention over positions, then a linear or an MLP read-out (paper, section 5).

Shape letters: L layers, R read-outs (one linear, one MLP a size), C columns (a target at a number
of examples), B prompts, T tokens, H width, D the largest target's size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from incontext_linear.tasks import generator

MAKE_PROBES = "make them with `kedro run --pipelines probing --tags probes`, with these parameters"


class ProbeSet(nn.Module):
    """L·R·C probes in one module: every layer, read-out and column at once.

    An MLP draws its initial weights from a generator of its own, named after the probe, so that it
    begins the same way whichever others are trained beside it. A linear read-out begins at zero: it
    then has no part in directions in which the states never vary, where its weights would stay as
    drawn, and an edit along it would take the states where no prompt leads.

    Args:
        layers: the layers' numbers, L of them.
        hidden_units: of each read-out, R of them; None for a linear one.
        columns: the columns' names, C of them.
        visible: (C, T), the tokens that a column's probes may attend to.
        width: H.
        sizes: each column's own size, D the largest.
        seed: decides the initial weights of the MLPs.
    """

    def __init__(
        self,
        layers: Sequence[int],
        hidden_units: Sequence[int | None],
        columns: Sequence[str],
        visible: Bool[Tensor, "column token"],
        width: int,
        sizes: Sequence[int],
        seed: int,
    ):
        super().__init__()
        num_layers, num_columns, num_tokens = len(layers), len(columns), visible.shape[1]
        self.register_buffer("visible", visible)
        self.scores = nn.Parameter(
            torch.zeros(num_layers, len(hidden_units), num_columns, num_tokens)
        )
        self.matrices, self.biases = nn.ModuleList(), nn.ModuleList()
        for units in hidden_units:
            if units is None:
                matrices = [torch.zeros(num_layers, num_columns, width, max(sizes))]
            else:
                rngs = [
                    [generator(seed, f"probe {units} {layer} {column}") for column in columns]
                    for layer in layers
                ]
                matrices = [_draw(rngs, width, [units] * num_columns), _draw(rngs, units, sizes)]
            self.matrices.append(nn.ParameterList(matrices))
            self.biases.append(
                nn.ParameterList(
                    torch.zeros(num_layers, num_columns, 1, m.shape[-1]) for m in matrices
                )
            )

    @property
    def attention(self) -> Float[Tensor, "layer readout column token"]:
        """α: what each probe takes from each position; sums to one over the visible ones."""
        return self.scores.masked_fill(~self.visible, float("-inf")).softmax(-1)

    def forward(
        self, hidden: Float[Tensor, "layer token batch width"]
    ) -> Float[Tensor, "layer readout column batch size"]:
        """Read every column out of every layer, with every read-out.

        Tokens come before prompts: pooling is then one matrix product a layer, on the states as
            they lie.
        """
        batch, width = hidden.shape[2:]
        pooled = self.attention.flatten(1, 2) @ hidden.flatten(2)
        pooled = pooled.unflatten(1, self.scores.shape[1:3]).unflatten(-1, (batch, width))
        values = []
        for value, matrices, biases in zip(
            pooled.unbind(1), self.matrices, self.biases, strict=True
        ):
            for index, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
                value = F.gelu(value) @ matrix + bias if index else value @ matrix + bias
            values.append(value)
        return torch.stack(values, dim=1)


def _draw(rngs: list[list[torch.Generator]], fan_in: int, sizes: Sequence[int]) -> Tensor:
    """Matrices (L, C, fan_in, D) of N(0, 1/fan_in), padded with zeros: no loss ever reaches
    these.
    """
    largest = max(sizes)
    drawn = [
        [torch.randn(fan_in, size, generator=rng) for rng, size in zip(row, sizes, strict=True)]
        for row in rngs
    ]
    padded = [torch.stack([F.pad(m, (0, largest - m.shape[1])) for m in row]) for row in drawn]
    return torch.stack(padded) / fan_in**0.5


@dataclass(frozen=True)
class LinearReadout:
    """A linear probe of one layer and column, in the units of the hidden states: v̂ = (Σₜ αₜ hₜ)·M
    + b.
    """

    attention: Float[Tensor, " token"]
    matrix: Float[Tensor, "width size"]
    bias: Float[Tensor, " size"]
    r_squared: float = float("nan")
    """ρ, the share of the target's variance that it reads on the test prompts; at most 1."""

    def decode(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch size"]:
        """What the layer holds, as the probe reads it."""
        return torch.einsum("bth,t->bh", hidden, self.attention) @ self.matrix + self.bias


def pack_readouts(readouts: Mapping[tuple[str, int, int], LinearReadout]) -> dict[str, Tensor]:
    """Read-outs by (target, examples seen, layer) as tensors by name, which can be saved:
    ``least_squares.k11.layer2.matrix``.
    """
    return {
        f"{_readout_name(*key)}.{part.name}": torch.as_tensor(getattr(readout, part.name)).cpu()
        for key, readout in readouts.items()
        for part in fields(readout)
    }


def unpack_readout(
    tensors: Mapping[str, Tensor],
    target: str,
    examples_seen: int,
    layer: int,
    device: torch.device | str = "cpu",
    num_tokens: int | None = None,
) -> LinearReadout:
    """One of the read-outs that `pack_readouts` packed, for a prompt's ``examples_seen`` examples
    and a query, which are ``num_tokens``; None: 2k+1.

    Raises:
        ValueError: if it is not there.
    """
    name = _readout_name(target, examples_seen, layer)
    parts = [f"{name}.{part.name}" for part in fields(LinearReadout)]
    if any(part not in tensors for part in parts):
        raise ValueError(
            f"there is no saved probe of {target!r} after {examples_seen} examples in layer "
            f"{layer}; {MAKE_PROBES}"
        )
    attention, matrix, bias, r_squared = (tensors[part].to(device) for part in parts)
    count = 2 * examples_seen + 1 if num_tokens is None else num_tokens
    return LinearReadout(attention[:count], matrix, bias, r_squared.item())


def _readout_name(target: str, examples_seen: int, layer: int) -> str:
    return f"{target}.k{examples_seen}.layer{layer}"
