"""When a variable counts as found in a layer and at positions.

At a layer and positions, a variable is found at the smallest rank at which all of this holds:

1. the share is at least ``rule.share`` of the ceiling,
2. the lower limit of its specificity is at least ``rule.specific``,
3. random subspaces of that rank, the search for shuffled counterfactuals and the same search in
   control learners reach at most ``rule.control`` of the learner's share,
4. what later layers read of the subspace keeps ``rule.read`` of the share.

Where it is not found, the verdict says why nothing could be: the states there are not read, the
learner does not answer as the causal model says even if asked, or the counterfactual is not told
apart from its rivals'.
"""

from typing import Any

import pandas as pd

from incontext_linear.probing.alignment import Cell
from incontext_linear.probing.alignment_config import RuleConfig

CELL = ["layer", "positions", "model"]
FOUND = "found"
NOT_FOUND = "not found"
NOT_READ = "not read"
NOT_ASKED = "cannot be asked"
NOT_TOLD_APART = "not told apart"
LEARNER = "learner"
"""The source of rows that are the learner's own; the others are controls."""


def candidates(table: pd.DataFrame, rule: RuleConfig) -> set[Cell]:
    """Where controls are worth their searches: all but the controls' own conditions hold."""
    passed = table[_passes(table, rule)]
    return set(passed[CELL].itertuples(index=False, name=None))


def decide(table: pd.DataFrame, rule: RuleConfig) -> pd.DataFrame:
    """The verdict on every layer, positions and causal model.

    Args:
        table: of `align`, with a column ``source``: the learner's rows, and the controls' rows of
            the same cells.
        rule: the thresholds.

    Returns:
        ``layer``, ``positions``, ``model``, ``verdict``, and the smallest ``rank`` at which it is
        found; of those not found, the rank with the largest share. With ``share``, ``low``,
        ``high``, ``specific``, ``specific_low``, ``ceiling``, ``left``, ``random``, ``read``,
        ``dormant``, ``unnatural`` at that rank, and ``control``, the largest share of the controls.
    """
    own = table[table["source"] == LEARNER]
    controls = table[table["source"] != LEARNER]
    largest = controls.groupby([*CELL, "rank"])["share"].max().rename("control")
    own = own.join(largest, on=[*CELL, "rank"])
    beaten = ~(own["control"] > rule.control * own["share"])
    own = own.assign(passes=_passes(own, rule) & beaten)
    rows = [_verdict(rows, rule) for _, rows in own.groupby(CELL, sort=False)]
    shown = ["share", "low", "high", "specific", "specific_low", "ceiling", "left", "whole_states"]
    shown += ["random", "control", "read", "dormant", "unnatural", "changed"]
    return pd.DataFrame(rows)[[*CELL, "verdict", "rank", *shown]].reset_index(drop=True)


def _passes(table: pd.DataFrame, rule: RuleConfig) -> pd.Series:
    """All conditions that need no control learner and no shuffled search."""
    ceiling = table["ceiling"].fillna(1.0).clip(upper=1.0)
    return (
        table["searched"]
        & (ceiling >= rule.ceiling)
        & (table["share"] >= rule.share * ceiling)
        & (table["specific_low"] >= rule.specific)
        & (table["random"] <= rule.control * table["share"])
        & (table["read"] >= rule.read * table["share"])
    )


def _verdict(rows: pd.DataFrame, rule: RuleConfig) -> dict[Any, Any]:
    first = rows.iloc[0]
    if not first["searched"]:
        return first.to_dict() | {"verdict": NOT_READ, "rank": 0}
    found = rows[rows["passes"]]
    best = (found if len(found) else rows.sort_values("share", ascending=False)).iloc[0]
    if len(found):
        verdict = FOUND
    elif first["ceiling"] < rule.ceiling:
        verdict = NOT_ASKED
    elif first["unique"] < rule.unique:
        verdict = NOT_TOLD_APART
    else:
        verdict = NOT_FOUND
    return best.to_dict() | {"verdict": verdict}
