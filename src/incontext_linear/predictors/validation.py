"""Checks of predictors' parameters where they enter: what was given, and what is allowed."""

import math
from numbers import Integral, Real
from typing import Any

# What PEP 484 means by float, spelled out for run-time type checkers, which refuse an integer for a
# float.
Number = float | int


MAX_STEPS = 1_000_000
"""Iterations of one predictor: minutes for a few prompts. Beyond that a run would seem to hang."""


def check_real(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuse anything but a finite number that is ≥ 0, or > 0 if ``positive``.

    Raises:
        ValueError: naming the parameter, the value given and what is allowed.
    """
    is_real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_real or value < 0 or (positive and value == 0):
        bound = "> 0" if positive else "≥ 0"
        raise ValueError(f"{name}={value!r} is not allowed: {name} must be a finite number {bound}")


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Refuse anything but an integer that is at least ``minimum``.

    Raises:
        ValueError: naming the parameter, the value given and what is allowed.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name}={value!r} is not allowed: {name} must be an integer ≥ {minimum}")


def check_steps(value: Any) -> None:
    """Refuse anything but a number of iterations, from 0 to `MAX_STEPS`.

    Raises:
        ValueError: naming the value given and what is allowed.
    """
    check_integer("num_steps", value, minimum=0)
    if value > MAX_STEPS:
        raise ValueError(
            f"num_steps={value!r} is not allowed: num_steps must be at most {MAX_STEPS:,}"
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of the choices.

    Raises:
        ValueError: naming the parameter, the value given and what is allowed.
    """
    if value not in choices:
        raise ValueError(
            f"{name}={value!r} is not allowed: {name} must be one of "
            f"{', '.join(map(repr, choices))}"
        )
