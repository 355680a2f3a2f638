"""Probes: which quantities can be read from the hidden states, and in which layer (paper, section
5).

targets      what is looked for: Xᵀy, least-squares and ridge weights, XᵀX, a user's own
states       the hidden states of one or several learners
readouts     the probes: attention over positions, then a linear or an MLP read-out
fitting      all of them trained in one batched pass, and scored on held-out prompts
selectivity  held against controls: how much is the learner's own, and from which layer on
layerwise    predictions read out of every layer, beside the steps of iterative algorithms
intervals    bootstrap over prompts and seeds
"""

from incontext_linear.probing.fitting import Column, ProbeFit, Split, fit_probes, split_prompts
from incontext_linear.probing.layerwise import progress_tables, read_predictions
from incontext_linear.probing.readouts import LinearReadout, ProbeSet
from incontext_linear.probing.selectivity import (
    appearance_tables,
    overlap_table,
    score_table,
    selectivity_table,
)
from incontext_linear.probing.states import collect_states
from incontext_linear.probing.targets import Target, build_targets, target_values

__all__ = [
    "Column",
    "LinearReadout",
    "ProbeFit",
    "ProbeSet",
    "Split",
    "Target",
    "appearance_tables",
    "build_targets",
    "collect_states",
    "fit_probes",
    "overlap_table",
    "progress_tables",
    "read_predictions",
    "score_table",
    "selectivity_table",
    "split_prompts",
    "target_values",
]
