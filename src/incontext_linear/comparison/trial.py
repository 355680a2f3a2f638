"""A blind trial of the method: learners whose algorithm is known, and what the method says of each.

A zoo holds members of every family with numbers that are on no grid, with noise on their
predictions; constructed networks; and learners that are in no family. Zoos of different seeds have
different numbers, noise and random networks: thresholds are chosen on one and reported on another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from incontext_linear import construction
from incontext_linear.comparison.verdict import Verdict
from incontext_linear.config import ModelConfig, TaskConfig
from incontext_linear.learner.transformer import Transformer
from incontext_linear.predictors import (
    Averaging,
    Chebyshev,
    ConjugateGradients,
    DecayingSGD,
    FirstExamples,
    GradientDescent,
    HeavyBall,
    IterativeNewton,
    NearestNeighbors,
    OnePassSGD,
    OrdinaryLeastSquares,
    PreconditionedGradientDescent,
    Predictor,
    Richardson,
    Ridge,
)
from incontext_linear.predictors.validation import Number
from incontext_linear.tasks import Xs, Ys, draw_prompts, generator

NONE = "none of these"
"""The right answer for a learner that is in no family."""


@dataclass(frozen=True)
class KnownLearner:
    """A learner whose algorithm is known.

    Attributes:
        name: what tables call it.
        truth: families that it is a member of, several where they are the same algorithm; empty:
            none of these.
        predictor: in the one form.
        noise: variance of the noise on its predictions, as a share of Var(y).
    """

    name: str
    truth: tuple[str, ...]
    predictor: Predictor
    noise: float


@dataclass(frozen=True)
class Noisy:
    """A predictor with noise, a fixed, erratic function of the query and of what was seen."""

    predictor: Predictor
    std: float
    seed: int

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        directions = np.random.default_rng(self.seed).standard_normal(xs.shape[-1] + 1)
        direction = torch.from_numpy(directions).to(xs.device)
        wide = xs.double()
        phase = (wide * direction[:-1]).sum(-1) * 1e3
        seen = torch.cat((torch.zeros_like(phase[:, :1]), ys[:, :-1].double().cumsum(1)), 1)
        uniform = torch.frac(torch.sin(phase + 1e3 * direction[-1] * seen) * 1e4).abs()
        normal = torch.erfinv((2 * uniform - 1).clamp(-1 + 1e-9, 1 - 1e-9)) * 2**0.5
        return (self.predictor(xs, ys) + self.std * normal).to(xs.dtype)


@dataclass(frozen=True)
class InFloat64:
    """A predictor that takes float64, asked in any dtype: the constructed networks."""

    predictor: Predictor

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        return self.predictor(xs.double(), ys.double()).to(xs.dtype)


@dataclass(frozen=True)
class Switching:
    """One algorithm up to k examples, another one from there on."""

    few: Predictor
    many: Predictor
    examples_seen: int

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        k = torch.arange(ys.shape[1], device=ys.device)
        return torch.where(k <= self.examples_seen, self.few(xs, ys), self.many(xs, ys))


@dataclass(frozen=True)
class Blend:
    """A weighted sum of predictors."""

    predictors: tuple[Predictor, ...]
    shares: tuple[float, ...]

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        pairs = zip(self.shares, self.predictors, strict=True)
        return sum(share * predictor(xs, ys) for share, predictor in pairs)


@dataclass(frozen=True)
class RidgeByContext:
    """Ridge regression with the penalty λ (k/d)^p, which no single λ gives."""

    penalty: float
    power: float

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        dim = xs.shape[-1]
        columns = [
            Ridge(self.penalty * (max(k, 1) / dim) ** self.power)(xs[:, : k + 1], ys[:, : k + 1])[
                :, k
            ]
            for k in range(ys.shape[1])
        ]
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class RecentExamples:
    """Least squares on the last m examples alone."""

    num_examples: int

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        columns = []
        for k in range(ys.shape[1]):
            first = max(0, k - self.num_examples)
            window = OrdinaryLeastSquares()(xs[:, first : k + 1], ys[:, first : k + 1])
            columns.append(window[:, -1])
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class RandomNetwork:
    """A smooth random function of the query and of the last example."""

    seed: int
    scale: float

    def __call__(self, xs: Xs, ys: Ys) -> Ys:
        """Predictions (B, n)."""
        rng = np.random.default_rng(self.seed)
        dim, hidden = xs.shape[-1], 32
        first = rng.standard_normal((2 * dim + 1, hidden)) / math.sqrt(2 * dim + 1)
        second = rng.standard_normal(hidden) / math.sqrt(hidden)
        before = torch.cat((torch.zeros_like(xs[:, :1]), xs[:, :-1]), 1)
        label = torch.cat((torch.zeros_like(ys[:, :1]), ys[:, :-1]), 1).unsqueeze(-1)
        inputs = torch.cat((xs, before, label), -1)
        hidden_units = torch.tanh(2 * inputs @ torch.from_numpy(first).to(xs))
        return self.scale * hidden_units @ torch.from_numpy(second).to(xs)


def make_zoo(task: TaskConfig, seed: int) -> list[KnownLearner]:
    """Learners with numbers, noise and weights that belong to the seed.

    Args:
        task: its inputs should have a variance of about 1, as step sizes suit them.
        seed: zoos of different seeds have no number in common.
    """
    rng = np.random.default_rng([seed, 2711])
    scale = float(draw_prompts(task, 4096, seed, stream="zoo").ys.square().mean())
    learners = []
    for position, (name, truth, predictor) in enumerate(
        [*_members(task, rng), *_constructed(task, rng), *_outsiders(task, rng, seed)]
    ):
        noise = float(10 ** rng.uniform(-4, -2))
        noisy = Noisy(predictor, (noise * scale) ** 0.5, 1000 * seed + position)
        learners.append(KnownLearner(name, truth, noisy, noise))
    return learners


Entry = tuple[str, tuple[str, ...], Predictor]


def _between(rng: np.random.Generator, low: Number, high: Number) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _members(task: TaskConfig, rng: np.random.Generator) -> list[Entry]:
    dim = task.dim
    safe = 1 / (8 * (task.num_examples + dim))  # a step size with which descent converges
    noiseless = ("least_squares", "bayes") if task.noise_std == 0 else ("least_squares",)
    few, some, many = (int(_between(rng, *ends)) for ends in ((2, 5), (8, 30), (60, 300)))
    weak, medium, strong = (_between(rng, *e) for e in ((0.01, 0.05), (0.1, 0.6), (1.5, 8)))
    step = lambda: _between(rng, safe / 2, 3 * safe)  # noqa: E731
    predictors: list[tuple[str, tuple[str, ...], Predictor]] = [
        ("zero", ("zero",), FirstExamples(0)),
        ("averaging", ("averaging",), Averaging()),
        ("least squares", noiseless, OrdinaryLeastSquares()),
        ("first examples", ("first_examples",), FirstExamples(int(rng.integers(1, dim + 3)))),
        ("first few examples", ("first_examples",), FirstExamples(int(rng.integers(1, dim)))),
        ("ridge, weak", ("ridge",), Ridge(weak)),
        ("ridge", ("ridge",), Ridge(medium)),
        ("ridge, strong", ("ridge",), Ridge(strong)),
        ("Newton, few", ("newton",), IterativeNewton(int(rng.integers(2, 4)))),
        ("Newton", ("newton",), IterativeNewton(int(rng.integers(5, 8)))),
        (
            "conjugate gradients",
            ("conjugate_gradients",),
            ConjugateGradients(int(rng.integers(1, dim))),
        ),
        ("neighbours", ("nearest_neighbors",), NearestNeighbors(int(rng.integers(2, 5)))),
        (
            "weighted neighbours",
            ("weighted_neighbors",),
            NearestNeighbors(int(rng.integers(2, 5)), "distance"),
        ),
        ("SGD", ("sgd",), OnePassSGD(_between(rng, 0.04, 0.12))),
        (
            "SGD, falling steps",
            ("decaying_sgd",),
            DecayingSGD(_between(rng, 0.08, 0.16), float(rng.uniform(0.3, 0.9))),
        ),
        (
            "SGD, weight decay",
            ("sgd_weight_decay",),
            OnePassSGD(_between(rng, 0.05, 0.12), _between(rng, 0.2, 0.8)),
        ),
        ("one step", ("gradient_descent",), GradientDescent(step(), 1)),
        ("descent, few", ("gradient_descent",), GradientDescent(step(), few)),
        ("descent", ("gradient_descent",), GradientDescent(step(), some)),
        ("descent, long", ("gradient_descent",), GradientDescent(step(), many)),
        ("Richardson", ("richardson",), Richardson(_between(rng, 0.4, 1.6), some)),
        (
            "Chebyshev",
            ("chebyshev",),
            Chebyshev(int(rng.integers(3, 7)), _between(rng, 5, 40)),
        ),
        (
            "Jacobi",
            ("diagonal_descent",),
            PreconditionedGradientDescent(_between(rng, 0.1, 0.2), few + 1),
        ),
        (
            "inverse covariance",
            ("covariance_descent",),
            PreconditionedGradientDescent(
                _between(rng, 0.25, 0.45), 1, "covariance", _between(rng, 0.05, 0.5)
            ),
        ),
        (
            # α times least squares is half a step along the inverse covariance, undamped.
            "shrunken least squares",
            ("covariance_descent",),
            Blend((OrdinaryLeastSquares(),), (float(rng.uniform(0.5, 0.8)),)),
        ),
        (
            "momentum",
            ("heavy_ball",),
            HeavyBall(step(), few + 6, float(rng.uniform(0.5, 0.85))),
        ),
    ]
    return predictors


def _constructed(task: TaskConfig, rng: np.random.Generator) -> list[Entry]:
    size = (task.dim, task.num_examples)
    safe = 1 / (8 * (task.num_examples + task.dim))
    descent = construction.gradient_descent(
        *size, step_size=_between(rng, safe, 3 * safe), num_steps=int(rng.integers(3, 9))
    )
    sgd = construction.one_pass_sgd(*size, step_size=_between(rng, 0.04, 0.12))
    ridge = construction.ridge(*size, penalty=_between(rng, 0.1, 1.0))
    return [
        ("constructed descent", ("gradient_descent",), InFloat64(descent)),
        ("constructed SGD", ("sgd",), InFloat64(sgd)),
        ("constructed ridge", ("ridge",), InFloat64(ridge)),
    ]


def _outsiders(task: TaskConfig, rng: np.random.Generator, seed: int) -> list[Entry]:
    dim, size = task.dim, (task.dim, 2 * task.num_examples)
    shallow = ModelConfig(num_layers=2, num_heads=2, width=32)
    deep = ModelConfig(num_layers=6, num_heads=4, width=64)
    untrained = [
        Transformer(*size, config).initialize(generator(seed, "zoo", i)).eval()
        for i, config in enumerate((shallow, deep))
    ]
    sgd, descent = (
        OnePassSGD(_between(rng, 0.05, 0.1)),
        GradientDescent(_between(rng, 0.004, 0.01), 3),
    )
    ols, neighbors = OrdinaryLeastSquares(), NearestNeighbors(int(rng.integers(1, 4)))
    share = float(rng.uniform(0.35, 0.65))
    entries: list[tuple[str, Predictor]] = [
        ("SGD, then least squares", Switching(sgd, ols, dim)),
        ("least squares, then descent", Switching(ols, descent, 2 * dim)),
        ("ridge, λ rises with k", RidgeByContext(_between(rng, 0.2, 0.8), 2.0)),
        ("ridge, λ falls with k", RidgeByContext(_between(rng, 0.5, 2.0), -2.0)),
        ("least squares and neighbours", Blend((ols, neighbors), (share, 1 - share))),
        ("least squares on recent examples", RecentExamples(dim + int(rng.integers(1, 3)))),
        ("random network", RandomNetwork(seed + 7, 1.5)),
        ("untrained transformer, 2 layers", untrained[0]),
        ("untrained transformer, 6 layers", untrained[1]),
    ]
    return [(name, (), predictor) for name, predictor in entries]


def answer_row(learner: KnownLearner, verdict: Verdict) -> dict[str, object]:
    """What the method said of one learner, beside the truth.

    ``strict``: the family named is the right one, or "none of these" is right and was said.
    ``lenient``: the right one is among those that were not told apart. ``wrong``: a family was
    named that is not the right one, which is not among those left standing either.
    ``confidently``: the family was named without a shift under which the learner leaves it.
    """
    named = verdict.named
    strict = named in learner.truth if learner.truth else named is None
    among = any(name in verdict.survivors for name in learner.truth)
    return {
        "learner": learner.name,
        "truth": learner.truth[0] if learner.truth else NONE,
        "noise": learner.noise,
        "named": named or NONE,
        "survivors": ", ".join(verdict.survivors),
        "strict": strict,
        "lenient": strict or among,
        "wrong": named is not None and not (strict or among),
        "confidently": verdict.confident,
        "evidence": _against_truth(learner.truth, verdict),
    }


def _against_truth(truth: Sequence[str], verdict: Verdict) -> str:
    """What ruled out the right answer, where something did."""
    found = [verdict.ruled_out[name] for name in truth if name in verdict.ruled_out]
    return found[0].words(verdict.members) if len(found) == len(truth) and found else ""


def summarize(answers: pd.DataFrame) -> pd.Series:
    """Counts: learners, right (strictly, leniently), wrong families named, and of the outsiders."""
    outside = answers[answers["truth"] == NONE]
    return pd.Series(
        {
            "learners": len(answers),
            "strict": int(answers["strict"].sum()),
            "lenient": int(answers["lenient"].sum()),
            "wrong": int(answers["wrong"].sum()),
            "confidently_wrong": int((answers["wrong"] & answers["confidently"]).sum()),
            "outsiders": len(outside),
            "outsiders_recognised": int(outside["strict"].sum()),
        }
    )


def confusion_matrix(answers: pd.DataFrame) -> pd.DataFrame:
    """Rows: the truth; columns: what was named; counts."""
    return pd.crosstab(answers["truth"], answers["named"])
