"""Which textbook algorithm does a learner follow, on which evidence, and how far from home?

The whole method in one call, `identify`, and the steps that a pipeline takes one by one:
fit the families, measure conditions, symmetries and structure, judge.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pandas as pd
from pydantic import Field

from incontext_linear.comparison.adversarial import (
    is_differentiable,
    most_different_prompts,
    searched_pair,
)
from incontext_linear.comparison.conditions import (
    HOME,
    Candidate,
    Condition,
    answerable,
    as_candidate,
    build_condition,
    build_conditions,
    calibrations,
    candidates_of,
    contexts,
    home_condition,
    home_prompts,
    measure_conditions,
    measure_structure,
)
from incontext_linear.comparison.confirmation import confirm
from incontext_linear.comparison.evidence import Thresholds, strongest_cells
from incontext_linear.comparison.families import FamilyConfig, Member, build_families
from incontext_linear.comparison.filters import FilterConfig
from incontext_linear.comparison.fitting import Away, FittedFamily, fit_family
from incontext_linear.comparison.shifts import PromptShift, Shift, build_shifts
from incontext_linear.comparison.symmetries import measure_symmetries
from incontext_linear.comparison.verdict import Verdict, judge
from incontext_linear.config import (
    BootstrapConfig,
    Config,
    Distinct,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    TaskConfig,
)
from incontext_linear.predictors import Predictor
from incontext_linear.predictors.validation import Number
from incontext_linear.tasks import Prompts


class IdentificationConfig(Config):
    """What is compared, where, and what counts as evidence."""

    families: dict[str, FamilyConfig | None] = Field(default_factory=dict)
    """Beside the default families, or in the place of one; null takes one away."""
    shifts: dict[str, tuple[float, ...] | None] | None = None
    """Name or dotted path → strengths (null: the shift's own); null: every shift there is."""
    by_context: Annotated[tuple[str, ...], Distinct] = ("ridge", "gradient_descent")
    """Families that are tried with numbers of their own at each k: what one number must match."""
    num_calibration_prompts: PositiveInt = 256
    """Prompts that free numbers are fitted on."""
    num_tie_prompts: PositiveInt = 32
    """Prompts of each shift that tell members apart which are tied at home."""
    num_prompts: PositiveInt = 256
    """Other prompts, of each condition, that everything is concluded from."""
    examples_seen: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), Distinct] = (
        0.5,
        1,
        1.5,
        2,
        4,
    )
    """Numbers of examples seen that shifts are looked at, in multiples of the dimension."""
    tie_tolerance: NonNegativeFloat = 0.05
    """Members whose mean log SPD differs by less at home are told apart away from it."""
    num_adversarial_pairs: NonNegativeInt = 3
    """Pairs of candidates for which prompts are searched on which they differ most."""
    adversarial_prompts: PositiveInt = 64
    adversarial_steps: PositiveInt = 30
    num_confirmation_prompts: PositiveInt = 512
    """Prompts, drawn anew, on which the strongest evidence against each candidate must hold."""
    cells_confirmed: PositiveInt = 2
    """How many cells (shift × strength × k) a candidate are measured again."""
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 200
    thresholds: Thresholds = Thresholds()
    filters: FilterConfig = FilterConfig()
    """The spectral filters of the layers."""

    def for_controls(self) -> "IdentificationConfig":
        """For controls: a quarter of the prompts, and no search."""
        few = {
            name: max(16, getattr(self, name) // 4)
            for name in ("num_calibration_prompts", "num_prompts", "num_confirmation_prompts")
        }
        return self.model_copy(update=few | {"num_adversarial_pairs": 0})


@dataclass(frozen=True)
class Fits:
    """The fitted families and their tables.

    Attributes:
        families: by name, simplest first.
        numbers: every free number with its interval over prompts.
        by_context: numbers fitted at each k alone.
    """

    families: dict[str, FittedFamily]
    numbers: pd.DataFrame
    by_context: pd.DataFrame

    @property
    def members(self) -> dict[str, Member]:
        """The frozen members."""
        return {name: fitted.member for name, fitted in self.families.items()}

    @property
    def words(self) -> dict[str, str]:
        """Name → what sentences call the member."""
        return {name: member.words for name, member in self.members.items()}

    def candidates(self, by_context: Sequence[str]) -> dict[str, Candidate]:
        """What is compared: frozen members, and some families with numbers of each k's own."""
        chosen = {name: self.families[name] for name in by_context if name in self.families}
        return candidates_of(self.members, chosen)


@dataclass(frozen=True)
class Identification:
    """Everything that was measured of one learner."""

    fits: Fits
    distances: pd.DataFrame
    separations: pd.DataFrame
    confirmations: pd.DataFrame
    symmetries: pd.DataFrame
    structure: pd.DataFrame
    verdict: Verdict

    def tables(self) -> dict[str, pd.DataFrame]:
        """Everything that was measured, by name, with the verdict's evidence and domain."""
        return {
            "distances": self.distances,
            "separations": self.separations,
            "confirmations": self.confirmations,
            "symmetries": self.symmetries,
            "structure": self.structure,
            "numbers": self.fits.numbers,
            "contexts": self.fits.by_context,
            "evidence": self.verdict.table(),
            "domain": self.verdict.domain,
        }


def identify(
    learner: Predictor,
    task: TaskConfig,
    settings: IdentificationConfig | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Identification:
    """Fit every family, measure the learner at home and under every shift, and judge.

    Args:
        learner: in the one form; asked in float32.
        task: what it was trained on.
        settings: what is compared, and where; None: the defaults.
        seed: of all prompts and resamples.
        device: where prompts are drawn, candidates computed and the learner is.
    """
    settings = settings or IdentificationConfig()
    fits = fit_families(learner, task, settings, seed, device)
    candidates = fits.candidates(settings.by_context)
    distances, separations = measure_everywhere(learner, fits, task, settings, seed, device)
    cells = strongest_cells(distances, separations, settings.thresholds, settings.cells_confirmed)
    confirmed = confirm(
        as_candidate(learner),
        candidates,
        cells,
        partial(condition_anew, fits, task, settings, seed, device),
        BootstrapConfig(confidence=settings.confidence),
        seed,
    )
    prompts = home_prompts(task, settings.num_prompts, seed, "symmetries", device)
    bootstrap = (settings.confidence, settings.num_resamples, seed)
    seen = contexts(task, settings.examples_seen)
    symmetries = measure_symmetries(learner, candidates, prompts, seen, *bootstrap)
    home = build_conditions({}, _scored(task, settings, seed, device), seen, seed)[0]
    structure = measure_structure(learner, candidates, home, *bootstrap)
    verdict = judge(
        distances,
        separations,
        symmetries,
        structure,
        fits.numbers,
        fits.words,
        homes_of(build_shifts(settings.shifts)),
        settings.thresholds,
        confirmed,
    )
    return Identification(fits, distances, separations, confirmed, symmetries, structure, verdict)


def fit_families(
    learner: Predictor,
    task: TaskConfig,
    settings: IdentificationConfig,
    seed: int,
    device: str = "cpu",
) -> Fits:
    """Fit every family's free numbers to the learner, on calibration prompts."""
    prompts = home_prompts(task, settings.num_calibration_prompts, seed, "calibration", device)
    (home,) = calibrations(learner, build_conditions({}, prompts, (), seed))
    few = home_prompts(task, settings.num_tie_prompts, seed, "calibration of ties", device)
    seen = contexts(task, settings.examples_seen)
    whole = {
        n: s for n, s in build_shifts(settings.shifts).items() if isinstance(s[0], PromptShift)
    }
    conditions = build_conditions(whole, few, seen, seed + 1, with_home=False)
    away = Away.join(calibrations(learner, answerable(learner, conditions, logging.DEBUG)))
    fitted = {}
    for family in build_families(task, settings.families):
        fitted[family.name] = fit_family(family, home, away, settings.tie_tolerance)
    fitted = dict(sorted(fitted.items(), key=lambda item: len(item[1].member.numbers)))
    bootstrap = (settings.confidence, settings.num_resamples, seed)
    tables = [f.tables(*bootstrap) for f in fitted.values() if f.member.numbers]
    return Fits(fitted, *(pd.concat(part, ignore_index=True) for part in zip(*tables, strict=True)))


def measure_everywhere(
    learner: Predictor,
    fits: Fits,
    task: TaskConfig,
    settings: IdentificationConfig,
    seed: int,
    device: str = "cpu",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Distances and separations at home, under every shift, and where survivors differ most."""
    candidates = fits.candidates(settings.by_context)
    seen = contexts(task, settings.examples_seen)
    prompts = _scored(task, settings, seed, device)
    conditions = build_conditions(build_shifts(settings.shifts), prompts, seen, seed)
    bootstrap = (settings.confidence, settings.num_resamples, seed)
    tables = measure_conditions(learner, candidates, answerable(learner, conditions), *bootstrap)
    searched = search_conditions(fits, *tables, task, settings, seed, device)
    if not searched:
        return tables
    sharper = measure_conditions(learner, candidates, searched, *bootstrap)
    return tuple(pd.concat(pair, ignore_index=True) for pair in zip(tables, sharper, strict=True))


def search_conditions(
    fits: Fits,
    distances: pd.DataFrame,
    separations: pd.DataFrame,
    task: TaskConfig,
    settings: IdentificationConfig,
    seed: int,
    device: str = "cpu",
) -> list[Condition]:
    """Prompts on which pairs of candidates that no condition has ruled out differ most."""
    none = pd.DataFrame
    empty = none(columns=["candidate", "symmetry", "examples_seen", "violation", "low", "high"])
    structure = none(
        columns=["candidate", "examples_seen", "structured", "low", "high", "learner_power"]
    )
    so_far = judge(
        distances, separations, empty, structure, fits.numbers, fits.words, {}, settings.thresholds
    )
    standing = [
        n for n in (so_far.survivors or so_far.near_home) if is_differentiable(fits.members[n])
    ]
    middle = _middle(task, settings)
    home = separations[(separations["shift"] == "home") & (separations["examples_seen"] == middle)]
    apart = home.set_index(["first", "second"])["separation"]
    prompts = home_prompts(task, settings.adversarial_prompts, seed, "adversarial", device)
    pairs = []
    for first, second in itertools.combinations(standing, 2):
        # Two that are the same algorithm here, as least squares and the posterior mean are.
        if apart.get((first, second), apart.get((second, first), 0.0)) >= 1e-20:
            pairs.append((first, second))
    return [
        _search(fits, pair, task, settings, prompts)
        for pair in pairs[: settings.num_adversarial_pairs]
    ]


def _search(
    fits: Fits,
    pair: tuple[str, str],
    task: TaskConfig,
    settings: IdentificationConfig,
    prompts: Prompts,
) -> Condition:
    first, second = (fits.members[name] for name in pair)
    return most_different_prompts(
        first, second, task.inputs, prompts, _middle(task, settings), settings.adversarial_steps
    )


def _middle(task: TaskConfig, settings: IdentificationConfig) -> int:
    seen = contexts(task, settings.examples_seen)
    return seen[len(seen) // 2]


def condition_anew(
    fits: Fits,
    task: TaskConfig,
    settings: IdentificationConfig,
    seed: int,
    device: str,
    shift: str,
    strength: float,
) -> Condition:
    """A condition of `measure_everywhere`, with prompts that nothing was chosen on."""
    prompts = home_prompts(task, settings.num_confirmation_prompts, seed, "confirmation", device)
    if shift == HOME:
        return home_condition(prompts)
    if pair := searched_pair(shift):
        few = Prompts(*(tensor[: settings.adversarial_prompts] for tensor in prompts))
        return _search(fits, pair, task, settings, few)
    strengths = build_shifts(settings.shifts)[shift]
    chosen = next(one for one in strengths if float(one.strength) == strength)
    seen = contexts(task, settings.examples_seen)
    return build_condition(shift, chosen, prompts, seed=seed + 1, examples_seen=seen)


def homes_of(shifts: dict[str, list[Shift]]) -> dict[str, Number | None]:
    """Each shift's strength that changes nothing."""
    return {name: strengths[0].home for name, strengths in shifts.items() if strengths}


def _scored(task: TaskConfig, settings: IdentificationConfig, seed: int, device: str):
    return home_prompts(task, settings.num_prompts, seed, "scores", device)
