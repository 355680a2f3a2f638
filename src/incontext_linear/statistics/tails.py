"""The upper tail of a mean: generalised Pareto, with the posterior of its mean excess.

The few largest of n heavy-tailed values decide their mean, and a resample can draw no larger ones.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from incontext_linear.statistics.draws import Draws

TAIL_SIZE = 32
"""The tail is fitted to the TAIL_SIZE largest values; to the √n largest of fewer than 1,024."""
TAIL_PRIOR = 0.75
"""Prior of the tail's shape ξ on (0, 1): density ∝ (1 − ξ)^TAIL_PRIOR."""
FEWEST_EXCESSES = 10
"""With fewer distinct samples above the threshold no tail is fitted."""

_SHAPES = (np.arange(48) + 0.5) / 48  # grid of ξ
_RATES = np.geomspace(1e-3, 50, 64)  # grid of θ = ξ/σ, in units of 1 / (the median excess)
_LOG_RATIOS = np.log(_RATES[:, None] / _SHAPES)
_LOG_PRIOR = TAIL_PRIOR * np.log1p(-_SHAPES)
_UNORDERED = (_SHAPES / (_RATES[:, None] * (1 - _SHAPES))).ravel()
_ORDER = _UNORDERED.argsort()
_MEAN_EXCESSES = _UNORDERED[_ORDER]  # σ/(1 − ξ) of every point of both grids, the smallest first


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto tail above each column's threshold u ≥ 0.

    The mean of a resample is that of min(x, u), plus the share of samples above u times the mean
    excess; the last is drawn from its posterior instead of averaged over the resample.
    """

    places: Int[np.ndarray, "column place"]
    """Samples with the largest values of each column."""
    excess: Float[np.ndarray, "column place"]
    """By how much each of them is above the column's threshold; 0 where it is not."""
    mean_excess: Float[np.ndarray, "resample column"]
    """NaN for a column without a tail."""

    @classmethod
    def fit(
        cls,
        values: Float[np.ndarray, "sample column"],
        number: Int[np.ndarray, " column"],
        draws: Draws,
    ) -> "Tail":
        """Threshold below the `TAIL_SIZE` largest values; no tail for columns with few above it.

        Args:
            values: of which the positive ones have a tail; 0 where nothing is present.
            number: how many are present.
            draws: of which the tail's draws follow.
        """
        count = np.ceil(np.sqrt(number)).astype(int).clip(max=min(TAIL_SIZE, len(values) - 1))
        largest = int(count.max(initial=0)) + 1
        places = np.empty((values.shape[1], largest), dtype=int)
        found = np.empty((values.shape[1], largest))
        for column, row in enumerate(values.T):  # one at a time: all places are eight bytes each
            positive = np.maximum(row, 0.0)
            places[column] = np.argpartition(positive, -largest)[-largest:]
            found[column] = positive[places[column]]
        threshold = np.take_along_axis(np.sort(found, axis=1)[:, ::-1], count[:, None], axis=1)
        excess = (found - threshold).clip(0)
        excess[(excess > 0).sum(1) < FEWEST_EXCESSES] = 0
        return cls(places, excess, draw_mean_excess(excess, draws))

    def change(
        self, drawn: Float[np.ndarray, "resample column place"]
    ) -> Float[np.ndarray, "resample column"]:
        """What to add to resampled sums, the samples at `places` being drawn so often: the tail's
        excesses in place of those that were drawn.
        """
        above = np.einsum("bcp,cp->bc", drawn, (self.excess > 0).astype(float))
        return above * self.mean_excess - np.einsum("bcp,cp->bc", drawn, self.excess)


def draw_mean_excess(
    excess: Float[np.ndarray, "column place"], draws: Draws
) -> Float[np.ndarray, "resample column"]:
    """Draw E(x − u | x > u) = σ/(1 − ξ) from its posterior, given excesses above u; NaN without
    any.

    With θ = ξ/σ and S(θ) = Σ log(1 + θ(x − u)) the log likelihood of m excesses is
    m log θ − m log ξ − (1 + 1/ξ) S(θ); the prior is uniform in log θ, and (1 − ξ)^TAIL_PRIOR in ξ.
    The posterior is summed on a grid. Each column uses the same levels, so columns stay paired.
    """
    rng = np.random.default_rng([*draws.entropy, draws.num_samples, 0, 1])
    levels = (rng.permutation(draws.num_resamples) + 0.5) / draws.num_resamples
    drawn = np.full((draws.num_resamples, len(excess)), np.nan)
    for column, places in enumerate(excess):
        known = places[places > 0]
        if not len(known):
            continue
        unit = np.median(known)
        logs = np.log1p(_RATES[:, None] * (known / unit)).sum(1)[:, None]
        posterior = len(known) * _LOG_RATIOS - (1 + 1 / _SHAPES) * logs
        posterior += _LOG_PRIOR
        posterior -= posterior.max()  # a softmax, without SciPy's checks a column
        weights = np.exp(posterior, out=posterior)
        weights /= weights.sum()
        chosen = np.searchsorted(weights.ravel()[_ORDER].cumsum(), levels)
        drawn[:, column] = _MEAN_EXCESSES[chosen.clip(max=len(_ORDER) - 1)] * unit
    return drawn
