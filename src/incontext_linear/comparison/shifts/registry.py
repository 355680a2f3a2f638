"""Shifts by name, and at the strengths that parameters ask for."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from incontext_linear.comparison.shifts.base import PromptShift, QueryShift, Strength
from incontext_linear.comparison.shifts.inputs import (
    ConditionNumber,
    HeavyTailedCoordinates,
    HeavyTailedInputs,
    InputMean,
    InputScale,
    Orthant,
    Sphere,
    Subspace,
)
from incontext_linear.comparison.shifts.labels import (
    HeavyTailedNoise,
    LabelNoise,
    LabelOutlier,
    PromptLength,
    RepeatedExamples,
    SparseWeights,
    WeightScale,
)
from incontext_linear.comparison.shifts.queries import OrthogonalQuery, QueryScale, SeenQuery
from incontext_linear.config import import_dotted

SHIFTS: dict[str, type] = {
    "input_scale": InputScale,
    "condition_number": ConditionNumber,
    "subspace": Subspace,
    "input_mean": InputMean,
    "orthant": Orthant,
    "sphere": Sphere,
    "heavy_tailed_inputs": HeavyTailedInputs,
    "heavy_tailed_coordinates": HeavyTailedCoordinates,
    "weight_scale": WeightScale,
    "sparse_weights": SparseWeights,
    "label_noise": LabelNoise,
    "heavy_tailed_noise": HeavyTailedNoise,
    "label_outlier": LabelOutlier,
    "repeated_examples": RepeatedExamples,
    "prompt_length": PromptLength,
    "query_scale": QueryScale,
    "orthogonal_query": OrthogonalQuery,
    "seen_query": SeenQuery,
}


def find_shift(kind: str) -> type:
    """The class that a name in `SHIFTS`, or a dotted path of your own, stands for.

    Raises:
        ValueError: on an unknown name, listing those that exist.
    """
    known = f"shifts that exist are {', '.join(SHIFTS)}, and dotted paths of your own classes"
    if kind in SHIFTS:
        return SHIFTS[kind]
    if "." not in kind:
        raise ValueError(f"unknown shift {kind!r}; {known}")
    try:
        found = import_dotted(kind)
    except ValueError as error:
        raise ValueError(f"cannot import the shift {kind!r} ({error}); {known}") from error
    if not (inspect.isclass(found) and issubclass(found, PromptShift | QueryShift)):
        raise ValueError(f"{kind!r} is no PromptShift or QueryShift; {known}")
    return found


def build_shifts(
    chosen: Mapping[str, Sequence[Strength] | None] | None = None,
) -> dict[str, list[Any]]:
    """Shifts at each of their strengths.

    Args:
        chosen: name or dotted path → strengths, None for the shift's own list; None: all that
            exist.

    Returns:
        Name → one shift a strength, in the order given.

    Raises:
        ValueError: on an unknown shift, or a strength that is not allowed, naming both.
    """
    built = {}
    for name, strengths in (dict.fromkeys(SHIFTS) if chosen is None else chosen).items():
        kind = find_shift(name)
        try:
            built[name] = [kind(s) for s in (kind.strengths if strengths is None else strengths)]
        except ValueError as error:
            raise ValueError(f"shift {name!r}: {error}") from error
    return built
