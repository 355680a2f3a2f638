"""What a dotted path in the parameters names, ``my_package.my_module.MyPredictor``.

To import is to run code: configuration is as trusted as code, and a path in it must lead to
something of the interface before anything there is called.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any


def import_dotted(path: str) -> Any:
    """What the path names.

    Raises:
        ValueError: if the module cannot be imported, for whatever reason (it may raise, or end the
            process by ``sys.exit``), or lacks the name.
    """
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ValueError(f"{path!r} is no dotted path")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise ValueError(f"importing it raised {reason}") from error


def takes_prompts(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with (xs, ys)."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of C code, which does not say what it takes
        return True
    return True
