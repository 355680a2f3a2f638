"""Where candidates part, and whom the learner follows there: (shift × strength × k) cells.

Two tables come out of a learner, frozen candidates and conditions. *Distances*: mean squared
difference of the learner's and a candidate's predictions, as a share of Var(y) = E[y²] of the
condition, which is the same for all candidates and for every learner; beside it stands the power of
the learner's own predictions in the same unit, so that 1 − distance / power is the share of the
learner's predictions that the candidate explains. *Separations*: mean squared difference of two
candidates, in the same unit, and the ratio of the learner's distances to them, paired over prompts.
A cell tells two candidates apart if they differ by more than the learner's distance to the nearer.
Intervals of distances cover; those of ratios are percentiles, which choose cells among thousands,
and are measured again before anything is concluded from them (`confirmation`).

A query shift changes the query alone. As the x after k examples is a query at k and an example from
then on, each k has prompts of its own there: k examples as they were, then the changed query.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.comparison.families import Member
from incontext_linear.comparison.fitting import CEILING, Calibration, FittedFamily
from incontext_linear.comparison.shifts import QueryShift, Shift
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.predictors import Predictor
from incontext_linear.predictors.validation import Number
from incontext_linear.statistics import interval, mean_interval, resampled_means
from incontext_linear.tasks import Prompts, draw_prompts, generator

logger = logging.getLogger(__name__)

HOME = "home"
"""The name of the condition that is the training distribution."""

Candidate = Callable[[Prefixes], Float[Tensor, "batch prefix"]]
"""What a candidate predicts after the given numbers of examples; float64."""


@dataclass(frozen=True)
class Condition:
    """Prompts of one shift at one strength.

    Attributes:
        shift: its name; `HOME` for the training distribution.
        strength: nan where there is none.
        parts: the prompts; of a query shift one batch a k.
    """

    shift: str
    strength: float
    parts: tuple[Prefixes, ...]

    @property
    def examples_seen(self) -> list[int]:
        """Every k that is looked at."""
        return [k for part in self.parts for k in part.examples_seen]

    @property
    def label_variance(self) -> float:
        """E[y²] of the labels that are asked for."""
        asked = [part.ys[:, list(part.examples_seen)] for part in self.parts]
        return max(float(torch.cat(asked, 1).square().mean()), 1e-30)

    def ask(self, candidate: Candidate) -> Float[Tensor, "batch prefix"]:
        """A candidate's predictions at every k."""
        return torch.cat([candidate(part) for part in self.parts], dim=1)

    def only(self, examples_seen: Collection[int]) -> "Condition":
        """The same prompts at some of these k alone, cut behind the last that is looked at."""
        parts = []
        for part in self.parts:
            if kept := tuple(k for k in part.examples_seen if k in examples_seen):
                asked = slice(max(kept) + 1)
                parts.append(Prefixes(part.xs[:, asked], part.ys[:, asked], kept))
        return Condition(self.shift, self.strength, tuple(parts))


