"""The operations of the paper's proof (section 3.1): mov, mul, div and aff, each one transformer
layer.

An operation says which rows it reads and writes; `assembler` turns it into the weights of a
`Block`. Attention carries ``mov``; the MLP carries ``mul`` and ``aff``; ``div`` uses both halves
and the LayerNorm between them. Operations that use different halves, or that read the same input,
may share one layer.

Every operation overwrites its target rows (or adds to them, where it says so) and leaves all
others.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from incontext_linear.construction.registers import Rows

Kind = Literal["x", "y"]


class Look(NamedTuple):
    """Where a token's attention goes: so many tokens back; None: equally to every y-token it
    sees.
    """

    x: int | None
    y: int | None


SELF = Look(0, 0)
EVERY_Y = Look(None, None)


class Copy(NamedTuple):
    """Attention's part: add ``gain`` times the source rows of the attended column to the target
    rows.
    """

    look: Look
    source: np.ndarray
    target: np.ndarray
    gain: float


class Product(NamedTuple):
    """The MLP's part: add ``gain`` times left·right, entry by entry, to the target rows."""

    left: np.ndarray
    right: np.ndarray
    target: np.ndarray
    gain: float


class Linear(NamedTuple):
    """The MLP's part: add ``matrix`` times the source rows, and ``bias``, to the target rows."""

    matrix: np.ndarray
    source: np.ndarray
    target: np.ndarray
    bias: float
    only: Kind | None


@dataclass(frozen=True)
class Operation:
    """What one operation asks of the two halves of a layer."""

    name: str
    copies: tuple[Copy, ...] = ()
    products: tuple[Product, ...] = ()
    linears: tuple[Linear, ...] = ()
    denominator: int | None = None
    """The row whose value LayerNorm divides by in this operation's MLP."""


class Layer:
    """One transformer layer: operations on its attention, then operations on its MLP.

    All attention parts read the layer's input; all MLP parts read what attention left.

    Args:
        line: the line of the proof that the layer carries out, as the figures show it.
        operations: at least one.

    Raises:
        ValueError: if there is nothing to do, or a `div` shares its MLP, which sees quotients only.
    """

    def __init__(self, line: str, *operations: Operation):
        if not operations:
            raise ValueError(f"the layer {line!r} needs at least one operation")
        self.line, self.operations = line, operations
        divisions = [operation for operation in operations if operation.denominator is not None]
        in_mlp = [operation for operation in operations if operation.products or operation.linears]
        if divisions and len(in_mlp) > 1:
            raise ValueError("div must have the MLP of its layer to itself")
        self.denominator = divisions[0].denominator if divisions else None

    @property
    def name(self) -> str:
        """The operations' names, joined, in the order in which they act."""
        return " + ".join(operation.name for operation in self.operations)

    @cached_property
    def copies(self) -> dict[Look, list[Copy]]:
        """The copies of all operations, grouped by where they look: one attention head each."""
        heads: dict[Look, list[Copy]] = {}
        for operation in self.operations:
            for copy in operation.copies:
                heads.setdefault(copy.look, []).append(copy)
        return heads

    @property
    def products(self) -> list[Product]:
        """The products of all operations."""
        return [product for operation in self.operations for product in operation.products]

    @property
    def linears(self) -> list[Linear]:
        """The linear maps of all operations."""
        return [linear for operation in self.operations for linear in operation.linears]


def mov(source: Rows, target: Rows, *, x: int = 0, y: int = 0) -> Operation:
    """Write the source rows of an earlier column into the target rows: every column t, at once.

    An x-token reads the column ``x`` tokens back and a y-token the column ``y`` tokens back; 0 is
    its own column. Where that column lies before the prompt, the first column stands in for it.

    Args:
        source: rows read, (a, b).
        target: rows written, (a, b).
        x: tokens back, for x-tokens.
        y: tokens back, for y-tokens.

    Raises:
        ValueError: if a shift points to later columns, or the shapes differ.
    """
    if min(x, y) < 0:
        raise ValueError(f"mov reads earlier columns only; got shifts x={x}, y={y}")
    return Operation("mov", copies=_copies(Look(x, y), source, target, "mov"))


def average(source: Rows, target: Rows) -> Operation:
    """Write the mean of the source rows over all y-tokens seen so far: a mov with equal scores.

    A column that sees no y-token yet (the first) reads itself.

    Raises:
        ValueError: if the shapes differ.
    """
    return Operation("average", copies=_copies(EVERY_Y, source, target, "average"))


