"""From operations to weights: builds a `Transformer` whose blocks carry out a program.

Every number here becomes an entry of a weight matrix, a bias, a LayerNorm gain or a position vector
of the ordinary `Transformer`; nothing is computed outside its forward pass.
`docs/results/construction.md` derives each.

Shape letters: R named rows, H hidden rows (the width), U hidden units of the MLP, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from incontext_linear.config import ModelConfig
from incontext_linear.construction.config import FLOAT32, FLOAT64, Constants
from incontext_linear.construction.operations import (
    EVERY_Y,
    SELF,
    Copy,
    Kind,
    Layer,
    Linear,
    Look,
    Product,
)
from incontext_linear.construction.registers import Registers, Rows
from incontext_linear.learner.transformer import Block, Transformer
from incontext_linear.predictors.validation import check_integer

NUM_HEADS = 2
"""One head brings rows from another column, one looks at its own column."""

# A closed gate lowers every pre-activation of a unit by GATE, where tanh-GeLU is exactly 0 in
# floating point. An open one adds GATE times the row mean that LayerNorm leaves, and takes it away:
# that may round by GATE·ε.
GATE = 16.0


@dataclass(frozen=True)
class Program:
    """A list of layers over named rows: what a `ConstructedTransformer` is built from."""

    dim: int
    num_examples: int
    rows: Registers
    layers: Sequence[Layer]
    initial: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    """Contents of registers before the first layer, the same in every column (position vectors hold
    them).
    """

    def __post_init__(self):
        check_integer("dim", self.dim, minimum=1)
        check_integer("num_examples", self.num_examples, minimum=1)

    @property
    def model_config(self) -> ModelConfig:
        """The smallest shape that the program's rows, copies and products fit in."""
        copied = [
            sum(copy.target.size for copy in copies)
            for y in self.layers
            for copies in y.copies.values()
        ]
        width = max(self.rows.size, NUM_HEADS * max(copied, default=0))
        units = [
            4 * sum(product.left.size for product in y.products)
            + 2 * sum(y.target.size for y in y.linears)
            for y in self.layers
        ]
        return ModelConfig(
            num_layers=len(self.layers),
            num_heads=NUM_HEADS,
            width=width + width % NUM_HEADS,
            mlp_width=max(units) or 1,
        )


