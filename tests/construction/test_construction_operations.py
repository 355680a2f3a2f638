"""Each operation, as one layer of a real `Transformer`: what it writes, and that it writes nothing
else.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from incontext_linear.construction import (
    ConstructedTransformer,
    Layer,
    Program,
    Registers,
    aff,
    average,
    column,
    div,
    mov,
    mul,
    symmetric,
)
from incontext_linear.construction.config import FLOAT32, FLOAT64
from incontext_linear.learner.transformer import Block

NUM_EXAMPLES = 4
NUM_TOKENS = 2 * NUM_EXAMPLES - 1

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 5)


def matrix(rows, columns):
    return np.arange(rows * columns).reshape(rows, columns)


def registers(**shapes):
    return Registers(y=column(1), x=column(1), prediction=column(1), **shapes)


def apply(rows, seed, *operations, positive=()):
    """The hidden matrix (token, row) before and after one layer, own rows filled at random."""
    program = Program(1, NUM_EXAMPLES, rows, [Layer("tested", *operations)])
    model = ConstructedTransformer(program)
    rng = torch.Generator().manual_seed(seed)
    hidden = model.positions.detach().clone()
    own = np.unique(
        np.concatenate([part.ravel() for name, part in rows.items() if name not in rows.RESERVED])
    )
    hidden[:, own] = torch.randn(NUM_TOKENS, len(own), dtype=torch.float64, generator=rng)
    for register in positive:
        hidden[:, register.ravel()] = hidden[:, register.ravel()].abs() + 0.5
    with torch.inference_mode():
        after = model.blocks[0](hidden[None])[0]
    assert type(model.blocks[0]) is Block
    return hidden.numpy(), after.numpy()


def read(hidden, register):
    """The contents of a register in every column: (token, *register's shape)."""
    return hidden[:, register]


def assert_only_changed(before, after, *registers, tokens=slice(None), tolerance=1e-12):
    changed = np.zeros(before.shape, dtype=bool)
    for register in registers:
        changed[tokens, np.unique(register)[:, None]] = True
    assert np.abs(np.where(changed, 0.0, after - before)).max() <= tolerance


def source_tokens(x, y):
    tokens = np.arange(NUM_TOKENS)
    return np.maximum(tokens - np.where(tokens % 2 == 0, x, y), 0)


@given(seeds, sizes, st.integers(0, 2), st.integers(0, 2))
def test_mov_copies_from_the_column_so_many_tokens_back_and_nothing_else(seed, size, x, y):
    rows = registers(a=column(size), b=column(size))
    before, after = apply(rows, seed, mov(rows.a, rows.b, x=x, y=y))
    np.testing.assert_allclose(
        read(after, rows.b), read(before, rows.a)[source_tokens(x, y)], atol=1e-12
    )
    assert_only_changed(before, after, rows.b)


def test_mov_of_a_register_onto_itself_leaves_columns_that_look_at_themselves_alone():
    rows = registers(a=column(3))
    before, after = apply(rows, 0, mov(rows.a, rows.a, y=1))
    assert_only_changed(before, after, rows.a, tokens=slice(1, None, 2))
    np.testing.assert_allclose(after[1::2][:, rows.a], before[0:-1:2][:, rows.a], atol=1e-12)


@given(seeds, sizes)
def test_average_is_the_mean_over_the_y_tokens_seen(seed, size):
    rows = registers(a=column(size), b=column(size))
    before, after = apply(rows, seed, average(rows.a, rows.b))
    content = read(before, rows.a)
    for token in range(NUM_TOKENS):
        seen = content[1 : token + 1 : 2] if token else content[:1]
        np.testing.assert_allclose(read(after, rows.b)[token], seen.mean(0), atol=1e-12)
    assert_only_changed(before, after, rows.b)


@given(seeds, sizes, sizes, sizes, st.booleans())
def test_mul_is_the_matrix_product_and_changes_nothing_else(seed, left, inner, right, add):
    rows = registers(a=matrix(left, inner), b=matrix(inner, right), c=matrix(left, right))
    before, after = apply(rows, seed, mul(rows.a, rows.b, rows.c, scale=-0.7, add=add))
    expected = -0.7 * read(before, rows.a) @ read(before, rows.b) + add * read(before, rows.c)
    np.testing.assert_allclose(read(after, rows.c), expected, atol=2e-8)
    assert_only_changed(before, after, rows.c)


def test_mul_can_overwrite_what_it_reads():
    rows = registers(a=column(3), b=column(1))
    before, after = apply(rows, 1, mul(rows.a, rows.b, rows.a))
    np.testing.assert_allclose(
        read(after, rows.a), read(before, rows.a) * read(before, rows.b), atol=1e-8
    )
    assert_only_changed(before, after, rows.a)


@given(seeds, sizes)
def test_mul_reads_and_writes_a_symmetric_matrix_in_half_the_rows(seed, size):
    rows = registers(a=symmetric(size), b=column(size), c=symmetric(size))
    assert len(np.unique(rows.a)) == size * (size + 1) // 2
    before, after = apply(rows, seed, mul(rows.b, rows.b.T, rows.c))
    vector = read(before, rows.b)
    np.testing.assert_allclose(read(after, rows.c), vector @ vector.swapaxes(1, 2), atol=1e-8)
    before, after = apply(rows, seed, mul(rows.a, rows.b, rows.b))
    np.testing.assert_allclose(read(after, rows.b), read(before, rows.a) @ vector, atol=1e-8)


@given(seeds, sizes, sizes, st.booleans(), st.sampled_from([None, "x", "y"]))
def test_aff_is_an_affine_map_up_to_rounding_and_changes_nothing_else(seed, size, inner, add, only):
    weight = np.random.default_rng(seed).normal(size=(size, inner))
    rows = registers(a=column(inner), b=column(size), c=column(size))
    operation = aff(rows.c, (weight, rows.a), (-2.0, rows.b), bias=0.3, add=add, only=only)
    before, after = apply(rows, seed, operation)
    expected = (
        weight @ read(before, rows.a) - 2 * read(before, rows.b) + 0.3 + add * read(before, rows.c)
    )
    acting = {None: slice(None), "x": slice(0, None, 2), "y": slice(1, None, 2)}[only]
    np.testing.assert_allclose(read(after, rows.c)[acting], expected[acting], atol=1e-11)
    assert_only_changed(before, after, rows.c, tokens=acting)


@pytest.mark.parametrize("constants", [FLOAT64, FLOAT32], ids=["float64", "float32"])
@pytest.mark.parametrize(("share", "silent"), [(0.9, True), (2.5, False)])
def test_a_closed_gate_holds_back_numbers_up_to_its_range_and_no_larger_ones(
    constants, share, silent
):
    rows = registers(a=column(1), b=column(1))
    layer = Layer("tested", aff(rows.b, (1.0, rows.a), add=True, only="y"))
    # A padding that the tested size does not disturb: the gate alone is asked about.
    wide = constants.model_copy(update={"padding": 1e14})
    model = ConstructedTransformer(Program(1, NUM_EXAMPLES, rows, [layer]), wide)
    hidden = model.positions.detach().clone()
    hidden[:, rows.a.item()] = share * constants.gate_range
    with torch.inference_mode():
        written = model.blocks[0](hidden[None])[0, :, rows.b.item()]
    np.testing.assert_allclose(written[1::2], share * constants.gate_range, rtol=1e-6)
    assert bool((written[::2].abs() < 1e-6).all()) is silent


@given(seeds, sizes)
def test_div_divides_and_changes_nothing_but_its_scratch_rows(seed, size):
    rows = registers(a=column(size), b=column(1), c=column(size))
    before, after = apply(rows, seed, div(rows.a, rows.b, rows.c), positive=[rows.b])
    quotient = read(before, rows.a) / read(before, rows.b)
    np.testing.assert_allclose(read(after, rows.c), quotient, rtol=1e-9, atol=1e-10)
    assert_only_changed(before, after, rows.c, rows.divisor)


def test_div_can_be_repeated_because_it_renews_its_scratch_rows():
    rows = registers(a=column(2), b=column(1), c=column(2))
    division = Layer("a / b", div(rows.a, rows.b, rows.c))
    halving = Layer("b / 2", aff(rows.b, (0.5, rows.b)))
    model = ConstructedTransformer(Program(1, 1, rows, [division, halving, division]))
    hidden = model.positions.detach().clone()
    hidden[:, rows.a.ravel()], hidden[:, rows.b.ravel()] = 3.0, 4.0
    with torch.inference_mode():
        for block in model.blocks:
            hidden = block(hidden[None])[0]
    np.testing.assert_allclose(hidden[:, rows.c.ravel()], 1.5, rtol=1e-9)


def test_operations_of_one_layer_read_the_same_input():
    rows = registers(a=column(2), b=column(2), c=column(1))
    before, after = apply(rows, 3, mul(rows.a.T, rows.b, rows.c), aff(rows.a, (1.0, rows.b)))
    inner = read(before, rows.a.T) @ read(before, rows.b)
    np.testing.assert_allclose(read(after, rows.c), inner, atol=1e-8)
    np.testing.assert_allclose(read(after, rows.a), read(before, rows.b), atol=1e-11)


def test_the_mlp_of_a_layer_reads_what_its_attention_wrote():
    rows = registers(a=column(2), b=column(2))
    before, after = apply(rows, 4, mov(rows.a, rows.b, x=1, y=1), aff(rows.b, (3.0, rows.b)))
    np.testing.assert_allclose(
        read(after, rows.b), 3 * read(before, rows.a)[source_tokens(1, 1)], atol=1e-11
    )


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: mov(column(2), column(3)), "mov cannot write"),
        (lambda: mov(column(2), column(2), x=-1), "earlier columns only"),
        (lambda: average(column(2), column(3)), "average cannot write"),
        (lambda: mul(column(2), column(2), column(2)), "mul cannot write"),
        (lambda: aff(column(2), (1.0, column(3))), "aff cannot map"),
        (lambda: aff(column(2), (np.ones((3, 2)), column(2))), "aff cannot map"),
        (lambda: div(column(2), column(2) + 2, column(2) + 4), "div cannot write"),
        (lambda: div(column(2), column(1) + 2, column(2)), "rows that it reads"),
        (lambda: Layer("nothing"), "at least one operation"),
        (
            lambda: Layer(
                "two", div(column(1), column(1) + 1, column(1) + 2), aff(column(1) + 3, bias=1.0)
            ),
            "to itself",
        ),
        (lambda: Registers(zero=column(1)), "reserved: zero"),
        (lambda: registers().weights, "no register is called 'weights'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(operation, message):
    with pytest.raises((ValueError, AttributeError), match=message):
        operation()


def test_a_layer_cannot_look_in_more_ways_than_there_are_heads():
    rows = registers(a=column(1), b=column(1), c=column(1))
    layer = Layer("two movs", mov(rows.a, rows.b, x=1), mov(rows.a, rows.c, x=2))
    with pytest.raises(ValueError, match="looks in 3 ways"):
        ConstructedTransformer(Program(1, 2, rows, [layer]))
