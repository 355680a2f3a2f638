"""Which family of algorithms explains the learner best at each step, and with which numbers.

At every snapshot each family's free numbers (ridge's λ, gradient descent's m) are fitted on some
prompts and scored on others, so that a family with more numbers has no advantage and no grid's edge
is taken for an answer. A score is the mean over k ≥ 1 of log(SPD_k / Var(y)), what
`comparison.fitting` minimises.

Members of two families can be so alike that no learner of this accuracy tells them apart. `planted`
measures that: it puts each family's own best member in the learner's place, with the learner's own
residuals, and the same fits must then name the planted family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.comparison.families import (
    DEFAULT_FAMILIES,
    Family,
    FamilyConfig,
    Grid,
    Member,
    build_families,
)
from incontext_linear.comparison.fitting import FLOOR, Calibration, fit_family
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.config import BootstrapConfig, TaskConfig
from incontext_linear.dynamics.behaviour import Predictions
from incontext_linear.predictors import OrdinaryLeastSquares
from incontext_linear.predictors.base import LinearPredictor
from incontext_linear.predictors.validation import Number
from incontext_linear.statistics import Draws, sample_draws, seeds_interval
from incontext_linear.tasks import Prompts, Xs, Ys, generator

REFERENCE = "ridge"
"""The family that all others are compared with."""
FLOW_STEP = 2e-3
"""Step size of the family ``gradient_flow``, times n + d: one step of it is next to nothing."""
KEPT = (
    "zero",
    "least_squares",
    "bayes",
    "first_examples",
    "ridge",
    "newton",
    "gradient_descent",
)
"""Those of `comparison.families` that a training is followed with."""


@dataclass(frozen=True)
class ScaledLeastSquares(LinearPredictor):
    """Least squares times one number: shrinks every direction alike, as no regularised fit does.

    Args:
        scale: c of ŵ = c X⁺y.
    """

    scale: Number

    def weights(self, xs: Xs, ys: Ys) -> Float[Tensor, "batch example dim"]:
        """Fitted weights (B, n, d), as `LinearPredictor.weights` defines them."""
        return self.scale * OrdinaryLeastSquares().weights(xs, ys)


class _ScaledFamily(Family):
    """`ScaledLeastSquares`: the spectral filter that leaves the error 1 − c in every direction."""

    def predict(
        self, members: Sequence[Mapping[str, Number]], prefixes: Prefixes
    ) -> Float[Tensor, "member batch prefix"]:
        scales = torch.tensor([float(numbers["scale"]) for numbers in members])
        error = (1 - scales.to(prefixes.xs))[:, None, None, None]
        return prefixes.spectrum.predict(error.expand(-1, *prefixes.spectrum.values.shape))


def training_families(
    task: TaskConfig, own: Mapping[str, FamilyConfig | None] | None = None
) -> list[Family]:
    """The families that a training is followed with.

    ``gradient_flow`` is gradient descent with very small steps: their number is its only free
    number, as λ is ridge's. ``gradient_descent`` has a step size of its own beside it.

    Args:
        task: of the training; a pool adds its posterior mean.
        own: families beside these, or in their place; None takes one away.
    """
    step_size = FLOW_STEP / (task.num_examples + task.dim)
    chosen: dict[str, FamilyConfig | None] = {
        name: None for name in DEFAULT_FAMILIES if name not in KEPT
    }
    chosen["gradient_flow"] = FamilyConfig(
        type="GradientDescent",
        free={"num_steps": Grid(low=1, high=2**20, points=41, kind="integer")},
        arguments={"step_size": step_size},
        label=f"gradient descent in small steps (α = {step_size:.2g})",
    )
    if task.noise_std == 0:
        chosen["bayes"] = None  # the same as least squares
    scaled = FamilyConfig(
        type=f"{__name__}.ScaledLeastSquares",
        free={"scale": Grid(low=0.0, high=1.0, points=21, scale="linear")},
        label="least squares, scaled",
    )
    families = build_families(task, chosen | dict(own or {}))
    return [*families, _ScaledFamily("scaled", scaled.label or "", scaled, task)]


@dataclass(frozen=True)
class TrainingFits:
    """Each family's nearest member at every step of every training.

    Attributes:
        families: F of them.
        members: by family, of every seed and step.
        edges: (F, S, T), whether a number is at an end of where it was looked for.
        shares: (F, S, T, B, K), squared differences to the learners on the prompts that score, as
            shares of Var(y).
    """

    families: list[Family]
    members: dict[str, list[list[Member]]]
    edges: np.ndarray
    shares: Float[np.ndarray, "family seed step batch prefix"] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Of the families."""
        return [family.name for family in self.families]

    @property
    def scores(self) -> Float[np.ndarray, "family seed step"]:
        """Mean over k of log SPD; the lower the nearer."""
        return np.log(self.shares.mean(3) + FLOOR).mean(-1)


