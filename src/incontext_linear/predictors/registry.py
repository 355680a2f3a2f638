"""From the parameters to predictors: ``baselines: {ridge_0.1: {type: Ridge, penalty: 0.1}, …}``.

A type is a name of this package, or the dotted path of your own class,
``my_package.my_module.MyPredictor``.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict

from incontext_linear.config import Config, TaskConfig, import_dotted
from incontext_linear.predictors.averaging import Averaging
from incontext_linear.predictors.base import Predictor
from incontext_linear.predictors.bayes import BayesPosteriorMean, DiscreteMMSE
from incontext_linear.predictors.decaying_sgd import DecayingSGD
from incontext_linear.predictors.gradient import GradientDescent, OnePassSGD
from incontext_linear.predictors.iterative import (
    Chebyshev,
    ConjugateGradients,
    HeavyBall,
    PreconditionedGradientDescent,
    Richardson,
)
from incontext_linear.predictors.least_squares import FirstExamples, OrdinaryLeastSquares, Ridge
from incontext_linear.predictors.neighbors import NearestNeighbors
from incontext_linear.predictors.newton import IterativeNewton
from incontext_linear.predictors.optimal_step import OptimalStep
from incontext_linear.tasks import task_pool

PREDICTORS: dict[str, type] = {
    predictor.__name__: predictor
    for predictor in (
        OrdinaryLeastSquares,
        Ridge,
        FirstExamples,
        BayesPosteriorMean,
        GradientDescent,
        HeavyBall,
        Richardson,
        Chebyshev,
        ConjugateGradients,
        PreconditionedGradientDescent,
        OnePassSGD,
        DecayingSGD,
        NearestNeighbors,
        IterativeNewton,
        Averaging,
        DiscreteMMSE,
        OptimalStep,
    )
}

# Arguments that a task knows: a type that requires one of these, and is not given it, gets the
# task's.
FROM_TASK: dict[str, Callable[[TaskConfig], Any]] = {
    "noise_std": lambda task: task.noise_std,
    "prior_std": lambda task: task.prior_std,
    "task_pool": task_pool,
    "task": lambda task: task,
}


class Baselines(Config):
    """The parameters' baselines: name → type and arguments; None takes away one that another file
    lists.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any] | None]

    @property
    def active(self) -> dict[str, dict[str, Any]]:
        """Those that were not taken away, in their order."""
        return {name: spec for name, spec in self.model_extra.items() if spec is not None}

    def build(self, task: TaskConfig) -> dict[str, Predictor]:
        """Name → predictor, as `build_predictors`."""
        return build_predictors(self.active, task)


def build_predictors(
    baselines: Mapping[str, Mapping[str, Any]], task: TaskConfig
) -> dict[str, Predictor]:
    """Build every predictor that the parameters list.

    Args:
        baselines: name → ``{"type": …, argument: value, …}``.
        task: where arguments come from that a type requires and the parameters leave out:
            ``noise_std``, ``prior_std``, ``task_pool`` and ``task`` itself.

    Returns:
        Name → predictor, in the order given.

    Raises:
        ValueError: as `build_predictor`.
    """
    return {name: build_predictor(name, spec, task) for name, spec in baselines.items()}


def build_predictor(name: str, spec: Mapping[str, Any], task: TaskConfig) -> Predictor:
    """Build one predictor from its entry in the parameters.

    Args:
        name: what the parameters call it; errors begin with it.
        spec: ``{"type": …, argument: value, …}``.
        task: as for `build_predictors`.

    Raises:
        ValueError: on an unknown type or argument, listing those that exist; on a missing argument;
            on a value that is not allowed, naming the argument, the value and what is allowed.
    """
    try:
        if not isinstance(spec, Mapping) or "type" not in spec:
            raise ValueError(
                f"{spec!r} names no type, as {{type: Ridge, penalty: 0.1}} does; {_available()}"
            )
        arguments = dict(spec)
        kind = _find(arguments.pop("type"))
        return kind(**_complete(kind, arguments, task))
    except (TypeError, ValueError) as error:  # TypeError: of someone's own constructor
        raise ValueError(f"baseline {name!r}: {error}") from error


def _find(kind: Any) -> type[Predictor]:
    """The class that a type names. Nothing but a predictor's class is ever called."""
    kind = str(kind)
    if kind in PREDICTORS:
        return PREDICTORS[kind]
    if "." not in kind:
        raise ValueError(f"unknown type {kind!r}; {_available()}")
    try:
        found = import_dotted(kind)
    except ValueError as error:
        raise ValueError(f"cannot import the type {kind!r} ({error}); {_available()}") from error
    if not (isinstance(found, type) and issubclass(found, Predictor)):
        raise ValueError(
            f"{kind!r} is no predictor: allowed is a class whose instances can be called with "
            "(xs, ys)"
        )
    return found


def _complete(
    kind: Callable[..., Predictor], arguments: dict[str, Any], task: TaskConfig
) -> dict[str, Any]:
    """Check the arguments' names; add what the task knows."""
    parameters = inspect.signature(kind).parameters
    named = {
        name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any_name else [repr(name) for name in arguments if name not in named]
    absent = [name for name, p in named.items() if p.default is p.empty and name not in arguments]
    missing = [repr(name) for name in absent if name not in FROM_TASK]
    for problem, names in (("unknown", unknown), ("missing", missing)):
        if names:
            raise ValueError(
                f"{problem} argument {', '.join(names)}; what exists is {_signature(kind)}"
            )
    return {**{name: FROM_TASK[name](task) for name in absent}, **arguments}


def _signature(kind: Callable[..., Predictor]) -> str:
    """A type with its arguments: ``Ridge(penalty)``, ``OnePassSGD(step_size, penalty=0.0)``."""
    parameters = inspect.signature(kind).parameters.values()
    shown = (str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)
    return f"{kind.__name__}({', '.join(shown)})"


def _available() -> str:
    known = ", ".join(map(_signature, PREDICTORS.values()))
    return (
        f"types that exist are {known}, and dotted paths such as my_package.my_module.MyPredictor"
    )
