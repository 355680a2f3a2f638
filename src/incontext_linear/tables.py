"""Between tensors, tidy tables (one row a predictor, prompt and prefix) and histories of
metrics.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

LEARNER = "transformer"
"""What tables, figures and metrics call the learner."""

Predictions = Mapping[str, Tensor]
"""Predictions (B, n) by predictor."""

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ROWS = 2**20  # of a tidy table in memory at once
_ORDERED = {b"incontext_linear.rows": b"of a row group: all examples of all its prompts, in order"}

MetricHistory = list[dict[str, int | float]]
"""A metric's points, ``[{"step": 0, "value": 0.5}, …]``."""
MetricHistories = dict[str, MetricHistory]
"""By the metric's name."""


def scientific(value: float, decimals: int) -> str:
    """``−3.0·10⁻⁵``: a number for a reader, where ``-3.0e-05`` is one for a program."""
    digits, power = f"{value:.{decimals}e}".split("e")
    return f"{digits.replace('-', '−')}·10{str(int(power)).translate(_RAISED)}"


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, `DataFrame.itertuples`; the types of their fields are not known."""
    return iter(table.itertuples(index=False))


def tidy_predictions(
    predictor: str, predictions: Float[Tensor, "batch example"], first_prompt: int = 0
) -> pd.DataFrame:
    """Lay predictions (B, n) out as rows: predictor, prompt, examples_seen, prediction.

    Prompts are numbered from ``first_prompt``.
    """
    columns = _columns(predictions, first_prompt)
    names = pd.Series(predictor, index=range(predictions.numel()), dtype="string")
    return pd.DataFrame({"predictor": names, **columns})


def _columns(
    predictions: Float[Tensor, "batch example"], first_prompt: int
) -> dict[str, np.ndarray]:
    num_prompts, num_examples = predictions.shape
    return {
        "prompt": np.repeat(first_prompt + np.arange(num_prompts), num_examples),
        "examples_seen": np.tile(np.arange(num_examples), num_prompts),
        "prediction": predictions.detach().double().cpu().numpy().ravel(),
    }


def predictions_by_name(table: pd.DataFrame) -> dict[str, Float[Tensor, "batch example"]]:
    """The inverse of `tidy_predictions`, for a table of several predictors."""
    return {
        str(name): torch.from_numpy(
            rows.pivot(index="prompt", columns="examples_seen", values="prediction").to_numpy(
                copy=True
            )
        )
        for name, rows in table.groupby("predictor", sort=False)
    }


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the tidy table of all predictors as Parquet, no more than a piece of it in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Types, and what pandas notes of them, as if the whole table were a frame.
    schema = pa.Schema.from_pandas(tidy_predictions("", torch.zeros(1, 1)), preserve_index=False)
    schema = schema.with_metadata({**schema.metadata, **_ORDERED})
    encoding: Any = ["predictor"]  # PyArrow's annotation knows but a bool
    counted = dict.fromkeys(("prompt", "examples_seen"), "DELTA_BINARY_PACKED")
    options: dict[str, Any] = {"use_dictionary": encoding, "column_encoding": counted}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for name, values in predictions.items():
            size = max(1, _ROWS // max(1, values.shape[1]))
            for start in range(0, len(values), size):
                columns = _columns(values[start : start + size], start)
                count = len(columns["prediction"])
                names = pa.repeat(pa.scalar(name, schema.field("predictor").type), count)
                writer.write_table(pa.table({"predictor": names, **columns}, schema), count)


def names_in_order(path: Path) -> list[str] | None:
    """The predictors of what `write_predictions` wrote; None of a table that was written whole, in
    which to look for one predictor is to read all.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if not _is_ordered(file):
            return None
        groups = range(file.num_row_groups)
        return list(dict.fromkeys(_statistics(file, group, "predictor").min for group in groups))


