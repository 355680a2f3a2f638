"""Which algorithm a learner behaves like: divergences from the textbook algorithms (paper, section
4).
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

__all__ = [
    "ComparisonConfig",
    "ImplicitWeights",
    "curve",
    "implicit_weight_difference",
    "implicit_weights",
    "predict_queries",
    "squared_prediction_difference",
]
