"""The textbook algorithms, all in the one form ``predictor(xs, ys) -> predictions``."""

from incontext_linear.predictors.averaging import Averaging
from incontext_linear.predictors.base import LinearPredictor, Predictor
from incontext_linear.predictors.bayes import BayesPosteriorMean, DiscreteMMSE
from incontext_linear.predictors.gradient import GradientDescent, OnePassSGD
from incontext_linear.predictors.least_squares import FirstExamples, OrdinaryLeastSquares, Ridge
from incontext_linear.predictors.neighbors import NearestNeighbors
from incontext_linear.predictors.newton import IterativeNewton
from incontext_linear.predictors.registry import Baselines, build_predictor, build_predictors

__all__ = [
    "Averaging",
    "Baselines",
    "BayesPosteriorMean",
    "DiscreteMMSE",
    "FirstExamples",
    "GradientDescent",
    "IterativeNewton",
    "LinearPredictor",
    "NearestNeighbors",
    "OnePassSGD",
    "OrdinaryLeastSquares",
    "Predictor",
    "Ridge",
    "build_predictor",
    "build_predictors",
]
