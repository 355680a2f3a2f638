"""When a measured value passes from where it starts to where it ends, how suddenly, and whether all
seeds do so at once.

A passage is measured in octaves, doublings of the training step: training time has no other natural
unit when snapshots are spaced by logarithm. A value that falls evenly in the logarithm of the step
takes most of the octaves there are; one that falls at once takes less than one.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from incontext_linear.dynamics.behaviour import LABELS

BEGUN, HALF, DONE = 0.1, 0.5, 0.9
"""Shares of the whole change at which a passage has begun, is half done, and is done."""


def passage(steps: Sequence[int], values: Float[np.ndarray, " step"]) -> dict[str, float]:
    """Where the values cross a tenth, a half and nine tenths of their way from first to last.

    Each share's crossing is the last one: from there on the value never goes back. Between two
    snapshots the crossing is interpolated in the logarithm of the step.

    Args:
        steps: of the values, increasing; step 0 counts as half a step.
        values: what is measured, in the units in which the change is meant (a share of Var(y), or
            the logarithm of one).

    Returns:
        ``begun``, ``half``, ``done`` (steps), ``octaves`` (doublings from begun to done) and
        ``largest_octave`` (largest share of the change within any one doubling). All not a number
        where the values do not change.
    """
    log_steps = np.log2(np.maximum(np.asarray(steps, dtype=float), 0.5))
    change = values[-1] - values[0]
    names = ("begun", "half", "done", "octaves", "largest_octave")
    if not np.isfinite(values).all() or abs(change) < 1e-12 * max(1.0, np.abs(values).max()):
        return dict.fromkeys(names, float("nan"))
    share = (values - values[0]) / change
    begun, half, done = (_last_crossing(log_steps, share, level) for level in (BEGUN, HALF, DONE))
    grid = np.linspace(log_steps[0], log_steps[-1], 400)
    way = np.interp(grid + 1, log_steps, share) - np.interp(grid, log_steps, share)
    numbers = (2.0**begun, 2.0**half, 2.0**done, done - begun, float(way.max()))
    return dict(zip(names, numbers, strict=True))


def _last_crossing(log_steps: np.ndarray, share: np.ndarray, level: float) -> float:
    below = np.flatnonzero(share < level)
    if not len(below):
        return float(log_steps[0])
    i = below[-1]  # the last value is 1, so there is one behind it
    weight = (level - share[i]) / (share[i + 1] - share[i])
    return float(log_steps[i] + weight * (log_steps[i + 1] - log_steps[i]))


def passage_table(
    steps: Sequence[int],
    values: dict[str, Float[np.ndarray, "seed step"]],
    seeds: Sequence[int],
) -> pd.DataFrame:
    """`passage` of every quantity and seed: ``quantity``, ``seed`` and its numbers."""
    return pd.DataFrame(
        [
            {"quantity": name, "seed": seed} | passage(steps, row)
            for name, rows in values.items()
            for seed, row in zip(seeds, rows, strict=True)
        ]
    )


def summarise_passages(passages: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Over seeds: when (geometric mean of the half-way step), how fast, and how far apart.

    Returns:
        ``quantity``, ``seeds``, ``half``, ``low``, ``high`` (Student's t on log₂ of the step),
        ``octaves`` (mean), ``largest_octave`` (mean), and ``spread``: standard deviation over
        seeds of the half-way step, in octaves. Seeds pass together where ``spread`` is far below
        ``octaves``.
    """
    from scipy import special

    rows = []
    for name, table in passages.groupby("quantity", sort=False):
        logs = np.log2(table["half"].dropna().to_numpy())
        count, middle = len(logs), logs.mean() if len(logs) else np.nan
        spread = logs.std(ddof=1) if count > 1 else np.nan
        quantile = special.stdtrit(count - 1, (1 + confidence) / 2)
        reach = quantile * spread / count**0.5 if count > 1 else 0
        rows.append(
            {
                "quantity": name,
                "seeds": count,
                "half": 2**middle,
                "low": 2 ** (middle - reach),
                "high": 2 ** (middle + reach),
                "octaves": table["octaves"].mean(),
                "largest_octave": table["largest_octave"].mean(),
                "spread": spread,
            }
        )
    return pd.DataFrame(rows)


def passages_of(single: pd.DataFrame, quantities: Sequence[str], confidence: float) -> pd.DataFrame:
    """`summarise_passages` of the distances to algorithms, and of the risk.

    Args:
        single: SPD of each seed, as `behaviour.spd_tables` gives it; means over k ≥ 1 are taken.
        quantities: the algorithms; the risk (`behaviour.LABELS`) is always among the quantities.
        confidence: level of the intervals.
    """
    seen = single[single["examples_seen"] >= 1]
    means = seen.groupby(["predictor", "seed", "step"])["spd"].mean()
    names = [*quantities, LABELS]
    values = {name: means[name].unstack().to_numpy() for name in names}
    steps = sorted({int(step) for step in single["step"]})
    seeds = sorted({int(seed) for seed in single["seed"]})
    return summarise_passages(passage_table(steps, values, seeds), confidence)
