"""What the probes look for: quantities of the first k examples, and a user's own.

A target is any function ``target(xs, ys) -> values`` of the examples seen, xs (B, k, d) and ys (B,
k), that gives one vector a prompt, (B, D). The parameters name it by one of the names below, or by
the dotted path of a function, ``my_package.my_module.my_target``.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import MeasurementError, import_dotted, takes_prompts
from incontext_linear.tasks import Xs, Ys

Target = Callable[[Tensor, Tensor], Tensor]


def moment(xs: Xs, ys: Ys) -> Float[Tensor, "batch dim"]:
    """Xᵀy of the examples, the vector that one step of gradient descent needs."""
    return (xs.mT @ ys.unsqueeze(-1)).squeeze(-1)


def least_squares(xs: Xs, ys: Ys) -> Float[Tensor, "batch dim"]:
    """Minimum-norm least-squares weights of the examples, computed in float64."""
    return (torch.linalg.pinv(xs.double()) @ ys.double().unsqueeze(-1)).squeeze(-1).to(ys.dtype)


def gram(xs: Xs, ys: Ys) -> Float[Tensor, "batch pair"]:
    """XᵀX of the examples, its upper triangle row by row: d(d+1)/2 numbers."""
    rows, columns = torch.triu_indices(xs.shape[-1], xs.shape[-1])
    return (xs.mT @ xs)[:, rows, columns]


def ridge(penalty: float) -> Target:
    """The function that gives the ridge weights (XᵀX + λI)⁻¹Xᵀy, computed in float64."""

    def ridge_weights(xs: Xs, ys: Ys) -> Float[Tensor, "batch dim"]:
        wide = xs.double()
        penalised = wide.mT @ wide + penalty * torch.eye(
            xs.shape[-1], dtype=wide.dtype, device=xs.device
        )
        return torch.linalg.solve(penalised, moment(wide, ys.double())).to(ys.dtype)

    return ridge_weights


def build_targets(names: Iterable[str], ridge_penalty: float) -> dict[str, Target]:
    """The targets that the parameters name, in their order.

    Raises:
        ValueError: if a dotted path leads to nothing that can be called.
    """
    known = {
        "moment": moment,
        "least_squares": least_squares,
        "ridge": ridge(ridge_penalty),
        "gram": gram,
    }
    return {name: known[name] if name in known else _imported(name) for name in names}


def _imported(path: str) -> Target:
    try:
        target = import_dotted(path)
    except ValueError as error:
        raise ValueError(
            f"cannot import the target {path!r} ({error}); allowed: the path of a function"
        ) from error
    if isinstance(target, type) or not callable(target) or not takes_prompts(target):
        raise ValueError(
            f"{path!r} is no target; allowed: a function of (xs, ys) that gives (B, D)"
        )
    return target


def target_values(
    name: str,
    target: Target,
    xs: Xs,
    ys: Ys,
) -> Float[Tensor, "batch size"]:
    """Evaluate a target on the examples seen.

    Raises:
        ValueError: if the values are not one finite vector a prompt, or the same for every prompt.
    """
    values = target(xs, ys)
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(xs):
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the target {name!r} gave {found}; allowed: one vector a prompt, ({len(xs)}, D)"
        )
    if not values.isfinite().all():
        raise MeasurementError(
            f"the target {name!r} gave values that are not finite; allowed: inputs, weights and "
            "noise of moderate size"
        )
    if (values.double().var(0) == 0).all():
        raise MeasurementError(
            f"the target {name!r} is the same for every prompt; nothing can be read there; allowed "
            "as probing.targets: others"
        )
    return values.to(xs.dtype)
