"""Which algorithm a learner is nearest to, as depth, width or noise vary (paper, section 4).

The squared prediction difference (SPD) of learners to predictors is measured at every value of one
axis, number of examples seen k, and predictor. Everything that is derived from it (the nearest
predictor, by what margin, where the nearest changes, on which ridge penalty a row has its minimum)
is derived anew in every bootstrap resample, the same resample for all predictors, since their SPDs
share prompts and learners.

**What is resampled.** Training seeds, and within each drawn seed its evaluation prompts (Davison
and Hinkley 1997, section 3.8). A seed that is drawn twice gets two draws of prompts. Axis values
that have the same seeds share all draws: a seed decides the prompts too, so that neighbours on the
axis are paired.

**What an interval can mean.** With S seeds the spread between learners enters by the bootstrap's
usual factor (S−1)/S of its variance, and only values between the S learners' own means can come up:
with fewer than about five seeds the interval is too short, and with two it spans little more than
the two learners' means. With one seed it is about prompts alone and says nothing of another
training run. It never covers what all seeds share: the training recipe, the evaluation's size, the
list of predictors.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from incontext_linear.phase_diagram.variants import PhaseDiagramError
from incontext_linear.statistics import nested_weights
from incontext_linear.tables import predictions_by_name

EACH, MEAN = "each k", "mean over k"
LARGEST = 1e150  # of a difference, so that squares and their sums stay finite
COINCIDE = 1e-6


class Differences(NamedTuple):
    """what the learner of one variant predicts, minus what each predictor does."""

    predictors: tuple[str, ...]
    values: Float[np.ndarray, "prompt example predictor"]


class Resamples(NamedTuple):
    """SPD means of a whole sweep, as observed and in every resample.

    A column is a number of examples seen, the mean over several of them, or a named point such as k
    = 2d.
    """

    axis: str
    values: pd.DataFrame
    """One row an axis value: ``axis``, ``axis_value``, ``coordinate``, ``seeds`` and ``prompts``
    (counts).
    """
    scopes: tuple[str, ...]
    """What each column is: `EACH`, `MEAN`, ``k = d``, ``k = 2d``."""
    examples_seen: Int[np.ndarray, "value column"]
    """k; −1 for the mean."""
    predictors: tuple[str, ...]
    observed: Float[np.ndarray, "value column predictor"]
    resampled: Float[np.ndarray, "resample value column predictor"]
    coincide: Bool[np.ndarray, "value column predictor predictor"]
    """Whether two predictors are so close to each other that the learner cannot be nearer to
    one.
    """


def signed_differences(learner: pd.DataFrame, baselines: pd.DataFrame) -> Differences:
    """Learner less predictor, for tidy predictions of the same prompts.

    What is not finite, of an algorithm that diverged, counts as 1e150.

    Raises:
        ValueError: if the two tables are not about the same prompts and prefixes.
    """
    (learned,) = predictions_by_name(learner).values()
    others = predictions_by_name(baselines)
    wrong = [name for name, other in others.items() if other.shape != learned.shape]
    if wrong:
        raise ValueError(f"{wrong} predict other prompts than the learner; run the variant again")
    values = np.stack(
        [learned.double().numpy() - other.double().numpy() for other in others.values()], -1
    )
    return Differences(
        tuple(others), np.nan_to_num(values, nan=LARGEST, posinf=LARGEST).clip(-LARGEST, LARGEST)
    )


class _Means(NamedTuple):
    """One axis value's means at k = 1, 2, …: observed, resampled, and between pairs of
    predictors.
    """

    predictors: tuple[str, ...]
    observed: Float[np.ndarray, "example predictor"]
    resampled: Float[np.ndarray, "resample example predictor"]
    pairs: Float[np.ndarray, "example predictor predictor"]
    num_prompts: int


def _means(
    differences: Differences, weights: Float[np.ndarray, "resample prompt"], share: float
) -> _Means:
    """One variant's part of its axis value's means; share is 1 / seeds."""
    values = differences.values[:, 1:]  # with no example seen all predict 0: nothing is compared
    squares = values**2
    num_prompts, num_examples, num_predictors = values.shape
    resampled = (weights @ squares.reshape(num_prompts, -1)).reshape(
        -1, num_examples, num_predictors
    )
    pairs = [np.square(values - values[:, :, [p]]).mean(0) for p in range(num_predictors)]
    return _Means(
        differences.predictors,
        squares.mean(0) * share,
        resampled,
        np.stack(pairs, 1) * share,
        num_prompts,
    )


def _add(first: _Means, second: _Means) -> _Means:
    """Sum over the predictors and prefixes that both have."""
    first, second = (
        _restrict(first, *_shared([first, second])),
        _restrict(second, *_shared([first, second])),
    )
    return _Means(
        first.predictors,
        first.observed + second.observed,
        first.resampled + second.resampled,
        first.pairs + second.pairs,
        first.num_prompts + second.num_prompts,
    )


def _shared(parts: Sequence[_Means]) -> tuple[tuple[str, ...], int]:
    names = tuple(n for n in parts[0].predictors if all(n in part.predictors for part in parts))
    return names, min(len(part.observed) for part in parts)


def _restrict(means: _Means, names: tuple[str, ...], num_examples: int) -> _Means:
    keep = [means.predictors.index(name) for name in names]
    return _Means(
        names,
        means.observed[:num_examples, keep],
        means.resampled[:, :num_examples, keep],
        means.pairs[:num_examples][:, keep][:, :, keep],
        means.num_prompts,
    )


def resample_sweep(
    variants: pd.DataFrame,
    read: Callable[[str], Differences],
    examples_seen: Sequence[int] | None,
    points: Sequence[float],
    num_resamples: int,
    seed: int,
) -> Resamples:
    """Bootstrap a sweep's SPDs over seeds and prompts; one variant's predictions are in memory at a
    time.

    Predictors and prefixes that not all variants have are left out. Time is dominated by one
    product of R × prompts by prompts × (k · predictors) a variant; memory by R × values × k ×
    predictors numbers.

    Args:
        variants: one row a variant: ``folder``, ``axis``, ``axis_value``, ``coordinate``, ``dim``,
            ``seed``.
        read: folder → differences.
        examples_seen: the k of the mean over k; None: all from 1 on.
        points: multiples of d that are columns of their own, at most at the last k.
        num_resamples: R.
        seed: of the draws.

    Raises:
        PhaseDiagramError: if there is no variant, if variants share no predictor, or if a k does
            not exist.
    """
    if variants.empty:
        raise PhaseDiagramError("no variant of this sweep can be used")
    parts = {}
    for value, rows in variants.sort_values(["axis_value", "seed"]).groupby("axis_value"):
        parts[value] = _value_means(rows, read, num_resamples, seed)
    names, num_examples = _shared(list(parts.values()))
    if not names:
        raise PhaseDiagramError("the variants of this sweep have no baseline in common")
    firsts = variants.groupby("axis_value")[["axis", "coordinate", "dim"]].first()
    means = [_restrict(part, names, num_examples) for part in parts.values()]
    scopes, seen, mixing = _columns(firsts["dim"].to_numpy(), num_examples, examples_seen, points)
    observed = np.einsum("vck,vkp->vcp", mixing, np.stack([part.observed for part in means]))
    pairs = np.einsum("vck,vkpq->vcpq", mixing, np.stack([part.pairs for part in means]))
    resampled = np.stack(
        [m @ part.resampled for m, part in zip(mixing, means, strict=True)], axis=1
    )
    values = firsts.reset_index()[["axis", "axis_value", "coordinate"]]
    values["seeds"] = variants.groupby("axis_value").size().to_numpy()
    values["prompts"] = [part.num_prompts for part in means]
    near = COINCIDE * observed.min(-1)[..., None, None]
    return Resamples(
        str(values["axis"].iloc[0]), values, scopes, seen, names, observed, resampled, pairs <= near
    )


def _value_means(
    rows: pd.DataFrame, read: Callable[[str], Differences], num_resamples: int, seed: int
) -> _Means:
    """The mean over all seeds of one axis value."""
    seeds, total = rows["seed"].tolist(), None
    for position, folder in enumerate(rows["folder"]):
        differences = read(folder)
        weights = nested_weights(seeds, position, len(differences.values), num_resamples, seed)
        part = _means(differences, weights, 1 / len(seeds))
        total = part if total is None else _add(total, part)
    return total


def _columns(
    dims: Int[np.ndarray, " value"],
    num_examples: int,
    examples_seen: Sequence[int] | None,
    points: Sequence[float],
) -> tuple[
    tuple[str, ...], Int[np.ndarray, "value column"], Float[np.ndarray, "value column example"]
]:
    """Names of the columns, their k, and the matrix that makes them of the SPDs at k = 1, …,
    n−1.
    """
    absent = [k for k in examples_seen or () if not 1 <= k <= num_examples]
    if absent:
        raise PhaseDiagramError(
            f"phase_diagram.examples_seen: {absent} given; allowed: 1 to {num_examples}"
        )
    chosen = np.array(examples_seen or range(1, num_examples + 1)) - 1
    points = tuple(dict.fromkeys(points))
    shape = (len(dims), 1, num_examples)
    mean = np.zeros(shape)
    mean[..., np.unique(chosen)] = 1 / len(np.unique(chosen))
    each = np.tile(np.eye(num_examples), (len(dims), 1, 1))
    ks = [np.clip(np.rint(multiple * dims).astype(int), 1, num_examples) for multiple in points]
    at = [np.eye(num_examples)[k - 1][:, None] for k in ks]
    counting = np.tile(np.arange(1, num_examples + 1), (len(dims), 1))
    seen = np.concatenate(
        [counting, np.full((len(dims), 1), -1), *(k[:, None] for k in ks)], axis=1
    )
    names = [f"k = {'' if multiple == 1 else f'{multiple:g}'}d" for multiple in points]
    return (*[EACH] * num_examples, MEAN, *names), seen, np.concatenate([each, mean, *at], axis=1)
