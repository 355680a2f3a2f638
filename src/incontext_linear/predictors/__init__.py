"""The textbook algorithms, all in the one form ``predictor(xs, ys) -> predictions``."""

from incontext_linear.predictors.base import LinearPredictor, Predictor

__all__ = ["LinearPredictor", "Predictor"]
