"""Which algorithm a learner behaves like, on which evidence, and where it stops (paper, section 4).

divergence       SPD, implicit weights, ILWD; `curves` are the tables of a comparison
families         candidates with free numbers; `fitting` fits them to a learner
shifts           changes of the prompts' distribution at test time
symmetries       what an algorithm has exactly, and others have not
conditions       where candidates part, and whom the learner follows there
adversarial      likely prompts on which two candidates differ most
evidence         what rules a candidate out
verdict          what the evidence leaves standing, in a table and in words
identification   the method in one call; `trial` tries it on learners that are known
filters          a learner's answer in the eigenbasis of XᵀX, and each layer's
"""

from incontext_linear.comparison.config import ComparisonConfig
from incontext_linear.comparison.divergence import (
    ImplicitWeights,
    curve,
    implicit_weight_difference,
    implicit_weights,
    predict_queries,
    squared_prediction_difference,
)
from incontext_linear.comparison.identification import (
    Identification,
    IdentificationConfig,
    identify,
)
from incontext_linear.comparison.verdict import Verdict, judge, over_seeds

__all__ = [
    "ComparisonConfig",
    "Identification",
    "IdentificationConfig",
    "ImplicitWeights",
    "Verdict",
    "curve",
    "identify",
    "implicit_weight_difference",
    "implicit_weights",
    "judge",
    "over_seeds",
    "predict_queries",
    "squared_prediction_difference",
]
