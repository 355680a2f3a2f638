"""The textbook algorithms, all in the one form ``predictor(xs, ys) -> predictions``."""

from incontext_linear.predictors.averaging import Averaging
from incontext_linear.predictors.base import LinearPredictor, Predictor
from incontext_linear.predictors.bayes import BayesPosteriorMean, DiscreteMMSE
from incontext_linear.predictors.decaying_sgd import DecayingSGD
from incontext_linear.predictors.gradient import GradientDescent, OnePassSGD
from incontext_linear.predictors.iterative import (
    Chebyshev,
    ConjugateGradients,
    HeavyBall,
    PreconditionedGradientDescent,
    Richardson,
)
from incontext_linear.predictors.least_squares import FirstExamples, OrdinaryLeastSquares, Ridge
from incontext_linear.predictors.neighbors import NearestNeighbors
from incontext_linear.predictors.newton import IterativeNewton
from incontext_linear.predictors.optimal_step import OptimalStep
from incontext_linear.predictors.registry import Baselines, build_predictor, build_predictors

__all__ = [
    "Averaging",
    "Baselines",
    "BayesPosteriorMean",
    "Chebyshev",
    "ConjugateGradients",
    "DecayingSGD",
    "DiscreteMMSE",
    "FirstExamples",
    "GradientDescent",
    "HeavyBall",
    "IterativeNewton",
    "LinearPredictor",
    "NearestNeighbors",
    "OnePassSGD",
    "OptimalStep",
    "OrdinaryLeastSquares",
    "PreconditionedGradientDescent",
    "Predictor",
    "Richardson",
    "Ridge",
    "build_predictor",
    "build_predictors",
]
