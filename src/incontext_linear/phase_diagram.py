"""Which algorithm a learner is nearest to, as depth, width or noise vary (paper, section 4).

The squared prediction difference (SPD) of learners to predictors is measured at every value of one axis,
number of examples seen k, and predictor. Everything that is derived from it (the nearest predictor, by what
margin, where the nearest changes, on which ridge penalty a row has its minimum) is derived anew in every
bootstrap resample, the same resample for all predictors, since their SPDs share prompts and learners.

**What is resampled.** Training seeds, and within each drawn seed its evaluation prompts (Davison and
Hinkley 1997, section 3.8). A seed that is drawn twice gets two draws of prompts. Axis values that have the
same seeds share all draws: a seed decides the prompts too, so that neighbours on the axis are paired.

**What an interval can mean.** With S seeds the spread between learners enters by the bootstrap's usual
factor (S−1)/S of its variance, and only values between the S learners' own means can come up: with fewer
than about five seeds the interval is too short, and with two it is little more than the two learners.
With one seed it is about prompts alone and says nothing of another training run. It never covers what all
seeds share: the training recipe, the evaluation's size, the list of predictors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from incontext_linear.phase_variants import NOISE_AXIS, PhaseDiagramError
from incontext_linear.tables import predictions_by_name

EACH, MEAN = "each k", "mean over k"
LARGEST = 1e150  # of a difference, so that squares and their sums stay finite
COINCIDE = 1e-6
DIAGONAL_TOLERANCE = 0.05


class Differences(NamedTuple):
    """What the learner of one variant predicts, less what each predictor does."""

    predictors: tuple[str, ...]
    values: Float[np.ndarray, "prompt example predictor"]


class Resamples(NamedTuple):
    """SPD means of a whole sweep, as observed and in every resample.

    A column is a number of examples seen, the mean over several of them, or a named point such as k = 2d.
    """

    axis: str
    values: pd.DataFrame
    """One row an axis value: ``axis``, ``axis_value``, ``coordinate``, ``seeds`` and ``prompts`` (counts)."""
    scopes: tuple[str, ...]
    """What each column is: `EACH`, `MEAN`, ``k = d``, ``k = 2d``."""
    examples_seen: Int[np.ndarray, "value column"]
    """k; −1 for the mean."""
    predictors: tuple[str, ...]
    observed: Float[np.ndarray, "value column predictor"]
    resampled: Float[np.ndarray, "resample value column predictor"]
    coincide: Bool[np.ndarray, "value column predictor predictor"]
    """Whether two predictors are so close to each other that the learner cannot be nearer to one."""


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
    values = np.stack([learned.double().numpy() - other.double().numpy() for other in others.values()], -1)
    return Differences(
        tuple(others), np.nan_to_num(values, nan=LARGEST, posinf=LARGEST).clip(-LARGEST, LARGEST)
    )


def prompt_weights(
    seeds: Sequence[int], position: int, num_prompts: int, num_resamples: int, seed: int
) -> Float[np.ndarray, "resample prompt"]:
    """Weights of one seed's prompts in every resample: seeds are drawn, then prompts within them.

    A resample's mean is the sum over seeds of weights @ values. Over all seeds the weights of a resample
    sum to 1, each drawn seed having an equal part. The same arguments give the same weights.

    Args:
        seeds: the seeds of one axis value, sorted.
        position: which of them.
        num_prompts: its number of prompts.
        num_resamples: R.
        seed: of the draws.

    Returns:
        (R, num_prompts).
    """
    num_seeds, entropy = len(seeds), [seed, len(seeds), *seeds]
    drawn = np.random.default_rng(entropy).multinomial(
        num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples
    )
    rng = np.random.default_rng([*entropy, position])
    counts = rng.multinomial(drawn[:, position] * num_prompts, np.full(num_prompts, 1 / num_prompts))
    return counts / (num_seeds * num_prompts)


class _Means(NamedTuple):
    """One axis value's means at k = 1, 2, …: observed, resampled, and between pairs of predictors."""

    predictors: tuple[str, ...]
    observed: Float[np.ndarray, "example predictor"]
    resampled: Float[np.ndarray, "resample example predictor"]
    pairs: Float[np.ndarray, "example predictor predictor"]
    num_prompts: int


