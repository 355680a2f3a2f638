"""Names for the rows of the hidden matrix, so that a program reads like the proof and not like
indices.

A register is an array of row numbers, shaped like the matrix that those rows hold: ``rows.x`` is
(d, 1), ``rows.x.T`` is the same rows read as xᵀ, and a symmetric register lists each row below the
diagonal twice.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

Rows = Int[np.ndarray, "_ _"]


def column(size: int) -> Rows:
    """A register that holds a column vector: row numbers (size, 1), counted from 0."""
    return np.arange(size)[:, None]


def symmetric(size: int) -> Rows:
    """A register that holds a symmetric matrix in size·(size+1)/2 rows: row numbers (size,
    size).
    """
    rows = np.zeros((size, size), dtype=int)
    upper = np.triu_indices(size)
    rows[upper] = np.arange(len(upper[0]))
    return np.maximum(rows, rows.T)


class Registers:
    """The layout of a program's hidden matrix: the reserved rows first, then the program's own.

    Reserved are ``zero`` and ``ground`` (always 0), ``is_x`` and ``is_y`` (what kind of token the
    column is), ``position_x`` and ``position_y`` (cos θ_t, sin θ_t, in x-tokens and in y-tokens),
    ``padding`` (+N, -N) and ``divisor`` (scratch of `div`).

    Args:
        registers: each register's shape, as made by `column` and `symmetric`.

    Raises:
        ValueError: if a name is reserved.
    """

    RESERVED = {  # noqa: RUF012  (never changed)
        "ground": column(1),
        "is_x": column(1),
        "is_y": column(1),
        "zero": column(1),
        "position_x": column(2),
        "position_y": column(2),
        "padding": column(2),
        "divisor": column(2),
    }

    ground: Rows
    is_x: Rows
    is_y: Rows
    zero: Rows
    position_x: Rows
    position_y: Rows
    padding: Rows
    divisor: Rows

    def __init__(self, **registers: Rows):
        taken = sorted(registers.keys() & self.RESERVED.keys())
        if taken:
            raise ValueError(f"these register names are reserved: {', '.join(taken)}")
        self._rows: dict[str, Rows] = {}
        self.size = 0
        for name, local in {**self.RESERVED, **registers}.items():
            self._rows[name] = local + self.size
            self.size += int(local.max()) + 1

    def __getattr__(self, name: str) -> Rows:
        try:
            return self.__dict__["_rows"][name]
        except KeyError:
            raise AttributeError(f"no register is called {name!r}") from None

    def items(self) -> Iterator[tuple[str, Rows]]:
        """Every register's name and rows, the reserved ones first."""
        yield from self._rows.items()

    def labels(self) -> Iterator[tuple[str, int]]:
        """A label and the row number of every row: "w[2]" is the second row of ``w``."""
        for name, rows in self._rows.items():
            numbers = np.unique(rows)
            for place, row in enumerate(numbers, start=1):
                yield (name if len(numbers) == 1 else f"{name}[{place}]"), int(row)
