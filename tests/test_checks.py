"""The tests' own checks of shapes: a call that a signature forbids does not pass unseen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from support.checks import checked
from torch import Tensor

from incontext_linear.comparison.divergence import squared_prediction_difference
from incontext_linear.predictors.base import Predictor

ROW, OTHER = torch.zeros(3), torch.zeros(4)


@checked
def first_of(row: Float[Tensor, " n"], like: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return row[: len(like)] if len(like) < 3 else OTHER


@checked
def values(row: Float[Tensor, " n"], like: Float[Tensor, " n"]) -> Iterator[Tensor]:
    yield row + like


@checked
def name_of(count: int, kind: Literal["a", "b"] = "a", *, folder: "str | None" = None) -> str:
    answer: Any = count
    return f"{kind}{count}" if folder is None else answer


@checked
@dataclass(frozen=True)
class Pair:
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]
    name: str = ""


@checked
@dataclass(frozen=True)
class NamedPair(Pair):
    number: int = 0


def test_arguments_of_shapes_that_the_signature_forbids_are_refused_at_every_call():
    first = torch.zeros(2, 3)
    assert squared_prediction_difference(first, first).shape == (2, 3)
    for _ in range(2):  # the first call writes the checks
        with pytest.raises(TypeCheckError, match="squared_prediction_difference"):
            squared_prediction_difference(first, torch.zeros(2, 1))  # would be broadcast


def test_every_function_of_the_library_has_them():
    assert Predictor.__call__.__wrapped__.__qualname__ == "Predictor.__call__"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (first_of, (ROW, ROW)),  # what it returns
        (first_of, (ROW, OTHER)),
        (first_of, (ROW.long(), ROW.long())),
        (values, (ROW, OTHER)),  # before its first value
        (name_of, ("1",)),
        (name_of, (1, "c")),
        (Pair, (ROW, OTHER)),
        (Pair, (ROW, ROW, 1)),
        (NamedPair, (ROW, OTHER)),
        (NamedPair, (ROW, ROW, "", "1")),
    ],
)
def test_what_hints_forbid_is_refused(function, arguments):
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            function(*arguments)


def test_hints_in_quotes_and_of_keywords_are_checked():
    assert name_of(1, "b") == "b1"
    for folder in (1, "here"):  # the argument; then what comes back
        with pytest.raises(TypeCheckError):
            name_of(1, folder=folder)


def test_a_name_means_one_size_in_a_call_and_another_in_the_next():
    for row in (torch.zeros(1), torch.zeros(2)):
        assert len(first_of(row, row)) == len(row)
        assert len(next(values(row, row))) == len(Pair(row, row).left) == len(row)


def test_a_test_of_the_librarys_own_refusals_switches_them_off(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert name_of("1") == "a1"
    assert Pair(ROW, OTHER).right is OTHER
