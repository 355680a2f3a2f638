"""From how many tasks on a learner stops reciting its pool (Raventós et al. 2023).

A learner trained on w from a pool of M vectors can do two things. It can know the pool: the
posterior mean over it, `DiscreteMMSE`, which is best on the pool and wrong elsewhere. Or it can
forget it: the posterior mean over the prior that the pool was drawn from, ridge regression for a
normal one, which is good everywhere. Its preference at M is log(SPD to DiscreteMMSE / SPD to
ridge), negative where it is nearer to the pool's; the threshold is where it first turns positive
along M, interpolated in log₂ M. It is measured on prompts of the learner's own pool, and on prompts
of the prior.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.config import BootstrapConfig, TaskConfig, resolve_device
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.predictors import BayesPosteriorMean, DiscreteMMSE, Predictor
from incontext_linear.statistics import Draws, sample_draws, seeds_interval
from incontext_linear.tasks import draw_prompts, task_pool

POOL, PRIOR = "pool", "prior"
"""The prompts: w from the learner's own pool, or from the prior that the pool is drawn from."""
DISCRETE, RIDGE, ZERO, LABELS = "discrete_mmse", "ridge", "zero", "labels"
"""What a learner is compared with: the two posterior means, predicting 0, and the labels (its
risk).
"""
FLOOR = 1e-12
"""Share of Var(y) that counts as no distance."""

Answers = dict[str, Float[Tensor, "batch prefix"]]


@dataclass(frozen=True)
class Measured:
    """Squared differences of learners to each algorithm on one kind of prompts.

    Attributes:
        prompts: `POOL` or `PRIOR`.
        pool_sizes: M of each row, ascending; None, no pool, comes last.
        seeds: of the trainings, the same for every M.
        shares: by algorithm, (M, seeds, prompts): means over k ≥ 1, as shares of the labels' mean
            square. Without a pool there is no `DISCRETE`: not a number.
        algorithms: by (first, second) of `DISCRETE`, `RIDGE`, `LABELS`: the algorithms' own
            distances (M,), which say how far apart the two are and what each one risks.
    """

    prompts: str
    pool_sizes: list[int | None]
    seeds: list[int]
    shares: dict[str, Float[np.ndarray, "size seed prompt"]]
    algorithms: dict[tuple[str, str], Float[np.ndarray, " size"]]

    @property
    def finite(self) -> list[int]:
        """The pools' sizes."""
        return [size for size in self.pool_sizes if size is not None]


def ridge_of(task: TaskConfig) -> Predictor:
    """The posterior mean over the prior: exact for normal weights around 0."""
    return BayesPosteriorMean(task.noise_std, task.prior_std)


def measure_learners(
    learners: Mapping[tuple[int | None, int], Learner],
    num_prompts: int,
    prompts: str,
    seed: int,
    device: str = "auto",
) -> Measured:
    """Compare learners with the two posterior means.

    Args:
        learners: (pool size, training seed) → learner; the same seeds for every size.
        num_prompts: B, drawn anew for each pool, the same for all seeds.
        prompts: `POOL` or `PRIOR`.
        seed: of the prompts.
        device: where the learners compute.

    Raises:
        ValueError: if a training is missing, or ``prompts`` is neither of the two.
    """
    if prompts not in (POOL, PRIOR):
        raise ValueError(f"prompts={prompts!r} is not known; allowed: {POOL!r}, {PRIOR!r}")
    sizes = sorted({size for size, _ in learners}, key=lambda size: (size is None, size or 0))
    seeds = sorted({one for _, one in learners})
    missing = [(size, one) for size in sizes for one in seeds if (size, one) not in learners]
    if missing:
        size, one = missing[0]
        raise ValueError(
            f"no learner of pool_size={size}, seed={one} (of {len(missing)} missing); allowed: the "
            "same seeds for every pool size"
        )
    found = [
        _measure_size([learners[size, one] for one in seeds], num_prompts, prompts, seed, device)
        for size in sizes
    ]
    shares = {
        name: np.stack([one[0][name] for one in found]) for name in (DISCRETE, RIDGE, ZERO, LABELS)
    }
    algorithms = {pair: np.array([one[1][pair] for one in found]) for pair in found[0][1]}
    return Measured(prompts, sizes, seeds, shares, algorithms)


