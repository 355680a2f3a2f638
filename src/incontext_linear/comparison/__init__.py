"""Which textbook algorithm a learner follows, on which evidence, and where it stops following."""

from incontext_linear.comparison.conditions import measure_conditions, measure_structure
from incontext_linear.comparison.families import Family, FamilyConfig, Grid, Member, build_families
from incontext_linear.comparison.identification import (
    Fits,
    Identification,
    IdentificationConfig,
    fit_families,
    identify,
    measure_everywhere,
)
from incontext_linear.comparison.shifts import PromptShift, QueryShift, build_shifts
from incontext_linear.comparison.symmetries import measure_symmetries
from incontext_linear.comparison.verdict import Evidence, Thresholds, Verdict, judge, over_seeds

__all__ = [
    "Evidence",
    "Family",
    "FamilyConfig",
    "Fits",
    "Grid",
    "Identification",
    "IdentificationConfig",
    "Member",
    "PromptShift",
    "QueryShift",
    "Thresholds",
    "Verdict",
    "build_families",
    "build_shifts",
    "fit_families",
    "identify",
    "judge",
    "measure_conditions",
    "measure_everywhere",
    "measure_structure",
    "measure_symmetries",
    "over_seeds",
]
