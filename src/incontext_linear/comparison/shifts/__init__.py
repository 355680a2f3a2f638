"""Changes of the prompts' distribution under which algorithms that agree at home part.

A shift takes prompts of the training distribution and changes what its name says; labels are made
again from w, with the noise that the prompts had. Its strength is a field, and `home` the strength
that changes nothing, so that a shift is asked as a curve: where does agreement end? Garg et al.
(2022) are the source of skewed covariances, subspaces, orthants, scales, noise, and of queries that
are orthogonal to, or equal to, what was seen.

Two kinds: a `PromptShift` changes whole prompts. A `QueryShift` changes the query alone; since
every x is a query first and an example after, each k is then asked by prompts of its own, in which
only the query after k examples is another one (`incontext_linear.comparison.conditions`).
"""

from incontext_linear.comparison.shifts.base import (
    PromptShift,
    QueryShift,
    Shift,
    Strength,
    noise_of,
    random_rotations,
    relabel,
)
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
from incontext_linear.comparison.shifts.queries import (
    OrthogonalQuery,
    QueryScale,
    SeenQuery,
)
from incontext_linear.comparison.shifts.registry import (
    SHIFTS,
    build_shifts,
    find_shift,
)

__all__ = [
    "SHIFTS",
    "ConditionNumber",
    "HeavyTailedCoordinates",
    "HeavyTailedInputs",
    "HeavyTailedNoise",
    "InputMean",
    "InputScale",
    "LabelNoise",
    "LabelOutlier",
    "Orthant",
    "OrthogonalQuery",
    "PromptLength",
    "PromptShift",
    "QueryScale",
    "QueryShift",
    "RepeatedExamples",
    "SeenQuery",
    "Shift",
    "SparseWeights",
    "Sphere",
    "Strength",
    "Subspace",
    "WeightScale",
    "build_shifts",
    "find_shift",
    "noise_of",
    "random_rotations",
    "relabel",
]