def _means(differences: Differences, weights: Float[np.ndarray, "resample prompt"], share: float) -> _Means:
    """One variant's part of its axis value's means; share is 1 / seeds."""
    values = differences.values[:, 1:]  # with no example seen all predict 0: nothing is compared
    squares = values**2
    num_prompts, num_examples, num_predictors = values.shape
    resampled = (weights @ squares.reshape(num_prompts, -1)).reshape(-1, num_examples, num_predictors)
    pairs = [np.square(values - values[:, :, [p]]).mean(0) for p in range(num_predictors)]
    return _Means(
        differences.predictors, squares.mean(0) * share, resampled, np.stack(pairs, 1) * share, num_prompts
    )


def _add(first: _Means, second: _Means) -> _Means:
    """Sum over the predictors and prefixes that both have."""
    first, second = _restrict(first, *_shared([first, second])), _restrict(second, *_shared([first, second]))
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
    """Bootstrap a sweep's SPDs over seeds and prompts; one variant's predictions are in memory at a time.

    Predictors and prefixes that not all variants have are left out. Time is dominated by one product of
    R × prompts by prompts × (k · predictors) a variant; memory by R × values × k × predictors numbers.

    Args:
        variants: one row a variant: ``folder``, ``axis``, ``axis_value``, ``coordinate``, ``dim``, ``seed``.
        read: folder → differences.
        examples_seen: the k of the mean over k; None: all from 1 on.
        points: multiples of d that are columns of their own, at most at the last k.
        num_resamples: R.
        seed: of the draws.

    Raises:
        PhaseDiagramError: if there is no variant, if variants share no predictor, or if a k does not exist.
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
    resampled = np.stack([m @ part.resampled for m, part in zip(mixing, means, strict=True)], axis=1)
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
        weights = prompt_weights(seeds, position, len(differences.values), num_resamples, seed)
        part = _means(differences, weights, 1 / len(seeds))
        total = part if total is None else _add(total, part)
    return total


def _columns(
    dims: Int[np.ndarray, " value"],
    num_examples: int,
    examples_seen: Sequence[int] | None,
    points: Sequence[float],
) -> tuple[tuple[str, ...], Int[np.ndarray, "value column"], Float[np.ndarray, "value column example"]]:
    """Names of the columns, their k, and the matrix that makes them of the SPDs at k = 1, …, n−1."""
    absent = [k for k in examples_seen or () if not 1 <= k <= num_examples]
    if absent:
        raise PhaseDiagramError(f"phase_diagram.examples_seen: {absent} given; allowed: 1 to {num_examples}")
    chosen = np.array(examples_seen or range(1, num_examples + 1)) - 1
    points = tuple(dict.fromkeys(points))
    shape = (len(dims), 1, num_examples)
    mean = np.zeros(shape)
    mean[..., np.unique(chosen)] = 1 / len(np.unique(chosen))
    each = np.tile(np.eye(num_examples), (len(dims), 1, 1))
    ks = [np.clip(np.rint(multiple * dims).astype(int), 1, num_examples) for multiple in points]
    at = [np.eye(num_examples)[k - 1][:, None] for k in ks]
    counting = np.tile(np.arange(1, num_examples + 1), (len(dims), 1))
    seen = np.concatenate([counting, np.full((len(dims), 1), -1), *(k[:, None] for k in ks)], axis=1)
    names = [f"k = {'' if multiple == 1 else f'{multiple:g}'}d" for multiple in points]
    return (*[EACH] * num_examples, MEAN, *names), seen, np.concatenate([each, mean, *at], axis=1)


def _labelled(resamples: Resamples, each: bool = True) -> pd.DataFrame:
    """One row an axis value and column: the value's own columns, ``scope`` and ``examples_seen``.

    ``row`` and ``column`` are positions in the arrays.
    """
    columns = [c for c, scope in enumerate(resamples.scopes) if each or scope != EACH]
    table = resamples.values.assign(row=range(len(resamples.values)))
    table = table.merge(pd.DataFrame({"column": columns}), how="cross")
    seen = resamples.examples_seen[table["row"], table["column"]]
    return table.assign(
        scope=[resamples.scopes[c] for c in table["column"]],
        examples_seen=pd.Series(seen, dtype="Int64").where(lambda k: k > 0),
    )


def _interval(draws: np.ndarray, confidence: float) -> np.ndarray:
    """Percentile interval over the first axis; low and high first."""
    tail = (1 - confidence) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def divergence_table(resamples: Resamples, confidence: float) -> pd.DataFrame:
    """SPD of the learner to each predictor at every axis value and column.

    Returns:
        ``axis``, ``axis_value``, ``coordinate``, ``seeds``, ``prompts``, ``scope``, ``examples_seen``
        (missing for the mean), ``predictor``, ``mean``, ``low``, ``high``.
    """
    cells = _labelled(resamples)
    low, high = _interval(resamples.resampled, confidence)
    at = (cells["row"].to_numpy(), cells["column"].to_numpy())
    tables = [
        cells.assign(predictor=name, mean=mean[at], low=low[..., p][at], high=high[..., p][at])
        for p, (name, mean) in enumerate(
            zip(resamples.predictors, np.moveaxis(resamples.observed, -1, 0), strict=True)
        )
    ]
    return pd.concat(tables, ignore_index=True).drop(columns=["row", "column"])


def nearest(
    spds: Float[np.ndarray, "*resample value column predictor"],
    coincide: Bool[np.ndarray, "value column predictor predictor"],
) -> Int[np.ndarray, "*resample value column"]:
    """Position of the nearest predictor; of those that coincide with it, the one listed first."""
    first = coincide.argmax(-1)  # a predictor coincides with itself, so there is always one
    values, columns = np.indices(first.shape[:2])
    return first[values, columns, spds.argmin(-1)]


def nearest_table(resamples: Resamples, confidence: float) -> pd.DataFrame:
    """Which predictor the learner is nearest to, and by what margin, at every axis value and column.

    The margin is SPD(runner-up) / SPD(nearest), where predictors that coincide with the nearest are no
    rivals of it. In a resample it is the smallest SPD of all rivals, whichever has it, over the SPD of the
    predictor that is nearest as observed: below 1 another one is nearer there.

    Returns:
        The columns of `divergence_table` up to ``examples_seen``, ``nearest``, ``coincident`` (names that
        coincide with it, comma-separated), ``runner_up`` (missing without a rival), ``spd``, ``margin``,
        ``low``, ``high``, ``certainty`` (share of resamples in which no rival is nearer) and ``clear`` (the
        margin's interval lies above 1).
    """
    best = nearest(resamples.observed, resamples.coincide)
    values, columns = np.indices(best.shape)
    rivals = np.where(resamples.coincide[values, columns, best], np.inf, resamples.observed)
    others = np.where(resamples.coincide[values, columns, best], np.inf, resamples.resampled).min(-1)
    floor = np.finfo(float).tiny
    spd = resamples.observed[values, columns, best]
    has_rival = np.isfinite(rivals.min(-1))
    draws = others / np.maximum(resamples.resampled[:, values, columns, best], floor)
    low, high = _interval(np.where(has_rival, draws, 1.0), confidence)
    margin = np.where(has_rival, rivals.min(-1) / np.maximum(spd, floor), np.nan)
    cells = _labelled(resamples)
    at = (cells["row"].to_numpy(), cells["column"].to_numpy())
    names = np.array(resamples.predictors, dtype=object)
    table = cells.assign(
        nearest=names[best[at]],
        coincident=[
            ", ".join(names[(group & (np.arange(len(names)) != p))])
            for group, p in zip(resamples.coincide[*at, best[at]], best[at], strict=True)
        ],
        runner_up=np.where(has_rival, names[rivals.argmin(-1)], None)[at],
        spd=spd[at],
        margin=margin[at],
        low=np.where(has_rival, low, np.nan)[at],
        high=np.where(has_rival, high, np.nan)[at],
        certainty=(draws >= 1).mean(0)[at],
        clear=(has_rival & (low > 1))[at],
    )
    return table.drop(columns=["row", "column"])


def heat_map_table(resamples: Resamples, penalties: Mapping[str, float], confidence: float) -> pd.DataFrame:
    """Learners × predictors: SPD, each row's minimum and, for a noise axis, the diagonal λ = σ²/τ².

    On a noise axis the predictors are the ridges in the order of λ (one for each λ), on others all of them.

    Args:
        resamples: of a sweep.
        penalties: λ of each ridge, as `ridge_penalties` finds them.
        confidence: of the intervals.

    Returns:
        For the mean over k and the named points: the columns of `divergence_table`, ``penalty`` (NaN where
        the predictor is no ridge), ``minimum`` (the row's smallest SPD), ``share`` (of resamples in which it
        is), ``diagonal`` (λ is within 5 % of the row's σ²/τ²).
    """
    chosen = _ridges(resamples, penalties) if resamples.axis == NOISE_AXIS else []
    on_noise_axis = len(chosen) > 1
    names = chosen if on_noise_axis else list(resamples.predictors)
    keep = [resamples.predictors.index(name) for name in names]
    observed, draws = resamples.observed[..., keep], resamples.resampled[..., keep]
    least, low_high = draws.argmin(-1), _interval(draws, confidence)
    cells = _labelled(resamples, each=False)
    at = (cells["row"].to_numpy(), cells["column"].to_numpy())
    tables = []
    for p, name in enumerate(names):
        penalty = penalties.get(name, np.nan)
        ratio = cells["coordinate"]
        tables.append(
            cells.assign(
                predictor=name,
                mean=observed[..., p][at],
                low=low_high[0][..., p][at],
                high=low_high[1][..., p][at],
                penalty=penalty,
                minimum=(observed.argmin(-1) == p)[at],
                share=(least == p).mean(0)[at],
                diagonal=on_noise_axis & ((ratio - penalty).abs() <= DIAGONAL_TOLERANCE * ratio),
            )
        )
    return pd.concat(tables, ignore_index=True).drop(columns=["row", "column"])


def _ridges(resamples: Resamples, penalties: Mapping[str, float]) -> list[str]:
    """Names of ridges by λ, the first listed of each λ."""
    by_penalty: dict[float, str] = {}
    for name in resamples.predictors:
        if name in penalties:
            by_penalty.setdefault(penalties[name], name)
    return [by_penalty[penalty] for penalty in sorted(by_penalty)]


def is_logarithmic(axis: str, coordinates: Iterable[float]) -> bool:
    """Whether the axis is drawn, and interpolated on, by the logarithm: all but the noise, if positive."""
    return axis != NOISE_AXIS and all(bool(value > 0) for value in coordinates)


def transition_table(resamples: Resamples, confidence: float) -> pd.DataFrame:
    """Where along the axis the nearest predictor changes, in every column.

    Between neighbouring axis values with nearest predictors A and B the change lies where
    log SPD_A − log SPD_B crosses 0, interpolated linearly in the coordinate or its logarithm
    (`is_logarithmic`). There is no change between predictors that coincide at either value. In a resample,
    an A → B change may lie between other values; of several the one closest to the observed counts.

    Returns:
        One row a change: ``axis``, ``scope``, ``examples_seen``, ``before``, ``after``, ``from_value`` and
        ``to_value`` (axis values beside it), ``location``, ``low``, ``high`` (in the coordinate; the
        interval over those resamples that have this change), ``share`` (of resamples that have it) and
        ``left`` (share in which A is nearest at the one value and any other predictor at the next).
    """
    observed = nearest(resamples.observed, resamples.coincide)
    resampled = nearest(resamples.resampled, resamples.coincide)
    rows = []
    for column, value in np.argwhere(observed[:-1].T != observed[1:].T):
        before, after = observed[value : value + 2, column]
        together = resamples.coincide[:, column, before, after]
        if together[value] or together[value + 1]:
            continue
        found = (resampled[:, :-1, column] == before) & (resampled[:, 1:, column] == after)
        found &= ~(together[:-1] | together[1:])
        left = (resampled[:, value, column] == before) & (resampled[:, value + 1, column] != before)
        place = _locate(resamples, column, value, (before, after), found, confidence)
        known = resamples.values["axis_value"]
        rows.append(
            {
                "scope": resamples.scopes[column],
                "examples_seen": resamples.examples_seen[value, column],
                "before": resamples.predictors[before],
                "after": resamples.predictors[after],
                "from_value": known[value],
                "to_value": known[value + 1],
            }
            | dict(zip(("location", "low", "high"), place, strict=True))
            | {"share": found.any(1).mean(), "left": left.mean()}
        )
    return _transition_frame(rows, resamples.axis)


def _locate(
    resamples: Resamples,
    column: int | np.integer,
    value: int | np.integer,
    pair: tuple[int | np.integer, int | np.integer],
    found: Bool[np.ndarray, "resample interval"],
    confidence: float,
) -> tuple[float, float, float]:
    """Place and interval of the change of a pair after the value, in the coordinate."""
    coordinates = resamples.values["coordinate"].to_numpy(dtype=float)
    logarithmic = is_logarithmic(resamples.axis, coordinates)
    scale = np.log(coordinates) if logarithmic else coordinates
    here = float(_crossings(resamples.observed[None, :, column], *pair, scale)[0, value])
    drawn = _crossings(resamples.resampled[:, :, column], *pair, scale)
    places = _closest(np.where(found, drawn, np.nan), here)
    low, high = _interval(places, confidence) if len(places) else (np.nan, np.nan)
    return tuple(float(np.exp(x)) if logarithmic else float(x) for x in (here, low, high))


def _crossings(
    spds: Float[np.ndarray, "resample value predictor"],
    before: int | np.integer,
    after: int | np.integer,
    scale: Float[np.ndarray, " value"],
) -> Float[np.ndarray, "resample interval"]:
    """Where log SPD_before = log SPD_after in every interval; only meaningful where the order changes."""
    logs = np.log(np.maximum(spds[..., [before, after]], np.finfo(float).tiny))
    gap = logs[..., 0] - logs[..., 1]
    rise = gap[:, 1:] - gap[:, :-1]
    part = np.divide(-gap[:, :-1], rise, out=np.full_like(rise, 0.5), where=rise != 0)
    return scale[:-1] + part.clip(0, 1) * np.diff(scale)


def _closest(places: Float[np.ndarray, "resample interval"], target: float) -> Float[np.ndarray, " found"]:
    """Of each resample the place closest to the target; resamples without any are left out."""
    distance = np.where(np.isnan(places), np.inf, np.abs(places - target))
    chosen = np.take_along_axis(places, distance.argmin(1)[:, None], axis=1)[:, 0]
    return chosen[~np.isnan(chosen)]


def _transition_frame(rows: list[dict], axis: str) -> pd.DataFrame:
    names = ("scope", "examples_seen", "before", "after", "from_value", "to_value")
    table = pd.DataFrame(rows, columns=[*names, "location", "low", "high", "share", "left"])
    seen = table["examples_seen"].astype("float64")
    table["examples_seen"] = seen.where(seen > 0).astype("Int64")
    text = dict.fromkeys(["scope", "before", "after"], "string")
    numbers = dict.fromkeys(["from_value", "to_value", "location", "low", "high", "share", "left"], "float64")
    table.insert(0, "axis", axis)
    return table.astype(text | {"axis": "string"} | numbers)