@torch.no_grad()
def _measure_size(
    learners: Sequence[Learner], num_prompts: int, prompts: str, seed: int, device: str
) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], float]]:
    """Distances of all learners of one pool (seeds, prompts), and those of the algorithms."""
    task, where = learners[0].task, resolve_device(device)
    asked = task if prompts == POOL else task.model_copy(update={"pool_size": None})
    drawn = draw_prompts(asked, num_prompts, seed, stream="diversity")
    xs, ys = drawn.xs.double(), drawn.ys.double()
    answers: Answers = {
        RIDGE: ridge_of(task)(xs, ys)[:, 1:],
        ZERO: torch.zeros_like(ys)[:, 1:],
        LABELS: ys[:, 1:],
    }
    unknown = torch.full_like(answers[LABELS], torch.nan)
    pool = None if task.pool_size is None else task_pool(task).double()
    answers[DISCRETE] = (
        unknown if pool is None else DiscreteMMSE(pool, task.noise_std)(xs, ys)[:, 1:]
    )
    scale = ys.square().mean()
    given = [
        on_device(one.model, where)(drawn.xs.to(where), drawn.ys.to(where)).cpu()
        for one in learners
    ]
    predictions = torch.stack(given)[:, :, 1:].double()
    shares = {
        name: ((predictions - answer).square().mean(-1) / scale).numpy()
        for name, answer in answers.items()
    }
    pairs = ((DISCRETE, RIDGE), (DISCRETE, LABELS), (RIDGE, LABELS))
    algorithms = {
        (a, b): ((answers[a] - answers[b]).square().mean() / scale).item() for a, b in pairs
    }
    return shares, algorithms


def diversity_table(measured: Measured, bootstrap: BootstrapConfig, seed: int) -> pd.DataFrame:
    """Distances and preference at every pool size, with intervals over seeds and prompts.

    Returns:
        ``prompts``, ``pool_size`` (missing without a pool), ``quantity`` (an algorithm's name for
        the distance to it, or ``preference``), ``mean`` (of the logarithms over seeds, as a
        distance again), ``low``, ``high``, ``seeds``, and ``pool_nearer``, the number of seeds that
        are nearer to `DISCRETE`.
    """
    rows = []
    for row, size in enumerate(measured.pool_sizes):
        logs = {name: _logs(values[row]) for name, values in measured.shares.items()}
        drawn = {
            name: _resampled_logs(values[row][None], bootstrap.num_resamples, seed)
            for name, values in measured.shares.items()
        }
        logs["preference"] = logs[DISCRETE] - logs[RIDGE]
        drawn["preference"] = drawn[DISCRETE] - drawn[RIDGE]
        nearer = int((logs["preference"] < 0).sum())
        for name, values in logs.items():
            mean, num_seeds = values.mean(keepdims=True), len(values)
            low, high = seeds_interval(drawn[name], mean, num_seeds, bootstrap.confidence)
            numbers = np.concatenate([mean, low, high])
            numbers = numbers if name == "preference" else np.exp(numbers)
            rows.append((measured.prompts, size, name, *numbers, num_seeds, nearer))
    columns = ["prompts", "pool_size", "quantity", "mean", "low", "high", "seeds", "pool_nearer"]
    return pd.DataFrame(rows, columns=columns).astype({"pool_size": "Int64"})


@dataclass(frozen=True)
class Threshold:
    """Where learners stop being nearer to the pool's posterior mean.

    Attributes:
        pool_size: M at which the mean preference over seeds is 0; not a number if it never is.
        low: end of the interval over seeds and prompts.
        high: the other.
        by_seed: each seed's own.
        without: share of the resamples (and of the seeds, if none has one) without a threshold.
    """

    pool_size: float
    low: float
    high: float
    by_seed: list[float]
    without: float


