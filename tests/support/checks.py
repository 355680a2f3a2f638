"""The checks of shapes and types that `tests/conftest.py` puts into every function."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Self

from beartype import beartype


def check_once_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `beartype.beartype`, which writes a function's checks in milliseconds, at its first call.

    Each process imports thousands of functions, and calls a small part of them.
    """
    checked: Callable[..., Any] | None = None
    # Which class it is a function alone does not know.
    hints = {name: hint for name, hint in function.__annotations__.items() if hint is not Self}
    function.__annotations__ = hints

    @wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype(function)
        return checked(*args, **kwargs)

    return check
