"""What some algorithms have exactly and others have not: a fingerprint that names no algorithm.

A symmetry is a sum of predictions, each of a changed prompt, that is 0 for what has it: prediction
− prediction of the permuted prompt, say. Its violation is the mean square of that sum as a share of
Var(y), at each k.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from incontext_linear.comparison.conditions import Candidate, as_candidate, prompt_intervals
from incontext_linear.comparison.shifts import noise_of, random_rotations, relabel
from incontext_linear.comparison.spectra import Prefixes
from incontext_linear.predictors import Predictor
from incontext_linear.tasks import Prompts, generator

LEARNER = "learner"
"""What the table calls the learner."""

Terms = list[tuple[float, Prompts]]
"""Coefficients and prompts whose predictions add up to 0."""


@dataclass(frozen=True)
class Symmetry:
    """A symmetry.

    Attributes:
        words: what it says, for sentences.
        terms: (prompts, k, generator) → the sum that is 0 after k examples.
        at_every_k: whether it is so at every k at once, whatever k the terms were made for.
    """

    words: str
    terms: Callable[[Prompts, int, torch.Generator], Terms]
    at_every_k: bool = True


def _permuted(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    order = torch.rand(prompts.ys[:, :k].shape, generator=rng, device=rng.device).argsort(1)
    order = order.to(prompts.xs.device)
    xs = prompts.xs.clone()
    ys = prompts.ys.clone()
    xs[:, :k] = xs[:, :k].gather(1, order.unsqueeze(-1).expand(-1, -1, xs.shape[-1]))
    ys[:, :k] = ys[:, :k].gather(1, order)
    return [(1.0, prompts), (-1.0, prompts._replace(xs=xs, ys=ys))]


def _rotated(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    rotations = random_rotations(len(prompts.xs), prompts.xs, rng)
    return [(1.0, prompts), (-1.0, prompts._replace(xs=prompts.xs @ rotations))]


def _negated(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    return [(1.0, prompts), (1.0, prompts._replace(ys=-prompts.ys))]


def _halved(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    return [(0.5, prompts), (-1.0, prompts._replace(ys=0.5 * prompts.ys))]


def _added(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    """Two label vectors of half the variance: their sum is a prompt like those of training."""
    one = prompts._replace(ys=prompts.ys / 2**0.5)
    other = relabel(prompts, ws=prompts.ws.roll(1, 0), noise=noise_of(prompts).roll(1, 0))
    other = other._replace(ys=other.ys / 2**0.5)
    return [(-1.0, one), (-1.0, other), (1.0, prompts._replace(ys=one.ys + other.ys))]


def _mapped(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    """x → Ax for the query too, A of condition number 4 in a random basis and mean square 1."""
    dim = prompts.xs.shape[-1]
    basis = random_rotations(len(prompts.xs), prompts.xs, rng)
    scales = 4 ** torch.linspace(0, -1, dim).to(prompts.xs)
    scales = scales / scales.square().mean().sqrt()
    mapped = prompts.xs @ (basis * scales) @ basis.mT
    return [(1.0, prompts), (-1.0, prompts._replace(xs=mapped))]


def _irrelevant(prompts: Prompts, k: int, rng: torch.Generator) -> Terms:
    """Every other example is orthogonal to the query and to all others; its label changes."""
    dim, seen = prompts.xs.shape[-1], prompts.xs.shape[1]
    basis = random_rotations(len(prompts.xs), prompts.xs, rng)
    inside, outside = basis[..., : (dim + 1) // 2], basis[..., (dim + 1) // 2 :]
    odd = (torch.arange(seen, device=prompts.xs.device) % 2 == 1) & (
        torch.arange(seen, device=prompts.xs.device) < k
    )
    sides = [prompts.xs @ part @ part.mT for part in (inside, outside)]
    xs = torch.where(odd[:, None], sides[1], sides[0])
    first = relabel(prompts, xs)
    second = relabel(first, ws=prompts.ws.roll(1, 0))
    return [(1.0, first), (-1.0, first._replace(ys=torch.where(odd, second.ys, first.ys)))]


SYMMETRIES: dict[str, Symmetry] = {
    "permutation": Symmetry("does not depend on the examples' order", _permuted, at_every_k=False),
    "rotation": Symmetry("does not depend on the basis of x", _rotated),
    "sign_of_y": Symmetry("changes its sign with the labels", _negated),
    "scale_of_y": Symmetry("is halved with the labels", _halved),
    "additivity": Symmetry("is additive in the labels", _added),
    "invertible_map": Symmetry("does not depend on an invertible map of all x", _mapped),
    "irrelevant_labels": Symmetry(
        "ignores labels of examples orthogonal to all others", _irrelevant, at_every_k=False
    ),
}


def measure_symmetries(
    learner: Predictor,
    candidates: Mapping[str, Candidate],
    prompts: Prompts,
    examples_seen: Sequence[int],
    confidence: float,
    num_resamples: int,
    seed: int,
    symmetries: Mapping[str, Symmetry] = SYMMETRIES,
) -> pd.DataFrame:
    """The fingerprints of a learner and of each candidate.

    Args:
        learner: in the one form.
        candidates: name → what it predicts.
        prompts: of the training distribution.
        examples_seen: every k that is looked at.
        confidence: level of the intervals, over prompts.
        num_resamples: of the bootstrap.
        seed: of the changed prompts and of the bootstrap.
        symmetries: by name.

    Returns:
        ``symmetry``, ``examples_seen``, ``candidate`` (`LEARNER` first), ``violation``, ``low``,
        ``high`` as shares of Var(y), and ``noise_gain``, the sum of the squared coefficients: by
        how much independent noise on the predictions is raised in the violation.
    """
    asked = {LEARNER: as_candidate(learner), **candidates}
    unchanged = _Unchanged(prompts)
    scale = float(prompts.ys.square().mean())
    rows = []
    for name, symmetry in symmetries.items():
        rng = generator(seed, f"identification symmetry {name}", device=prompts.xs.device)
        together = [tuple(examples_seen)] if symmetry.at_every_k else [(k,) for k in examples_seen]
        for seen in together:
            terms = symmetry.terms(prompts, seen[-1], rng)
            parts = [(coefficient, unchanged.prefixes(part, seen)) for coefficient, part in terms]
            sums = torch.stack([unchanged.sum(*one, parts) for one in asked.items()])
            shares = (sums.square() / scale).nan_to_num(nan=1e6, posinf=1e6).clamp(max=1e6)
            found = prompt_intervals(shares, confidence, num_resamples, seed)
            gain = sum(coefficient**2 for coefficient, _ in terms)
            for i, candidate in enumerate(asked):
                for j, k in enumerate(seen):
                    values = (found[key][i, j] for key in ("mean", "low", "high"))
                    rows.append((name, k, candidate, *map(float, values), gain))
    columns = ["symmetry", "examples_seen", "candidate", "violation", "low", "high", "noise_gain"]
    return pd.DataFrame(rows, columns=columns)


class _Unchanged:
    """Asks everybody once about prompts that are a term of several symmetries as they are.

    Args:
        prompts: the ones that every symmetry starts from.
    """

    def __init__(self, prompts: Prompts):
        self.prompts = prompts
        self._prefixes: dict[tuple[int, ...], Prefixes] = {}
        self._answers: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def prefixes(self, term: Prompts, seen: tuple[int, ...]) -> Prefixes:
        """A term's prompts in float64, cut behind the last k that is looked at."""
        if term is self.prompts and seen in self._prefixes:
            return self._prefixes[seen]
        length = max(seen) + 1
        found = Prefixes(term.xs[:, :length].double(), term.ys[:, :length].double(), seen)
        if term is self.prompts:
            self._prefixes[seen] = found
        return found

    def sum(self, name: str, candidate: Candidate, parts: list[tuple[float, Prefixes]]) -> Tensor:
        """A candidate's predictions, times the coefficients."""
        first, *others = [factor * self._ask(name, candidate, terms) for factor, terms in parts]
        return sum(others, first)

    def _ask(self, name: str, candidate: Candidate, prefixes: Prefixes) -> Tensor:
        key = (name, prefixes.examples_seen)
        if self._prefixes.get(prefixes.examples_seen) is not prefixes:
            return candidate(prefixes)
        if key not in self._answers:
            self._answers[key] = candidate(prefixes)
        return self._answers[key]