def mul(
    left: Rows, right: Rows, target: Rows, *, scale: float = 1.0, add: bool = False
) -> Operation:
    """Write ``scale`` times the matrix product of two registers; sums are the MLP's own.

    It acts in every column: squares are taken of numbers too small to add a gate to without
    rounding. Where a product must not act, let one of its factors be 0 (`aff` can clear rows in one
    kind of token).

    Args:
        left: rows read, (a, b).
        right: rows read, (b, c).
        target: rows written, (a, c); if symmetric, so must the product be, and each row is written
            once.
        scale: a constant factor.
        add: add to the target instead of overwriting it.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if left.shape[1] != right.shape[0] or target.shape != (left.shape[0], right.shape[1]):
        raise ValueError(f"mul cannot write {left.shape} × {right.shape} to {target.shape}")
    shape = (*left.shape, right.shape[1])
    lefts = np.broadcast_to(left[:, :, None], shape).swapaxes(1, 2).reshape(target.size, -1)
    rights = np.broadcast_to(right[None], shape).swapaxes(1, 2).reshape(target.size, -1)
    written, first = np.unique(target, return_index=True)
    targets = np.repeat(written, left.shape[1])
    product = Product(lefts[first].ravel(), rights[first].ravel(), targets, scale)
    return Operation("mul", products=(product,), linears=() if add else (_minus(written, None),))


def aff(
    target: Rows,
    *terms: tuple[float | np.ndarray, Rows],
    bias: float = 0.0,
    add: bool = False,
    only: Kind | None = None,
) -> Operation:
    """Write W₁h_a + W₂h_b + … + bias: an affine map, exact because GeLU(z) - GeLU(-z) = z.

    Args:
        target: rows written.
        terms: pairs of a matrix W (target rows × source rows), or a number, and the rows read.
        bias: added to every target row.
        add: add to the target instead of overwriting it.
        only: act in the x-tokens or in the y-tokens alone.

    Raises:
        ValueError: if a matrix does not fit its rows.
    """
    written, first = np.unique(target, return_index=True)
    matrices, sources = [np.zeros((written.size, 0))], [np.zeros(0, dtype=int)]
    for weight, source in terms:
        matrix = weight * np.eye(source.size) if np.isscalar(weight) else np.asarray(weight)
        if matrix.shape != (target.size, source.size):
            raise ValueError(
                f"aff cannot map {source.size} rows to {target.size} by a matrix {matrix.shape}"
            )
        matrices.append(matrix[first])
        sources.append(source.ravel())
    linear = Linear(np.hstack(matrices), np.concatenate(sources), written, bias, only)
    return Operation("aff", linears=(linear,) if add else (linear, _minus(written, only)))


def div(numerator: Rows, denominator: Rows, target: Rows) -> Operation:
    """Write the numerator rows divided by the (positive) denominator row, through LayerNorm's
    normaliser.

    Args:
        numerator: rows read, (a, b).
        denominator: one row, (1, 1).
        target: rows written, (a, b); other rows than the numerator's and the denominator's.

    Raises:
        ValueError: if the shapes do not fit, or the target overlaps what is read.
    """
    if denominator.size != 1 or numerator.shape != target.shape:
        raise ValueError(
            f"div cannot write {numerator.shape} / {denominator.shape} to {target.shape}"
        )
    if np.isin(target, [*numerator.ravel(), *denominator.ravel()]).any():
        raise ValueError("div cannot write to rows that it reads")
    quotient = Linear(np.eye(numerator.size), numerator.ravel(), target.ravel(), 0.0, None)
    # Attention clears the target: behind it, in the MLP, the old content would be read divided.
    clear = Copy(SELF, target.ravel(), target.ravel(), -1.0)
    return Operation(
        "div", copies=(clear,), linears=(quotient,), denominator=int(denominator.item())
    )


def _copies(look: Look, source: Rows, target: Rows, name: str) -> tuple[Copy, Copy]:
    """One head brings the new rows; another, which looks at its own column, takes the old ones
    away.
    """
    if source.shape != target.shape:
        raise ValueError(f"{name} cannot write {source.shape} to {target.shape}")
    written, first = np.unique(target, return_index=True)
    return Copy(look, source.ravel()[first], written, 1.0), Copy(SELF, written, written, -1.0)


def _minus(rows: np.ndarray, only: Kind | None) -> Linear:
    """Take the old content of the rows away, as overwriting in a residual stream must."""
    return Linear(-np.eye(rows.size), rows, rows, 0.0, only)
