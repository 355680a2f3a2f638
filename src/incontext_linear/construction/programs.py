"""The theorems of the paper (section 3, proofs in its appendix) as programs, and their repetition.

Each function lists the proof's lines in order and returns a `Transformer` that carries them out.
All programs act on every column at once, so one forward pass predicts every prefix.

Single steps (`gradient_step`, `sherman_morrison`) give each operation its own layer, as the proofs
do. Whole prompts (`one_pass_sgd`, `ridge`) repeat one update. Each repetition lets every y-token
take the state two tokens back, from the y-token of the example before, and update it with its own
example; after k repetitions the k-th y-token holds the state after k examples, and stays there. The
repeated layers are the same `Block` objects, so memory does not grow with the prompt.
"""

from collections.abc import Sequence

import numpy as np
import torch

from incontext_linear.construction.assembler import ConstructedTransformer, Program
from incontext_linear.construction.config import Constants
from incontext_linear.construction.operations import Layer, Operation, aff, average, div, mov, mul
from incontext_linear.construction.registers import Registers, Rows, column, symmetric
from incontext_linear.predictors.validation import check_integer, check_real


def gradient_step(
    dim: int,
    num_examples: int = 2,
    *,
    step_size: float,
    penalty: float = 0.0,
    initial_weights: Sequence[float] | np.ndarray | None = None,
    constants: Constants | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConstructedTransformer:
    """Theorem 1: one step w' = w - 2α(x wᵀx - y x + λw) on one example, and w'ᵀx at the next x.

    The example is the latest one before the prediction: ``predictions[:, k]`` takes the step on
    example k alone (counting from 1), and ``predictions[:, 0]`` is wᵀx.

    Args:
        dim: d.
        num_examples: n, the longest prompt.
        step_size: α.
        penalty: λ, the weight decay.
        initial_weights: w, length d; None: 0.
        constants: saturation, padding, GeLU scale and the gates' range; None: those chosen for the
            dtype.
        dtype: of the weights.

    Raises:
        ValueError: if a size is below 1, α is not positive, λ is negative or w has another length.
    """
    check_real("step_size", step_size, positive=True)
    check_real("penalty", penalty)
    start = _initial(initial_weights, dim)
    r = _registers(dim, w=column(dim), residual=column(1), gradient=column(dim))
    shrink, rate = 1 - 2 * step_size * penalty, 2 * step_size
    layers = [
        Layer("x → its y-token", mov(r.x, r.x, y=1)),
        Layer("wᵀx", mul(r.w.T, r.x, r.residual)),
        Layer("wᵀx − y", aff(r.residual, (-1.0, r.y), add=True)),
        Layer("x(wᵀx − y)", mul(r.x, r.residual, r.gradient)),
        Layer(
            "w' = (1 − 2αλ)w − 2αx(wᵀx − y)", aff(r.w, (shrink, r.w), (-rate, r.gradient), only="y")
        ),
        Layer("w' → the next x-token", mov(r.w, r.w, x=1)),
        Layer("w'ᵀx", mul(r.w.T, r.x, r.prediction)),
    ]
    return ConstructedTransformer(
        Program(dim, num_examples, r, layers, {"w": start}), constants, dtype
    )


def sherman_morrison(
    dim: int,
    num_examples: int = 2,
    *,
    penalty: float,
    initial_weights: Sequence[float] | np.ndarray | None = None,
    constants: Constants | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConstructedTransformer:
    """Theorem 2: one update of A⁻¹ = I/λ to (A + x xᵀ)⁻¹, the ridge weights w', and w'ᵀx at the
    next x.

    The rows hold λA⁻¹, not A⁻¹: its entries stay at most 1 however small λ is, so products lose
    less. With u = λA⁻¹x, the update A⁻¹ - A⁻¹x xᵀA⁻¹/(1 + xᵀA⁻¹x), times λ, is λA⁻¹ - g uᵀ with the
    gain g = u/(λ + xᵀu). This gain is (A + x xᵀ)⁻¹x, so the ridge weights move by g(y - wᵀx): (A +
    x xᵀ)⁻¹y x for w = 0.

    The example is the latest one before the prediction, as in `gradient_step`. With an initial w
    the penalty is λ‖w' - w‖²: shrinkage towards w instead of 0.

    Args:
        dim: d.
        num_examples: n, the longest prompt.
        penalty: λ.
        initial_weights: w, length d; None: 0.
        constants: saturation, padding, GeLU scale and the gates' range; None: those chosen for the
            dtype.
        dtype: of the weights.

    Raises:
        ValueError: if a size is below 1, λ is not positive or w has another length.
    """
    check_real("penalty", penalty, positive=True)
    start = _initial(initial_weights, dim)
    r = _ridge_registers(dim)
    layers = [
        Layer("x → its y-token", mov(r.x, r.x, y=1)),
        Layer("u = λA⁻¹x", mul(r.inverse, r.x, r.direction)),
        Layer("xᵀu", mul(r.x.T, r.direction, r.denominator)),
        Layer(
            "λ + xᵀu; u = 0 in x-tokens",
            aff(r.denominator, bias=penalty, add=True),
            _clear_x(r.direction),
        ),
        Layer("g = u / (λ + xᵀu)", div(r.direction, r.denominator, r.gain)),
        Layer(
            "λ(A + x xᵀ)⁻¹ = λA⁻¹ − g uᵀ",
            mul(r.gain, r.direction.T, r.inverse, scale=-1.0, add=True),
        ),
        Layer("wᵀx", mul(r.w.T, r.x, r.residual)),
        Layer("y − wᵀx", aff(r.residual, (1.0, r.y), (-1.0, r.residual))),
        Layer("w' = w + g(y − wᵀx)", mul(r.gain, r.residual, r.w, add=True)),
        Layer("w' → the next x-token", mov(r.w, r.w, x=1)),
        Layer("w'ᵀx", mul(r.w.T, r.x, r.prediction)),
    ]
    initial = {"inverse": np.eye(dim), "w": start}
    return ConstructedTransformer(Program(dim, num_examples, r, layers, initial), constants, dtype)


def one_pass_sgd(
    dim: int,
    num_examples: int,
    *,
    step_size: float,
    penalty: float = 0.0,
    constants: Constants | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConstructedTransformer:
    """Theorem 1 repeated over all examples: stochastic gradient descent from 0, one example at a
    time.

    Args:
        dim: d.
        num_examples: n, the longest prompt; the depth is 2n.
        step_size: α.
        penalty: λ, the weight decay.
        constants: saturation, padding, GeLU scale and the gates' range; None: those chosen for the
            dtype.
        dtype: of the weights.

    Raises:
        ValueError: if a size is below 1, α is not positive or λ is negative.
    """
    check_real("step_size", step_size, positive=True)
    check_real("penalty", penalty)
    r = _registers(dim, example=column(dim), w=column(dim), residual=column(1))
    fetch = [Layer("x → its y-token alone", mov(r.x, r.example, y=1), _clear_x(r.example))]
    step = [
        Layer(
            "wᵀx − y",  # with the w of the example before
            mov(r.w, r.w, x=1, y=2),
            mul(r.w.T, r.example, r.residual),
            aff(r.residual, (-1.0, r.y), add=True),
        ),
        Layer(
            "w − 2α(x(wᵀx − y) + λw)",
            mul(r.example, r.residual, r.w, scale=-2 * step_size, add=True),
            aff(r.w, (-2 * step_size * penalty, r.w), add=True, only="y"),
        ),
    ]
    read = [Layer("wᵀx", mov(r.w, r.w, x=1), mul(r.w.T, r.x, r.prediction))]
    layers = fetch + (num_examples - 1) * step + read
    return ConstructedTransformer(Program(dim, num_examples, r, layers), constants, dtype)


def ridge(
    dim: int,
    num_examples: int,
    *,
    penalty: float,
    constants: Constants | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConstructedTransformer:
    """Theorem 2 repeated over all examples: exact ridge regression (XᵀX + λI)⁻¹Xᵀy at every prefix.

    Args:
        dim: d.
        num_examples: n, the longest prompt; the depth is 4n - 2.
        penalty: λ.
        constants: saturation, padding, GeLU scale and the gates' range; None: those chosen for the
            dtype.
        dtype: of the weights.

    Raises:
        ValueError: if a size is below 1 or λ is not positive.
    """
    check_real("penalty", penalty, positive=True)
    r = _ridge_registers(dim)
    fetch = [Layer("x → its y-token", mov(r.x, r.x, y=1))]
    state = _vector(r.inverse, r.w)
    update = [
        Layer(
            "u = λA⁻¹x, y − wᵀx",  # with the state of the example before
            mov(state, state, x=1, y=2),
            mul(r.inverse, r.x, r.direction),
            mul(r.w.T, r.x, r.residual, scale=-1.0),
            aff(r.residual, (1.0, r.y), add=True),
        ),
        Layer(
            "λ + xᵀu; u = 0 in x-tokens",
            mul(r.x.T, r.direction, r.denominator),
            aff(r.denominator, bias=penalty, add=True),
            _clear_x(r.direction),
        ),
        Layer("g = u / (λ + xᵀu)", div(r.direction, r.denominator, r.gain)),
        Layer(
            "λA⁻¹ − g uᵀ, w + g(y − wᵀx)",
            mul(r.gain, r.direction.T, r.inverse, scale=-1.0, add=True),
            mul(r.gain, r.residual, r.w, add=True),
        ),
    ]
    read = [Layer("wᵀx", mov(r.w, r.w, x=1), mul(r.w.T, r.x, r.prediction))]
    layers = fetch + (num_examples - 1) * update + read
    program = Program(dim, num_examples, r, layers, {"inverse": np.eye(dim)})
    return ConstructedTransformer(program, constants, dtype)


def gradient_descent(
    dim: int,
    num_examples: int,
    *,
    step_size: float,
    num_steps: int,
    penalty: float = 0.0,
    copies: int = 1,
    constants: Constants | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConstructedTransformer:
    """Batch gradient descent from 0: m steps w - 2α(XᵀXw - Xᵀy + λw), over all examples of each
    prefix.

    Attention averages x xᵀ and y x over the y-tokens seen; multiplied by their number k (the
    position vectors hold k/n, a number of ordinary size), these are XᵀX and Xᵀy, and every column
    descends on its own. The depth is m + 4, whatever the length of the prompt.

    Args:
        dim: d.
        num_examples: n, the longest prompt.
        step_size: α.
        num_steps: m.
        penalty: λ.
        copies: of w. Each descends on its own, and the prediction is the mean of theirs, so that
            who exchanges one copy alone moves a part of it.
        constants: saturation, padding, GeLU scale and the gates' range; None: those chosen for the
            dtype.
        dtype: of the weights.

    Raises:
        ValueError: if a size, m or the number of copies is below 1, α is not positive or λ is
            negative.
    """
    check_real("step_size", step_size, positive=True)
    check_real("penalty", penalty)
    check_integer("num_steps", num_steps, minimum=1)
    check_integer("copies", copies, minimum=1)
    check_integer("dim", dim, minimum=1)
    sums = {"gram": symmetric(dim), "moment": column(dim)}
    r = _registers(dim, w=column(copies * dim), fraction=column(1), **sums)
    sums_of_examples = _vector(r.gram, r.moment)
    kept = np.split(r.w, copies)
    moves = [
        (
            mul(r.gram, w, w, scale=-2 * step_size, add=True),
            aff(w, (2 * step_size, r.moment), (-2 * step_size * penalty, w), add=True),
        )
        for w in kept
    ]
    step = Layer("w − 2α(XᵀXw − Xᵀy + λw)", *(part for move in moves for part in move))
    read = [
        mul(w.T, r.x, r.prediction, scale=1 / copies, add=index > 0) for index, w in enumerate(kept)
    ]
    layers = [
        Layer("x → its y-token", mov(r.x, r.x, y=1)),
        Layer("x xᵀ, y x", mul(r.x, r.x.T, r.gram), mul(r.x, r.y, r.moment)),
        Layer(
            "XᵀX, Xᵀy",  # the mean over the examples seen, times n, times the fraction k/n seen
            average(sums_of_examples, sums_of_examples),
            mul(sums_of_examples, r.fraction, sums_of_examples, scale=float(num_examples)),
        ),
        *num_steps * [step],
        Layer("wᵀx", *read),
    ]
    seen = np.arange(1, 2 * num_examples) // 2  # y-tokens up to and including each token
    program = Program(
        dim, num_examples, r, layers, {"fraction": seen[:, None, None] / num_examples}
    )
    return ConstructedTransformer(program, constants, dtype)


def _registers(dim: int, **registers: Rows) -> Registers:
    """The rows every program has, and a program's own."""
    check_integer("dim", dim, minimum=1)
    return Registers(y=column(1), x=column(dim), **registers, prediction=column(1))


def _ridge_registers(dim: int) -> Registers:
    check_integer("dim", dim, minimum=1)
    return _registers(
        dim,
        inverse=symmetric(dim),
        w=column(dim),
        direction=column(dim),
        denominator=column(1),
        gain=column(dim),
        residual=column(1),
    )


def _clear_x(rows: Rows) -> Operation:
    """Write 0 in the x-tokens: products with these rows then change nothing there."""
    return aff(rows, (-1.0, rows), add=True, only="x")


def _vector(*registers: Rows) -> Rows:
    """The distinct rows of several registers as one column vector."""
    return np.unique(np.concatenate([rows.ravel() for rows in registers]))[:, None]


def _initial(weights: Sequence[float] | np.ndarray | None, dim: int) -> np.ndarray:
    check_integer("dim", dim, minimum=1)
    vector = np.zeros(dim) if weights is None else np.asarray(weights, dtype=float)
    if vector.shape != (dim,):
        raise ValueError(f"initial_weights must have length dim={dim}; got shape {vector.shape}")
    return vector[:, None]