@dataclass(frozen=True)
class Joined:
    """Conditions whose prompts are of one length, side by side, so that one call answers them.

    Attributes:
        groups: joined prompts, and for each part of them the condition it belongs to.
        num_conditions: how many conditions there are.
    """

    groups: tuple[tuple[Prefixes, tuple[int, ...]], ...]
    num_conditions: int

    @classmethod
    def of(cls, conditions: Sequence[Condition]) -> "Joined":
        """Parts of as many prompts, of one length, at the same k go together."""
        found: dict[tuple, list[tuple[int, Prefixes]]] = {}
        for i, condition in enumerate(conditions):
            for part in condition.parts:
                found.setdefault((part.ys.shape, part.examples_seen), []).append((i, part))
        groups = []
        for (_, seen), members in found.items():
            xs, ys = (torch.cat([getattr(p, name) for _, p in members]) for name in ("xs", "ys"))
            groups.append((Prefixes(xs, ys, seen), tuple(i for i, _ in members)))
        return cls(tuple(groups), len(conditions))

    def ask(self, candidate: Candidate) -> list[Float[Tensor, "batch prefix"]]:
        """A candidate's predictions for every condition, as `Condition.ask` gives them."""
        answers: list[list[Tensor]] = [[] for _ in range(self.num_conditions)]
        for prefixes, owners in self.groups:
            parts = candidate(prefixes).split(len(prefixes.ys) // len(owners))
            for owner, part in zip(owners, parts, strict=True):
                answers[owner].append(part)
        return [torch.cat(parts, dim=1) for parts in answers]


def as_candidate(learner: Predictor, prompts_at_once: int = 256) -> Candidate:
    """A learner, asked in float32 and without gradients, a few prompts at a time."""

    def predict(prefixes: Prefixes) -> Float[Tensor, "batch prefix"]:
        batches = zip(
            prefixes.xs.float().split(prompts_at_once),
            prefixes.ys.float().split(prompts_at_once),
            strict=True,
        )
        with torch.no_grad():
            predictions = torch.cat([learner(xs, ys) for xs, ys in batches])
        return predictions[:, list(prefixes.examples_seen)].double()

    return predict


def contexts(task: TaskConfig, multiples: Sequence[Number]) -> tuple[int, ...]:
    """Numbers of examples seen, from multiples of the dimension; those that prompts have."""
    longest = task.num_examples - 1
    return tuple(sorted({min(longest, max(1, round(m * task.dim))) for m in multiples}))


def home_prompts(
    task: TaskConfig, num_prompts: int, seed: int, stream: str, device: str
) -> Prompts:
    """Prompts of the training distribution, for one purpose alone."""
    return draw_prompts(task, num_prompts, seed, stream=f"identification {stream}", device=device)


def home_condition(prompts: Prompts) -> Condition:
    """The training distribution, at every k ≥ 1."""
    prefixes = Prefixes(
        prompts.xs.double(), prompts.ys.double(), tuple(range(1, prompts.ys.shape[1]))
    )
    return Condition(HOME, float("nan"), (prefixes,))


def build_condition(
    name: str, shift: Shift, prompts: Prompts, examples_seen: Sequence[int], seed: int
) -> Condition:
    """A shift's prompts, made from prompts of the training distribution.

    Args:
        name: what tables call the shift.
        shift: at one strength.
        prompts: of the training distribution.
        examples_seen: every k that is looked at; a longer prompt is looked at its end too.
        seed: of what the shift draws; the same for every strength, so that a curve is paired.
    """
    rng = generator(seed, f"identification shift {name}", device=prompts.xs.device)
    if isinstance(shift, QueryShift):
        parts = [_asked_at(shift, prompts, k, rng) for k in examples_seen]
        return Condition(name, float(shift.strength), tuple(parts))
    changed = shift(prompts, rng)
    kept = tuple(examples_seen)
    if changed.ys.shape[1] > prompts.ys.shape[1]:
        kept = (*kept, changed.ys.shape[1] - 1)
    part = Prefixes(changed.xs.double(), changed.ys.double(), kept)
    return Condition(name, float(shift.strength), (part,))


def _asked_at(shift: QueryShift, prompts: Prompts, k: int, rng: torch.Generator) -> Prefixes:
    query = shift.query(prompts, k, rng)
    noise = prompts.ys[:, k] - (prompts.xs[:, k] * prompts.ws).sum(-1)
    xs = torch.cat((prompts.xs[:, :k], query.unsqueeze(1)), 1)
    ys = torch.cat((prompts.ys[:, :k], ((query * prompts.ws).sum(-1) + noise).unsqueeze(1)), 1)
    return Prefixes(xs.double(), ys.double(), (k,))


def build_conditions(
    shifts: Mapping[str, Sequence[Shift]],
    prompts: Prompts,
    examples_seen: Sequence[int],
    seed: int,
    with_home: bool = True,
) -> list[Condition]:
    """The training distribution, then every shift at every strength that is not its home."""
    conditions = [home_condition(prompts)] if with_home else []
    for name, strengths in shifts.items():
        for shift in strengths:
            if shift.strength != shift.home:
                conditions.append(build_condition(name, shift, prompts, examples_seen, seed))
    return conditions


def answerable(
    learner: Predictor, conditions: Sequence[Condition], level: int = logging.INFO
) -> list[Condition]:
    """The conditions that the learner takes: one with learned positions refuses longer prompts.

    Those left out are logged at ``level``.
    """
    kept = []
    for condition in conditions:
        first = condition.parts[0]
        try:
            as_candidate(learner)(Prefixes(first.xs[:1], first.ys[:1], first.examples_seen))
        except ValueError as error:
            name = condition.shift
            logger.log(level, "%s %g is left out: %s", name, condition.strength, error)
            continue
        kept.append(condition)
    return kept


def calibrations(learner: Predictor, conditions: Sequence[Condition]) -> list[Calibration]:
    """What numbers are fitted on: conditions with the learner's predictions in them.

    At home differences are shares of Var(y); elsewhere of the learner's power where that is larger.
    """
    asked = as_candidate(learner)
    found = []
    for condition in conditions:
        for part in condition.parts:
            predictions = asked(part)
            scale = condition.label_variance
            if condition.shift != HOME:
                scale = max(scale, float(predictions.square().mean()))
            scales = torch.full((1, 1), scale, dtype=torch.float64, device=predictions.device)
            found.append(Calibration(part, predictions, scales))
    return found


@dataclass(frozen=True)
class ByContext:
    """A family with numbers of their own at each k: no algorithm, but what one number must match.

    A learner that is as ridge regression with one λ for all k is as near to that as to this.
    """

    fitted: FittedFamily

    def __call__(self, prefixes: Prefixes) -> Float[Tensor, "batch prefix"]:
        """Predictions of each k's own member."""
        last = self.fitted.member_contexts[-1]
        chosen = self.fitted.nearest_at([min(k, last) for k in prefixes.examples_seen])
        distinct = [dict(pairs) for pairs in dict.fromkeys(tuple(c.items()) for c in chosen)]
        predictions = self.fitted.member.family.predict(distinct, prefixes)
        columns = range(len(chosen))
        return predictions[[distinct.index(c) for c in chosen], :, columns].T


def candidates_of(
    members: Mapping[str, Member], by_context: Mapping[str, FittedFamily] | None = None
) -> dict[str, Candidate]:
    """Frozen members by name, and as ``NAME_by_k`` families with numbers of each k's own."""
    candidates: dict[str, Candidate] = {name: m.predict for name, m in members.items()}
    for name, fitted in (by_context or {}).items():
        candidates[f"{name}{BY_CONTEXT}"] = ByContext(fitted)
    return candidates


BY_CONTEXT = "_by_k"
"""Ends the name of a candidate that has numbers of its own at each k."""


def measure_conditions(
    learner: Predictor,
    candidates: Mapping[str, Candidate],
    conditions: Sequence[Condition],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of this module.

    Args:
        learner: in the one form.
        candidates: name → what it predicts.
        conditions: each with prompts of its own.
        confidence: level of the intervals, over prompts.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        distances: ``shift``, ``strength``, ``examples_seen``, ``candidate``, ``distance`` (the
            mean), ``low``, ``high``, ``median``, ``median_low``, ``median_high``,
            ``learner_power``, ``explained``; shares of the condition's Var(y), which is
            ``label_variance``.
        separations: ``shift``, ``strength``, ``examples_seen``, ``first``, ``second``,
            ``separation``, ``log_ratio`` (of the learner's distances to first and second), ``low``,
            ``high``.
    """
    names = list(candidates)
    joined = Joined.of(conditions)
    followed_everywhere = joined.ask(as_candidate(learner))
    predicted = [joined.ask(candidate) for candidate in candidates.values()]
    distances, separations = [], []
    for i, condition in enumerate(conditions):
        scale = condition.label_variance
        followed = followed_everywhere[i]
        predictions = torch.stack([everywhere[i] for everywhere in predicted])
        squared = _finite((predictions - followed).square() / scale)
        resampled = resampled_means(squared.cpu().numpy(), num_resamples, seed)
        power = followed.square().mean(0) / scale
        cells = (condition, names)
        found = prompt_intervals(squared, confidence, num_resamples, seed)
        distances.append(_distance_rows(*cells, found, power))
        separations.append(
            _separation_rows(*cells, predictions / scale**0.5, squared, resampled, confidence)
        )
    return _joined(distances), _joined(separations)


def squared_distance(
    condition: Condition,
    candidate: Candidate,
    followed: Float[Tensor, "batch prefix"],
    scale: float,
) -> Float[Tensor, "batch prefix"]:
    """Squared differences of a candidate's predictions and others, as shares of the scale."""
    return _finite((condition.ask(candidate) - followed).square() / scale)


def prompt_intervals(
    values: Float[Tensor, "candidate prompt cell"],
    confidence: float,
    num_resamples: int,
    seed: int,
) -> dict[str, Float[np.ndarray, "candidate cell"]]:
    """Means and medians over prompts with intervals that cover under heavy tails.

    Every candidate and cell is resampled by the same prompts.

    Returns:
        ``mean``, ``low``, ``high``, ``median``, ``median_low``, ``median_high``, see
        `statistics.mean_interval`.
    """
    num_candidates, num_prompts, _ = values.shape
    columns = values.permute(1, 0, 2).reshape(num_prompts, -1).cpu().numpy()
    bootstrap = BootstrapConfig(confidence=confidence, num_resamples=num_resamples)
    table = mean_interval(columns, bootstrap, seed)
    return {str(name): table[name].to_numpy().reshape(num_candidates, -1) for name in table}


def _finite(shares: Tensor) -> Tensor:
    return shares.nan_to_num(nan=CEILING, posinf=CEILING).clamp(max=CEILING)


Columns = dict[str, np.ndarray]
"""Of one condition's rows, by name: tables are made of all conditions' at once, which is faster."""


def _cells(condition: Condition, **columns: Sequence[str]) -> Columns:
    """A row for each candidate (or pair) and k, with the condition's name."""
    seen = condition.examples_seen
    count = len(next(iter(columns.values())))
    cells = {
        "shift": np.full(count * len(seen), condition.shift, dtype=object),
        "strength": np.full(count * len(seen), condition.strength),
        "examples_seen": np.tile(seen, count),
    }
    names = {name: np.array(values, dtype=object) for name, values in columns.items()}
    return cells | {name: values.repeat(len(seen)) for name, values in names.items()}


def _joined(parts: Sequence[Columns]) -> pd.DataFrame:
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _distance_rows(
    condition: Condition,
    names: list[str],
    found: Mapping[str, Float[np.ndarray, "candidate prefix"]],
    power: Float[Tensor, " prefix"],
) -> Columns:
    table = _cells(condition, candidate=names)
    for name, values in found.items():
        table["distance" if name == "mean" else name] = values.ravel()
    table["learner_power"] = power.repeat(len(names)).cpu().numpy()
    table["label_variance"] = np.full(len(table["shift"]), condition.label_variance)
    table["explained"] = 1 - table["distance"] / table["learner_power"].clip(min=1e-30)
    return table


def _separation_rows(
    condition: Condition,
    names: list[str],
    predictions: Float[Tensor, "candidate prompt prefix"],
    squared: Float[Tensor, "candidate prompt prefix"],
    resampled: Float[np.ndarray, "resample candidate prefix"],
    confidence: float,
) -> Columns:
    first, second = np.triu_indices(len(names), 1)
    apart = _finite((predictions[first] - predictions[second]).square()).mean(1).cpu().numpy()
    logs = np.log(resampled + 1e-12)
    low, high = interval(logs[:, first] - logs[:, second], confidence, discrete=True)
    means = np.log(squared.mean(1).cpu().numpy() + 1e-12)
    table = _cells(
        condition,
        first=[names[i] for i in first.tolist()],
        second=[names[i] for i in second.tolist()],
    )
    ratio = means[first] - means[second]
    columns = {"separation": apart, "log_ratio": ratio, "low": low, "high": high}
    for name, values in columns.items():
        table[name] = values.ravel()
    return table


def measure_structure(
    learner: Predictor,
    candidates: Mapping[str, Candidate],
    condition: Condition,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """How much of what a candidate leaves unexplained other candidates explain.

    What a learner predicts beyond a candidate may be noise, or another algorithm: a mixture, or
    ridge regression whose λ depends on k. At each k the difference is regressed on what all
    candidates predict, over one half of the prompts, and predicted on the other, both ways. Noise
    is explained by nothing.

    Returns:
        ``candidate``, ``examples_seen``, ``structured``, ``low``, ``high``: the part of the
        distance that the regression takes away, as a share of Var(y); and ``learner_power``.
    """
    scale = condition.label_variance
    followed = condition.ask(as_candidate(learner)) / scale**0.5
    predictions = torch.stack([condition.ask(c) for c in candidates.values()]) / scale**0.5
    known = predictions.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    residual = followed - known.clamp(-1e3, 1e3)
    explained = _cross_fitted(known, residual)
    gain = residual.square() - (residual - explained).square()
    found = prompt_intervals(gain, confidence, num_resamples, seed)
    cells = _cells(condition, candidate=list(candidates))
    table = pd.DataFrame({name: cells[name] for name in ("candidate", "examples_seen")})
    for name, column in (("structured", "mean"), ("low", "low"), ("high", "high")):
        table[name] = found[column].ravel()
    power = followed.square().mean(0)
    table["learner_power"] = power.repeat(len(candidates)).cpu().numpy()
    return table


def _cross_fitted(
    design: Float[Tensor, "candidate prompt prefix"],
    target: Float[Tensor, "candidate prompt prefix"],
) -> Float[Tensor, "candidate prompt prefix"]:
    """Each half's targets, predicted by ridge regression on the design over the other half."""
    features = design.permute(2, 1, 0)  # (K, B, F)
    spread = features.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    features = (features / spread).clamp(-5, 5)  # one ill-conditioned prompt must not decide
    goals = target.permute(2, 1, 0)
    predicted = torch.zeros_like(goals)
    half = features.shape[1] // 2
    for fit, score in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        gram = features[:, fit].mT @ features[:, fit]
        penalty = 1e-3 * half * torch.eye(gram.shape[-1]).to(gram)
        coefficients = torch.linalg.solve(gram + penalty, features[:, fit].mT @ goals[:, fit])
        predicted[:, score] = features[:, score] @ coefficients
    return predicted.permute(2, 1, 0)