def find_threshold(measured: Measured, bootstrap: BootstrapConfig, seed: int) -> Threshold:
    """The pool size at which the preference changes sign, with its interval.

    The mean preference over seeds is interpolated in log₂ M between the first pool that is not
    preferred and the one before. In each resample, seeds and each pool's prompts are drawn again.
    The interval is lengthened for few seeds, about the threshold and in log₂ M.

    Raises:
        ValueError: with fewer than two pools.
    """
    sizes = measured.finite
    if len(sizes) < 2:
        raise ValueError(f"pool sizes {sizes}: a threshold lies between two; allowed: at least 2")
    known = slice(0, len(sizes))
    first, second = (measured.shares[name][known] for name in (DISCRETE, RIDGE))
    by_seed = _logs(first) - _logs(second)  # (M, S)
    log_sizes = np.log2(sizes)
    observed = crossing(log_sizes, by_seed.mean(1))
    drawn = _resampled_logs(first, bootstrap.num_resamples, seed) - _resampled_logs(
        second, bootstrap.num_resamples, seed
    )
    resampled = np.array([[crossing(log_sizes, row)] for row in drawn])
    place = np.array([observed])  # one column
    low, high = seeds_interval(resampled, place, by_seed.shape[1], bootstrap.confidence)
    own = [crossing(log_sizes, column) for column in by_seed.T]
    return Threshold(
        float(2.0**observed),
        float(2.0 ** low[0]),
        float(2.0 ** high[0]),
        [float(2.0**one) for one in own],
        float(np.isnan(resampled).mean()),
    )


def crossing(
    log_sizes: Float[np.ndarray, " size"], preference: Float[np.ndarray, " size"]
) -> float:
    """Where a preference first turns from negative to positive, interpolated; not a number if it
    never does. Later turns say nothing: in large pools the two posterior means become one, and the
    sign of what is left between them is chance.
    """
    turns = np.flatnonzero((preference[:-1] < 0) & (preference[1:] >= 0))
    if not len(turns):
        return float("nan")
    i = turns[0]
    weight = -preference[i] / (preference[i + 1] - preference[i])
    return float(log_sizes[i] + weight * (log_sizes[i + 1] - log_sizes[i]))


def threshold_table(
    measured: Sequence[Measured], bootstrap: BootstrapConfig, seed: int
) -> pd.DataFrame:
    """`find_threshold` on each kind of prompts: ``prompts``, ``threshold``, ``low``, ``high``,
    ``seeds``, ``least``, ``largest`` (of the seeds' own) and ``without``.
    """
    rows = []
    for one in measured:
        found = find_threshold(one, bootstrap, seed)
        own = np.array(found.by_seed)
        known = own[~np.isnan(own)]
        least, largest = (known.min(), known.max()) if len(known) else (np.nan, np.nan)
        place = (found.pool_size, found.low, found.high)
        rows.append((one.prompts, *place, len(own), least, largest, found.without))
    columns = ["prompts", "threshold", "low", "high", "seeds", "least", "largest", "without"]
    return pd.DataFrame(rows, columns=columns)


def _logs(values: Float[np.ndarray, "*size seed prompt"]) -> Float[np.ndarray, "*size seed"]:
    """Logarithms of the means over prompts."""
    return np.log(values.mean(-1) + FLOOR)


def _resampled_logs(
    values: Float[np.ndarray, "size seed prompt"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample size"]:
    """Means over seeds of the logarithms of means over prompts, both resampled; the prompts of each
    size are drawn on their own, the seeds are the same for all.
    """
    num_sizes, num_seeds, num_prompts = values.shape
    logs = np.empty((num_resamples, num_sizes, num_seeds))
    for row, part in enumerate(values):
        draws = sample_draws(num_prompts, num_resamples, seed + row)
        logs[:, row] = np.log(draws.sums(part.T.astype(float)) / num_prompts + FLOOR)
    counts = Draws(num_seeds, num_resamples, (seed, 1)).counts()
    return np.einsum("rs,rms->rm", counts, logs) / num_seeds