@dataclass(frozen=True)
class FitPrompts:
    """Prompts on which numbers are fitted, and others on which families are scored.

    Attributes:
        fit: the first.
        score: the second.
        scale: Var(y), what squared differences are divided by.
    """

    fit: Prefixes
    score: Prefixes
    scale: float

    @classmethod
    def split(cls, prompts: Prompts, num_fit: int) -> "FitPrompts":
        """The first ``num_fit`` prompts fit, the rest scores; k from 1 on."""
        xs, ys = prompts.xs.double(), prompts.ys.double()
        seen = tuple(range(1, xs.shape[1]))
        scale = ys.square().mean().item()
        return cls(
            Prefixes(xs[:num_fit], ys[:num_fit], seen),
            Prefixes(xs[num_fit:], ys[num_fit:], seen),
            scale,
        )

    def halves(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """A learner's predictions (…, B, n) on the two, from k = 1 on."""
        num_fit = len(self.fit.ys)
        wide = predictions[..., 1:].double()
        return wide[..., :num_fit, :], wide[..., num_fit:, :]


def fit_along_training(
    predictions: Predictions, prompts: FitPrompts, families: Sequence[Family]
) -> TrainingFits:
    """Fit every family to every learner.

    Args:
        predictions: of the learners, or of anything planted in their place, on the prompts that
            fit and then on those that score.
        prompts: both.
        families: as `training_families` gives them.
    """
    fitted, scored = prompts.halves(predictions)
    num_seeds, num_steps = predictions.shape[:2]
    scale = torch.full((1, 1), prompts.scale, dtype=torch.float64)
    members: dict[str, list[list[Member]]] = {}
    edges = np.zeros((len(families), num_seeds, num_steps), dtype=bool)
    shares = np.empty((len(families), *scored.shape), dtype=np.float32)
    for f, family in enumerate(families):
        fixed = None if family.grids else family.member({}).predict(prompts.score)
        members[family.name] = []
        for s in range(num_seeds):
            row = []
            for t in range(num_steps):
                member = family.member({})
                if family.grids:
                    calibration = Calibration(prompts.fit, fitted[s, t], scale)
                    member = fit_family(family, calibration).member
                    edges[f, s, t] = _at_edge(member)
                answer = member.predict(prompts.score) if fixed is None else fixed
                shares[f, s, t] = ((answer - scored[s, t]).square() / prompts.scale).numpy()
                row.append(member)
            members[family.name].append(row)
    return TrainingFits(list(families), members, edges, shares)


def _at_edge(member: Member) -> bool:
    grids = member.family.grids
    return any(
        np.isclose(member.numbers[name], grid.value(end), rtol=1e-6)
        for name, grid in grids.items()
        for end in grid.ends
    )


def fit_table(fits: TrainingFits, seeds: Sequence[int], steps: Sequence[int]) -> pd.DataFrame:
    """One row a family, seed, step and free number.

    Returns:
        ``family``, ``seed``, ``step``, ``number`` (the free number's name, empty without any),
        ``value``, ``at_edge``, ``score`` and ``nearest``, whether its score is the best of all
        families there.
    """
    scores = fits.scores
    best = scores.argmin(0)
    rows = []
    for f, family in enumerate(fits.families):
        for s, one in enumerate(seeds):
            for t, step in enumerate(steps):
                numbers = fits.members[family.name][s][t].numbers or {"": float("nan")}
                score = scores[f, s, t], bool(best[s, t] == f)
                for name, value in numbers.items():
                    edge = bool(fits.edges[f, s, t])
                    rows.append((family.name, one, step, name, float(value), edge, *score))
    columns = ["family", "seed", "step", "number", "value", "at_edge", "score", "nearest"]
    return pd.DataFrame(rows, columns=columns)


def comparison_table(
    fits: TrainingFits,
    steps: Sequence[int],
    bootstrap: BootstrapConfig,
    seed: int,
    reference: str = REFERENCE,
) -> pd.DataFrame:
    """Every family against one, at every step, over seeds and prompts.

    Returns:
        ``step``, ``family``, ``log_ratio``: how much larger the mean over k of log SPD is than the
        reference's (above 0 the reference is nearer), ``low``, ``high`` (seeds and prompts
        resampled), ``seeds`` and ``positive``, in how many of them it is above 0.
    """
    of = fits.names.index(reference)
    rows = []
    for t, step in enumerate(steps):
        observed = fits.scores[:, :, t] - fits.scores[of, :, t]  # (F, S)
        drawn = _resampled_scores(fits.shares[:, :, t], bootstrap.num_resamples, seed)
        drawn = drawn - drawn[:, [of]]
        mean, num_seeds = observed.mean(1), observed.shape[1]
        low, high = seeds_interval(drawn, mean, num_seeds, bootstrap.confidence)
        for f, name in enumerate(fits.names):
            if f != of:
                positive = int((observed[f] > 0).sum())
                rows.append((step, name, mean[f], low[f], high[f], num_seeds, positive))
    columns = ["step", "family", "log_ratio", "low", "high", "seeds", "positive"]
    return pd.DataFrame(rows, columns=columns)


def _resampled_scores(
    shares: Float[np.ndarray, "family seed batch prefix"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample family"]:
    """Scores over resampled seeds and prompts: the logarithm stands between the two means, which
    is why `crossed_means` does not do.
    """
    num_families, num_seeds, num_prompts, num_prefixes = shares.shape
    by_prompt = np.moveaxis(shares, 2, 0).reshape(num_prompts, -1).astype(float)
    means = sample_draws(num_prompts, num_resamples, seed).sums(by_prompt) / num_prompts
    logs = np.log(means.reshape(-1, num_families, num_seeds, num_prefixes) + FLOOR).mean(-1)
    counts = Draws(num_seeds, num_resamples, (seed, 1)).counts()
    return np.einsum("rs,rfs->rf", counts, logs) / num_seeds


def planted(
    fits: TrainingFits, predictions: Predictions, prompts: FitPrompts, family: str, seed: int
) -> Predictions:
    """What the learners would have predicted had a family been their algorithm.

    At every seed and step: the family's fitted member, and the learner's residuals from its nearest
    family, each prompt's with a random sign. So the planted learner misses its algorithm by as much
    as the learner misses the nearest one, on the same prompts and at the same k.
    """
    nearest = fits.scores.argmin(0)
    rng = generator(seed, f"planted {family}")
    made = torch.zeros_like(predictions, dtype=torch.float64)
    for s, row in enumerate(fits.members[family]):
        for t, member in enumerate(row):
            own = fits.members[fits.names[nearest[s, t]]][s][t]
            answer, explained = (
                torch.cat([one.predict(prompts.fit), one.predict(prompts.score)])
                for one in (member, own)
            )
            residual = predictions[s, t, :, 1:].double() - explained
            signs = torch.randint(2, (len(residual), 1), generator=rng) * 2 - 1
            made[s, t, :, 1:] = answer + signs * residual
    return made


def power_table(
    fits: TrainingFits,
    predictions: Predictions,
    prompts: FitPrompts,
    planted_families: Sequence[str],
    steps: Sequence[int],
    bootstrap: BootstrapConfig,
    seed: int,
) -> pd.DataFrame:
    """What the fits say of planted families: `comparison_table` with the column ``planted``.

    Also ``recovered``: the median over seeds of fitted over planted number (the first), for the
    planted family itself.
    """
    tables = []
    for name in planted_families:
        made = planted(fits, predictions, prompts, name, seed)
        found = fit_along_training(made, prompts, fits.families)
        table = comparison_table(found, steps, bootstrap, seed).assign(planted=name)
        ratios = pd.Series(
            [
                np.median(
                    [
                        _ratio(found.members[name][s][t], fits.members[name][s][t])
                        for s in range(len(predictions))
                    ]
                )
                for t in range(len(steps))
            ],
            index=list(steps),
        )
        tables.append(table.assign(recovered=table["step"].map(ratios)))
    return pd.concat(tables, ignore_index=True)


def _ratio(found: Member, meant: Member) -> float:
    name = next(iter(meant.numbers), "")
    return float(found.numbers[name] / meant.numbers[name]) if name else 1.0
