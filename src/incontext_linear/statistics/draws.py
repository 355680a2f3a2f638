"""Resampling counts over prompts, seeds, and prompts within seeds, and the means made from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt

_BLOCK = 2**22  # numbers of a block of resampling counts, as float64: 32 MiB
_KEPT = 2**27  # counts that are kept between calls; more are drawn again, block by block
_SAMPLES = 2**12  # whose counts, where kept, are multiplied together: BLAS likes it square


@dataclass(frozen=True)
class Draws:
    """How often each sample is drawn in each resample; equal draws are equal counts.

    Counts are drawn block by block, so that 100,000 prompts fit; of moderate size they are kept, so
    that many predictors share one draw at no cost.

    Attributes:
        num_samples: n.
        num_resamples: R.
        entropy: what the counts follow from.
        sizes: number of samples drawn in each resample; None: n in all.
    """

    num_samples: int
    num_resamples: int
    entropy: tuple[int, ...]
    sizes: tuple[int, ...] | None = None

    def blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "block sample"]]]:
        """Counts of a few resamples at a time, with their place among all."""
        for rows, counts in _kept(self) if self._small else _drawn(self):
            yield rows, counts.astype(float)

    def counts(self) -> Float[np.ndarray, "resample sample"]:
        """All counts at once; R × n numbers."""
        return np.concatenate([counts for _, counts in self.blocks()])

    def sums(
        self, values: Float[np.ndarray, "sample column"]
    ) -> Float[np.ndarray, "resample column"]:
        """Σ counts · values in every resample."""
        return self.sums_and_counts([values], np.empty((0, 0), dtype=int))[0]

    def sums_and_counts(
        self,
        values: Sequence[Float[np.ndarray, "sample ..."]],
        places: Int[np.ndarray, "row place"],
    ) -> tuple[Float[np.ndarray, "resample column"], Float[np.ndarray, "resample row place"]]:
        """`sums` of arrays side by side, and the counts of the samples at some places."""
        for part in values:
            if len(part) != self.num_samples:
                raise ValueError(
                    f"values has {len(part)} samples; allowed: {self.num_samples}, as drawn"
                )
        total = np.zeros((self.num_resamples, sum(part.shape[1] for part in values)))
        found = np.empty((self.num_resamples, *places.shape))
        if not self._small:
            columns = np.hstack(values)
            for rows, counts in self.blocks():
                total[rows], found[rows] = counts @ columns, counts[:, places]
            return total, found
        for rows, counts in _kept(self):
            found[rows] = counts[:, places]
        wide = np.empty((self.num_resamples, min(self.num_samples, _SAMPLES)))
        for start in range(0, self.num_samples, _SAMPLES):
            some = slice(start, start + _SAMPLES)
            columns = np.hstack([part[some] for part in values])
            for rows, counts in _kept(self):
                wide[rows, : len(columns)] = counts[:, some]
            total += wide[:, : len(columns)] @ columns
        return total, found

    @property
    def _small(self) -> bool:
        return self.num_samples * self.num_resamples <= _KEPT


def _drawn(draws: Draws) -> Iterator[tuple[slice, UInt[np.ndarray, "block sample"]]]:
    """The counts, each block from a stream of its own."""
    size = max(1, _BLOCK // draws.num_samples)
    for block, start in enumerate(range(0, draws.num_resamples, size)):
        stop = min(start + size, draws.num_resamples)
        # The length ends the entropy: NumPy takes [1] and [1, 0] for the same.
        rng = np.random.default_rng([*draws.entropy, block, len(draws.entropy)])
        sizes = (
            np.full(draws.num_resamples, draws.num_samples) if draws.sizes is None else draws.sizes
        )
        sizes = np.asarray(sizes[start:stop])
        chosen = rng.integers(draws.num_samples, size=sizes.sum())
        chosen += np.repeat(np.arange(stop - start) * draws.num_samples, sizes)
        counts = np.bincount(chosen, minlength=(stop - start) * draws.num_samples)
        kind = np.min_scalar_type(counts.max())
        yield slice(start, stop), counts.astype(kind).reshape(stop - start, -1)


@lru_cache(maxsize=2)
def _kept(draws: Draws) -> list[tuple[slice, UInt[np.ndarray, "block sample"]]]:
    return list(_drawn(draws))


def sample_draws(num_samples: int, num_resamples: int, seed: int) -> Draws:
    """Draw n of n samples with replacement, R times; the same arguments give the same counts.

    Raises:
        ValueError: if there is no sample.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} cannot be resampled; allowed: at least 1")
    return Draws(num_samples, num_resamples, (seed,))


def nested_draws(
    seeds: Sequence[int], position: int, num_prompts: int, num_resamples: int, seed: int
) -> Draws:
    """Draw seeds, and within each drawn seed its prompts (Davison and Hinkley 1997, section 3.8).

    A seed that is drawn twice gets two draws of its prompts, one that is not gets none. The same
    arguments give the same counts, so axis values of a sweep with the same seeds share all draws.

    Args:
        seeds: the seeds that are resampled together, sorted.
        position: which of them the counts are for.
        num_prompts: its number of prompts P.
        num_resamples: R.
        seed: of the draws.

    Returns:
        Counts over P prompts. With S seeds of P prompts each, those of all seeds sum to S · P.
    """
    if not 0 <= position < len(seeds):
        raise ValueError(f"position={position} names no seed; allowed: 0 to {len(seeds) - 1}")
    drawn = sample_draws(len(seeds), num_resamples, seed).counts()[:, position]
    sizes = tuple((drawn.astype(int) * num_prompts).tolist())
    return Draws(num_prompts, num_resamples, (seed, len(seeds), *seeds, position), sizes)


def nested_weights(
    seeds: Sequence[int], position: int, num_prompts: int, num_resamples: int, seed: int
) -> Float[np.ndarray, "resample prompt"]:
    """`nested_draws` as weights: a resample's mean is the sum over seeds of weights @ values.

    Over all seeds the weights of a resample sum to 1, each drawn seed having an equal part.
    """
    draws = nested_draws(seeds, position, num_prompts, num_resamples, seed)
    return draws.counts() / (len(seeds) * num_prompts)


def resampled_means(
    values: Float[np.ndarray, "candidate sample cell"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample candidate cell"]:
    """Means over the samples in every resample, the same samples for all candidates and cells."""
    num_candidates, num_samples, num_cells = values.shape
    by_sample = np.moveaxis(values, 1, 0).reshape(num_samples, -1)
    sums = sample_draws(num_samples, num_resamples, seed).sums(by_sample)
    return (sums / num_samples).reshape(num_resamples, num_candidates, num_cells)


def crossed_means(
    values: Float[np.ndarray, "seed prompt column"], num_resamples: int, seed: int
) -> Float[np.ndarray, "resample column"]:
    """Means of each column over seeds and prompts, both resampled, where all seeds share prompts.

    The same seeds and prompts are drawn for every column, and for every array of the same shape:
    differences of resampled means are paired. With one seed only prompts vary.
    """
    num_seeds, num_prompts, num_columns = values.shape
    by_prompt = np.moveaxis(values, 1, 0).reshape(num_prompts, -1)
    sums = sample_draws(num_prompts, num_resamples, seed).sums(by_prompt)
    seeds = Draws(num_seeds, num_resamples, (seed, 1)).counts()
    by_seed = sums.reshape(num_resamples, num_seeds, num_columns)
    return np.einsum("rs,rsc->rc", seeds, by_seed) / (num_seeds * num_prompts)