class ConstructedTransformer(Transformer):
    """A `Transformer` whose weights were computed from a program instead of trained.

    Only weights and the names of rows and layers are added; every method is the trained class's
    own. Layers that occur several times in the program are one `Block` that stands in ``blocks``
    several times.

    Args:
        program: rows, layers and initial contents.
        constants: saturation, padding, GeLU scale and the gates' range; None: those chosen for the
            dtype.
        dtype: of the weights, and so of the prompts it takes.

    Raises:
        ValueError: if a layer looks in more ways than there are heads.
    """

    def __init__(
        self,
        program: Program,
        constants: Constants | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        config = program.model_config
        ends = config.model_copy(update={"num_layers": 0})
        with _NoDraws():
            super().__init__(program.dim, program.num_examples, ends)
        _clear(self)
        self.config, self.rows, self.layers = config, program.rows, tuple(program.layers)
        weights = _Weights(program, constants or default_constants(dtype))
        with torch.no_grad():
            weights.write_ends(self, program)
            blocks = {
                layer: weights.block(layer, config).to(dtype)
                for layer in dict.fromkeys(self.layers)
            }
        self.to(dtype)  # before the blocks, which are: it would go over each as often as it occurs
        self.blocks = nn.ModuleList(blocks[layer] for layer in self.layers)


def default_constants(dtype: torch.dtype) -> Constants:
    """The constants that the error tables single out for a dtype (float64, or anything
    narrower).
    """
    return FLOAT64 if dtype == torch.float64 else FLOAT32


class _Weights:
    """Computes weights of blocks, in float64, for one layout and one set of constants."""

    def __init__(self, program: Program, constants: Constants):
        self.rows, self.constants = program.rows, constants
        self.width = program.model_config.width
        self.num_tokens = 2 * program.num_examples - 1
        # Half a turn holds the prompt and the two places before it, so scores fall off on both
        # sides.
        self.angle = np.pi / (self.num_tokens + 2)
        self.division_padding = constants.padding**0.5
        # Numbers enter an affine map's GeLU pair this much smaller, so that a closed gate outweighs
        # them.
        self.linear_scale = GATE / 2 / constants.gate_range

    def block(self, layer: Layer, config: ModelConfig) -> Block:
        """One layer's weights."""
        with _NoDraws():
            block = Block(config)
        _clear(block)
        self._write_norms(block, layer)
        self._write_attention(block, layer)
        self._write_mlp(block, layer)
        return block

    def write_ends(self, model: Transformer, program: Program) -> None:
        """Read-in, position vectors and read-out."""
        rows, positions = self.rows, model.positions
        model.read_in.weight[rows.y.ravel(), 0] = 1.0
        model.read_in.weight[rows.x.ravel(), torch.arange(1, program.dim + 1)] = 1.0
        angles = self.angle * torch.arange(self.num_tokens, dtype=positions.dtype)
        code = torch.stack((angles.cos(), angles.sin()), dim=1)
        for first, flag, position in (
            (0, rows.is_x, rows.position_x),
            (1, rows.is_y, rows.position_y),
        ):
            positions[first::2, flag.item()] = 1.0
            positions[first::2, position.ravel()] = code[first::2]
        positions[:, rows.padding.ravel()] = self.constants.padding * torch.tensor(
            [1.0, -1.0], dtype=positions.dtype
        )
        for name, values in program.initial.items():
            register = getattr(rows, name)
            filled = np.broadcast_to(values, (self.num_tokens, *register.shape))
            positions[:, register.ravel()] = torch.tensor(
                filled.reshape(self.num_tokens, -1), dtype=positions.dtype
            )
        self._write_norm(model.final_norm, self.constants.padding, rows.padding)
        model.read_out.weight[0, rows.prediction.item()] = 1.0
        model.read_out.weight[0, rows.zero.item()] = -1.0

    def _write_norms(self, block: Block, layer: Layer) -> None:
        rows = self.rows
        self._write_norm(block.attention_norm, self.constants.padding, rows.padding)
        if layer.denominator is None:
            self._write_norm(block.mlp_norm, self.constants.padding, rows.padding)
        else:
            large = np.vstack((rows.padding, rows.divisor))
            self._write_norm(block.mlp_norm, self.division_padding, large)

    def _write_norm(self, norm: Any, padding: float, large: Rows) -> None:
        """Gain that undoes the scale √(2N²/H + ε) which the padding imposes; the large rows are
        hidden.
        """
        norm.weight.fill_((2 * padding**2 / self.width + norm.eps) ** 0.5)
        norm.weight[large.ravel()] = 0.0

    def _write_attention(self, block: Block, layer: Layer) -> None:
        copies = {look: list(parts) for look, parts in layer.copies.items()}
        attention, head_width = block.attention, self.width // NUM_HEADS
        if layer.denominator is not None:
            copies.setdefault(SELF, []).extend(self._divisor_copies(layer.denominator))
            # The constant padding steps aside: attention takes it away, the MLP puts it back.
            padding = self.constants.padding * torch.tensor(
                [1.0, -1.0], dtype=attention.project_out.bias.dtype
            )
            attention.project_out.bias[self.rows.padding.ravel()] = -padding
            block.mlp_out.bias[self.rows.padding.ravel()] = padding
        if len(copies) > NUM_HEADS:
            raise ValueError(
                f"the layer {layer.line!r} looks in {len(copies)} ways; there are {NUM_HEADS} heads"
            )
        for head, (look, parts) in enumerate(copies.items()):
            start = head * head_width
            self._write_scores(attention.project_in, look, start, head_width)
            for copy in parts:
                values = torch.arange(start, start + copy.source.size)
                start += copy.source.size
                attention.project_in.weight[2 * self.width + values, copy.source] = 1.0
                attention.project_in.weight[2 * self.width + values, self.rows.zero.item()] -= 1.0
                attention.project_out.weight[copy.target, values] = copy.gain

    def _divisor_copies(self, denominator: int) -> list[Copy]:
        """Let the divisor rows hold ±√N times the denominator, whatever they held before."""
        divisor = self.rows.divisor.ravel()
        source = np.array([denominator])
        return [
            Copy(SELF, source, divisor[:1], self.division_padding),
            Copy(SELF, source, divisor[1:], -self.division_padding),
            Copy(SELF, divisor, divisor, -1.0),
        ]

    def _write_scores(self, project_in: nn.Linear, look: Look, start: int, head_width: int) -> None:
        """Queries and keys of one head, so that the attended column leads by the saturation."""
        rows, query, key = self.rows, start, self.width + start
        weight = project_in.weight
        if look == EVERY_Y:
            project_in.bias[query] = self.constants.saturation * head_width**0.5
            weight[key, rows.is_y.item()] = 1.0
            weight[key, rows.zero.item()] = -1.0
            return
        gap = 1 - np.cos(self.angle)
        sharpness = self.constants.saturation / gap * head_width**0.5
        for position, back in ((rows.position_x, look.x), (rows.position_y, look.y)):
            cosine, sine = np.cos(back * self.angle), np.sin(back * self.angle)
            turn = sharpness * torch.tensor([[cosine, sine], [-sine, cosine]])
            weight[query : query + 2, position.ravel()] = turn
            weight[key : key + 2, position.ravel()] = torch.eye(2, dtype=weight.dtype)
        for first in (query, key):
            weight[first : first + 2, rows.zero.item()] = -weight[first : first + 2].sum(1)

    def _write_mlp(self, block: Block, layer: Layer) -> None:
        parts = [self._product_units(product) for product in layer.products]
        parts += [self._linear_units(linear) for linear in layer.linears]
        start = 0
        for read, bias, target, write in parts:
            units = slice(start, start + len(read))
            block.mlp_in.weight[units, : self.rows.size] = read
            block.mlp_in.bias[units] = bias
            block.mlp_out.weight[target, torch.arange(units.start, units.stop)] = write
            start = units.stop

    def _product_units(self, product: Product) -> tuple[Tensor, Tensor, np.ndarray, Tensor]:
        """Four units a product: 4ab = (a+b)² - (a-b)², z² = √(π/2)(GeLU(z) + GeLU(-z)) + O(z⁴)."""
        scale, number = self.constants.gelu_scale, product.left.size
        plus = torch.zeros(number, self.rows.size, dtype=torch.float64)
        plus[torch.arange(number), product.left] += scale
        minus = plus.clone()
        plus[torch.arange(number), product.right] += scale
        minus[torch.arange(number), product.right] -= scale
        read = torch.cat((plus, -plus, minus, -minus))
        signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).repeat_interleave(number)
        write = signs * product.gain * (np.pi / 2) ** 0.5 / (4 * scale**2)
        self._ground(read)
        return read, torch.zeros(len(read), dtype=torch.float64), np.tile(product.target, 4), write

    def _linear_units(self, linear: Linear) -> tuple[Tensor, Tensor, np.ndarray, Tensor]:
        """Two units a row: GeLU(z) - GeLU(-z) = z."""
        matrix = torch.zeros(linear.target.size, self.rows.size, dtype=torch.float64)
        for column, row in enumerate(linear.source):
            matrix[:, row] += torch.as_tensor(linear.matrix[:, column])
        read = self.linear_scale * torch.cat((matrix, -matrix))
        bias = self.linear_scale * linear.bias * torch.ones(len(matrix), dtype=torch.float64)
        write = torch.ones(len(matrix), dtype=torch.float64) / self.linear_scale
        self._ground(read)
        if linear.only is not None:
            self._gate(read, linear.only)
        return read, torch.cat((bias, -bias)), np.tile(linear.target, 2), torch.cat((write, -write))

    def _ground(self, read: Float[Tensor, "unit row"]) -> None:
        """Read differences to the zero row, which do not see the mean that LayerNorm takes from all
        rows.
        """
        read[:, self.rows.zero.item()] = -read.sum(1)

    def _gate(self, read: Float[Tensor, "unit row"], only: Kind) -> None:
        """Silence the units in the other kind of token."""
        read[:, (self.rows.is_y if only == "x" else self.rows.is_x).item()] = -GATE
        # Its own zero row, beside it: the two terms cancel where the gate is open.
        read[:, self.rows.ground.item()] = GATE


class _NoDraws(TorchFunctionMode):
    """Modules made in it keep uninitialised weights, all of which are assigned afterwards.

    PyTorch's meta device would draw none either, but takes several times longer for networks as
    small as these.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))


def _clear(module: nn.Module) -> None:
    """Give a module float64 zeros for weights."""
    for parameter in module.parameters():
        parameter.data = torch.zeros(parameter.shape, dtype=torch.float64)
