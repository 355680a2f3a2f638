"""The strongest evidence, measured once more on prompts that had no part in choosing it.

Hundreds of cells (shift × strength × k) are looked at for every pair of candidates, on a few
hundred prompts each. The strongest of so many is too strong: what is large by chance is chosen. So
each candidate's strongest cells are drawn again, with new and more prompts, and their ratios get
intervals that cover (`statistics.paired_log_ratio`), at a level that allows for several cells a
candidate (Bonferroni). Only what holds there rules a candidate out.
"""

from collections.abc import Callable, Mapping
from typing import cast

import pandas as pd

from incontext_linear.comparison.conditions import Candidate, Condition, squared_distance
from incontext_linear.comparison.fitting import FLOOR
from incontext_linear.config import BootstrapConfig
from incontext_linear.statistics import paired_log_ratio
from incontext_linear.tables import rows_of

Rebuild = Callable[[str, float], Condition]
"""(shift, strength) → a condition of that name with other prompts."""


def confirm(
    learner: Candidate,
    candidates: Mapping[str, Candidate],
    cells: pd.DataFrame,
    rebuild: Rebuild,
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    """Measure cells again.

    Args:
        learner: what is followed.
        candidates: name → what it predicts.
        cells: from `verdict.strongest_cells`.
        rebuild: gives each cell's condition, with prompts that ``cells`` do not come from.
        bootstrap: level of all of a candidate's intervals together, and number of resamples.
        seed: of the bootstrap.

    Returns:
        The cells, with ``log_ratio``, ``low`` and ``high`` of the new prompts, and the first
        measurement's ratio as ``chosen_log_ratio``.
    """
    confirmed = cells.rename(columns={"log_ratio": "chosen_log_ratio"})
    confirmed["log_ratio"] = float("nan")
    per_candidate = cells["against"].value_counts()
    for place, rows in confirmed.groupby(["shift", "strength"], sort=False, dropna=False):
        shift, strength = cast(tuple[str, float], place)
        whole = rebuild(shift, float(strength))
        condition, scale = whole.only(set(rows["examples_seen"])), whole.label_variance
        followed, asked = condition.ask(learner), {}
        for index, row in zip(rows.index, rows_of(rows), strict=True):
            for name in (row.against, row.rival):
                if name not in asked:
                    asked[name] = squared_distance(condition, candidates[name], followed, scale)
            column = condition.examples_seen.index(row.examples_seen)
            pair = [
                asked[name][:, [column]].cpu().numpy() + FLOOR for name in (row.against, row.rival)
            ]
            level = 1 - (1 - bootstrap.confidence) / int(per_candidate[row.against])
            own = bootstrap.model_copy(update={"confidence": level})
            found = paired_log_ratio(pair[0], pair[1], own, seed).iloc[0]
            for name in ("log_ratio", "low", "high"):
                confirmed.loc[index, name] = found[name]
    return confirmed
