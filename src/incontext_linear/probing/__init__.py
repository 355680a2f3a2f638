"""Probes: which quantities can be read from the hidden states, in which layer, and whether they are
used (paper, section 5).

targets        what is looked for: Xᵀy, least-squares and ridge weights, XᵀX, a user's own
selection      what is probed, chosen once: prompts, layers, targets, split
states         the hidden states of one or several learners
readouts       the probes: attention over positions, then a linear or an MLP read-out
fitting        all of them trained in one batched pass, and scored on held-out prompts
controls       the same probes where they should find nothing
selectivity    compared with the controls: how much is the learner's own, and from which layer on
interventions  what a layer holds is changed: does the prediction follow?
layerwise      predictions read out of every layer, beside the steps of iterative algorithms
calibration    all of this on a network whose algorithm is known
"""

from incontext_linear.probing.fitting import Column, ProbeFit, Split, fit_probes, split_prompts
from incontext_linear.probing.interventions import Intervention, LayerStates
from incontext_linear.probing.layerwise import progress_tables, read_predictions
from incontext_linear.probing.readouts import LinearReadout, ProbeSet
from incontext_linear.probing.selection import Selection, select
from incontext_linear.probing.selectivity import overlap_table, score_table, selectivity_tables
from incontext_linear.probing.states import collect_hidden_states, collect_states
from incontext_linear.probing.targets import Target, build_targets, target_values

__all__ = [
    "Column",
    "Intervention",
    "LayerStates",
    "LinearReadout",
    "ProbeFit",
    "ProbeSet",
    "Selection",
    "Split",
    "Target",
    "build_targets",
    "collect_hidden_states",
    "collect_states",
    "fit_probes",
    "overlap_table",
    "progress_tables",
    "read_predictions",
    "score_table",
    "select",
    "selectivity_tables",
    "split_prompts",
    "target_values",
]