def read_predictions(
    path: Path, only: str | None = None
) -> dict[str, Float[Tensor, "batch example"]]:
    """What `write_predictions` wrote, float64, row group after row group.

    A tidy table of predictions that was written whole is read as well, whatever its order; a
    prediction that it lacks is NaN.

    Args:
        path: the file.
        only: a predictor whose row groups alone are read, of a file whose `names_in_order` it is
            among.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, read_dictionary=["predictor"]) as file:
        shape = tuple(_largest(file, column) + 1 for column in ("prompt", "examples_seen"))
        return _read_ordered(file, shape, only) if _is_ordered(file) else _read_any(file, shape)


def _is_ordered(file: Any) -> bool:
    return _ORDERED.items() <= (file.schema_arrow.metadata or {}).items()


def _read_ordered(file: Any, shape: tuple[int, ...], only: str | None) -> dict[str, Tensor]:
    """Row groups of one predictor each, whose prompts their statistics tell."""
    found: dict[str, Tensor] = {}
    for group in range(file.num_row_groups):
        name, first = (_statistics(file, group, column).min for column in ("predictor", "prompt"))
        if only not in (None, name):
            continue
        values = torch.tensor(file.read_row_group(group, ["prediction"]).column(0).to_numpy())
        values = values.view(-1, shape[1])
        if name not in found:
            found[name] = torch.full(shape, math.nan, dtype=torch.float64)
        found[name][first : first + len(values)] = values
    return found


def _read_any(file: Any, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Rows in any order."""
    names = ["predictor", "prompt", "examples_seen", "prediction"]
    found: dict[str, Tensor] = {}
    for batch in file.iter_batches(_ROWS, columns=names):
        predictors, *columns = (batch.column(name) for name in names)
        prompt, seen, values = (
            torch.tensor(column.to_numpy(zero_copy_only=False)) for column in columns
        )
        codes = torch.tensor(predictors.indices.to_numpy())
        present = codes.unique().tolist()
        for code in present:
            name = predictors.dictionary[code].as_py()
            rows = codes == code if len(present) > 1 else slice(None)
            if name not in found:
                found[name] = torch.full(shape, math.nan, dtype=torch.float64)
            found[name][prompt[rows], seen[rows]] = values[rows]
    return found


def _largest(file: Any, column: str) -> int:
    """The largest value of an integer column, as a Parquet file's own statistics have it."""
    return max(_statistics(file, group, column).max for group in range(file.num_row_groups))


def _statistics(file: Any, group: int, column: str) -> Any:
    place = file.schema_arrow.get_field_index(column)
    return file.metadata.row_group(group).column(place).statistics


def metric_history(steps: Iterable[int], values: Iterable[int | float]) -> MetricHistory:
    """Pair steps with values; values that are not finite are left out."""
    pairs = zip(steps, values, strict=True)
    return [
        {"step": int(step), "value": float(value)} for step, value in pairs if math.isfinite(value)
    ]


def metric_histories(
    table: pd.DataFrame, prefix: str, keys: Sequence[str], step: str, value: str
) -> MetricHistories:
    """A history for each group of rows: ``probe.mlp_64.moment.k11`` against the layer.

    Args:
        table: tidy, a row a point.
        prefix: what all names begin with.
        keys: columns whose values name a group, joined by dots. ``examples_seen`` is written
            ``k11``, and ``hidden_units`` behind the kind that it is of.
        step: the column that the points' steps come from.
        value: the column of their values.
    """
    histories = {}
    for group, rows in table.groupby(list(keys), sort=False):
        parts = dict(zip(keys, group, strict=True))
        units = parts.pop("hidden_units", 0)
        if units:
            parts["kind"] = f"{parts['kind']}_{units}"
        if "examples_seen" in parts:
            parts["examples_seen"] = f"k{parts['examples_seen']}"
        name = ".".join([prefix, *map(str, parts.values())])
        histories[name] = metric_history(rows[step], rows[value])
    return histories
