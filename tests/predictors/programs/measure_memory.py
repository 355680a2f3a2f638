"""Peak memory of the predictors on many prompts."""

import resource

import torch

from incontext_linear.predictors import (
    Averaging,
    DiscreteMMSE,
    GradientDescent,
    IterativeNewton,
    NearestNeighbors,
    OnePassSGD,
    Ridge,
)

torch.set_num_threads(1)
xs = torch.randn(10_000, 40, 8, dtype=torch.float64)
ys = torch.randn(10_000, 40, dtype=torch.float64)
predictors = [Ridge(0.1), GradientDescent(0.01, 2), NearestNeighbors(3), IterativeNewton(1)]
predictors.append(Averaging())
predictors += [OnePassSGD(0.01), DiscreteMMSE(torch.randn(256, 8), 0.5)]
for predictor in predictors:
    predictor(xs[:10], ys[:10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for predictor in predictors:
    predictor(xs, ys)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
