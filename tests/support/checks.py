"""The checks of shapes and types that `tests/conftest.py` puts into every function."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from types import FunctionType, SimpleNamespace
from typing import Any, Self, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped


def checked(target: Callable[..., Any]) -> Any:
    """A function, or a data class, that refuses arguments and values its hints forbid.

    As ``jaxtyping.jaxtyped(typechecker=beartype)``, in a part of its time. That binds the arguments
    of every call to the signature, checks them twice, and writes both checks where the function is
    defined. Here they are written at the first call, since each process imports thousands of
    functions and calls a small part; names of axes are remembered only where hints have any.
    """
    if not inspect.isclass(target):
        return _checked_function(target)
    if dataclasses.is_dataclass(target) and not hasattr(target.__init__, "__wrapped__"):
        target.__init__ = _checked_function(target.__init__)
    return target


def _checked_function(function: Callable[..., Any]) -> Any:
    if not function.__annotations__:
        return function
    call: Callable[..., Any] | None = None
    names_axes = True

    @wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal call, names_axes
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if call is None:
            hints = _hints(function)
            names_axes = not all(map(_is_plain, hints.values()))
            call = _with_checks(function, hints)
        if names_axes:
            with _jaxtyped("context"):  # in which a name means one size
                return call(*args, **kwargs)
        return call(*args, **kwargs)

    return check


def _with_checks(function: Callable[..., Any], hints: dict[str, Any]) -> Callable[..., Any]:
    own = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__, own.__annotations__ = function.__kwdefaults__, hints
    own.__qualname__, own.__module__ = function.__qualname__, function.__module__
    # The arguments of a generator are checked where it is made, not at its first value.
    if inspect.isgeneratorfunction(function):
        return _jaxtyped(own, typechecker=_beartype)
    return _beartype(own)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The hints that say something to a function alone: which class `Self` is it does not know."""
    found = {}
    for name, hint in function.__annotations__.items():
        holder: Any = SimpleNamespace(__annotations__={name: hint})
        try:
            found |= get_type_hints(holder, function.__globals__, include_extras=True)
        except (NameError, AttributeError):  # imported for the type checker alone
            continue
    return {name: hint for name, hint in found.items() if hint is not Self}


def _is_plain(hint: object) -> bool:
    """Whether a hint surely names no axis of an array."""
    if parts := get_args(hint):
        return all(map(_is_plain, parts))
    return inspect.isclass(hint) and not issubclass(hint, jaxtyping.AbstractArray)
