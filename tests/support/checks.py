"""The checks of shapes and types that `tests/conftest.py` puts into every function."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import beartype


def check_once_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `beartype.beartype`, which writes a function's checks in milliseconds, at its first call.

    Each process imports thousands of functions, and calls a small part of them.
    """
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype(function)
        return checked(*args, **kwargs)

    return check
