"""How the subspaces of distributed alignment search are learned: a start in closed form, then
descent over orthonormal bases.

The error of an exchange has many local minima over subspaces, even where the network is known and
its states vary in seven directions only: from random starts gradient descent ends in one of them
almost always. To first order, however, an exchange along M = QQᵀ changes the answer by gᵀMΔ, with g
the answer's gradient and Δ the donor's state minus the recipient's, and this is linear in M. So M
is fitted by ridge regression over all symmetric matrices, and the eigenvectors of its r largest
eigenvalues start the search at rank r. The same holds, seen from the donor, of what is not
exchanged; the start that does best on other pairs is taken.

From there the squared error is minimised over orthonormal bases (on the Grassmann manifold: Absil,
Mahony and Sepulchre 2008, sections 4 and 8.4). Where a batch has more pairs than the basis has
numbers, by damped Gauss-Newton steps, which do not depend on the scales of the states' directions
(Levenberg 1944, Marquardt 1963). In wider spans such a step fits its own batch and no other, so
that most are rejected; there many small steps along the gradient with momentum do better and cost
less, and the searches of all ranks take them together.

Shape letters: C searches, B pairs, T tokens, S size of the span, r rank.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from incontext_linear.learner.base import ContinuableLearner
from incontext_linear.probing.alignment_config import SearchConfig
from incontext_linear.probing.exchange import (
    LayerPairs,
    answers_of_edited,
    exchange,
    exchanged_rows,
    in_parts,
)

START_PAIRS = 512
"""Pairs that the closed form is fitted on, at most: a matrix of this size is factorised."""
COMPARED_PAIRS = 32
"""Pairs that choose among the 18 starts in closed form, at most. The search's end and its start
are compared on all validation pairs.
"""
START_PENALTIES = (1e-9, 1e-3, 1e-1)
"""Ridge penalties of the closed form, in units of the features' mean square; the best start on
validation pairs is taken."""
_LEAST_DAMPING, _MOST_DAMPING = 1e-7, 1e7
_MOMENTUM, _SQUARE_MOMENTUM = 0.9, 0.98

Bases = Float[Tensor, "search span rank"]
OfAnyRank = Float[Tensor, "search span _"]


@dataclass(frozen=True)
class SearchPairs:
    """What a search is fitted on: states of one layer, and the counterfactuals of each search.

    Attributes:
        pairs: states of one layer.
        positions: where they are exchanged.
        span: orthonormal columns (H, S) that the subspaces lie in.
        wanted: the counterfactuals (C, B).
        scale: what each one's mean squared error is divided by (C).
    """

    pairs: LayerPairs
    positions: str
    span: Float[Tensor, "width span"]
    wanted: Float[Tensor, "search batch"]
    scale: Float[Tensor, " search"]

    def __getitem__(self, rows: Tensor | slice) -> "SearchPairs":
        taken = self.pairs[rows], self.positions, self.span, self.wanted[:, rows], self.scale
        return SearchPairs(*taken)

    def __len__(self) -> int:
        return len(self.pairs)

    def repeated(self, number: int) -> "SearchPairs":
        """The same pairs for so many searches of each counterfactual."""
        wanted, scale = self.wanted.repeat(number, 1), self.scale.repeat(number)
        return SearchPairs(self.pairs, self.positions, self.span, wanted, scale)

    @torch.no_grad()
    def losses(self, model: ContinuableLearner, bases: Bases) -> Float[Tensor, " search"]:
        """Mean squared error of the answers after the exchange, in units of ``scale``."""
        answers = exchange(model, self.pairs, self.positions, self.span @ bases)
        return (answers - self.wanted).square().mean(1) / self.scale


def learn_bases(
    model: ContinuableLearner,
    fitted: SearchPairs,
    chosen: SearchPairs,
    ranks: Sequence[int],
    config: SearchConfig,
    rng: torch.Generator,
) -> dict[int, Float[Tensor, "search width rank"]]:
    """Learn a basis for each counterfactual and rank.

    Args:
        model: the learner, frozen.
        fitted: pairs that the subspaces are fitted on.
        chosen: other pairs, which choose among starts.
        ranks: those asked for; one that exceeds the span is the whole span.
        config: steps, pairs a step, random starts.
        rng: of batches and random starts, on the CPU.

    Returns:
        Orthonormal columns (C, H, r) by rank.
    """
    closed = closed_form(model, fitted[:START_PAIRS]) if min(ranks) < fitted.span.shape[1] else []
    few, span, starts = chosen[:COMPARED_PAIRS], fitted.span.shape[1], {}
    smaller = [rank for rank in ranks if rank < span]
    for rank in smaller:
        best = _best(model, few, [matrix[:, :, :rank] for matrix in closed])
        drawn = [_random_start(fitted, rank, rng) for _ in range(config.random_starts)]
        starts[rank] = [best, *drawn]
    wide = [rank for rank in smaller if span * rank >= config.batch_size]
    begun = [one for rank in wide for one in starts[rank]]
    ends = descend(model, fitted, begun, config, rng)
    whole = fitted.span.expand(len(fitted.wanted), -1, -1)
    found = {rank: whole for rank in ranks if rank >= span}
    for rank in smaller:
        # The start itself stays in the choice: a search can end worse than it began.
        candidates = list(starts[rank])
        if rank in wide:
            candidates += [ends.pop(0) for _ in starts[rank]]
        else:
            candidates += [refine(model, fitted, one, config, rng) for one in starts[rank]]
        found[rank] = fitted.span @ _best(model, chosen, candidates)
    return found


def closed_form(model: ContinuableLearner, fitted: SearchPairs) -> list[Bases]:
    """Eigenvectors (C, S, S) of the matrices M that best explain the counterfactuals to first
    order, largest eigenvalues first; one for each place where gradients are taken, and penalty.

    Seen from the recipient, c − ŷ_r ≈ gᵀMΔ, without error where the answer is linear in what is
    exchanged. Seen from the donor, ŷ_d − c ≈ gᵀ(I − M)Δ, without error where it is linear in what
    is not. Half-way, a product of two exchanged numbers is linearised without error.
    """
    found = []
    for share in (0.0, 0.5, 1.0):
        answers, features = _gradient_features(model, fitted, share)
        from_donor = share == 1.0
        wanted = answers - fitted.wanted if from_donor else fitted.wanted - fitted.pairs.unchanged
        for matrix in _ridge_matrices(features, wanted.double()):
            vectors = torch.linalg.eigh(matrix).eigenvectors.to(fitted.span)
            found.append(vectors if from_donor else vectors.flip(2))
    return found


def _ridge_matrices(
    features: Float[Tensor, "batch unknown"], wanted: Float[Tensor, "search batch"]
) -> Iterator[Float[Tensor, "search span span"]]:
    """Symmetric matrices fitted by ridge regression: on the features as they are and on each in
    units of its own size, with every penalty.

    In their own units, directions that vary a thousand times as much as others decide no more.

    Args:
        features: the triangles of symmetric matrices, row after row.
        wanted: what they explain, for each search.
    """
    span = math.isqrt(2 * features.shape[1])
    upper = torch.ones(span, span, device=features.device).triu().nonzero().mT
    # Of two equal numbers one is kept, and counts twice.
    twice = torch.where(upper[0] == upper[1], 1.0, 2.0).to(features)
    sizes = features.square().mean(0).sqrt()
    for unit in (torch.ones_like(sizes), sizes + 1e-12 * sizes.max() + 1e-300):
        scaled = features / unit
        kernel = (scaled * twice) @ scaled.mT
        identity = torch.eye(len(kernel)).to(kernel)
        for penalty in START_PENALTIES:
            damped = kernel + penalty * kernel.diagonal().mean() * identity
            weights = torch.linalg.solve(damped, wanted.mT)
            matrix = features.new_zeros(len(wanted), span, span)
            matrix[:, upper[0], upper[1]] = (scaled.mT @ weights).mT / unit
            yield matrix + matrix.triu(1).mT


def _gradient_features(
    model: ContinuableLearner, fitted: SearchPairs, share: float
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch unknown"]]:
    """Answers at states so far between recipient and donor, and the triangle of Σ_t gΔᵀ there, made
    symmetric.
    """
    rows = exchanged_rows(fitted.positions)
    triangle = torch.ones(2 * (fitted.span.shape[1],), device=fitted.span.device).triu().bool()

    def part(_: slice, batch: slice) -> tuple[Tensor, Tensor]:
        answers, slopes = _slopes(model, fitted[batch], share)
        change = (fitted.pairs.donor - fitted.pairs.recipient)[batch, rows]
        slope, change = ((part @ fitted.span).double() for part in (slopes, change))
        features = slope.mT @ change
        return answers[None], ((features + features.mT) / 2)[:, triangle][None]

    streams = _num_streams(model, fitted)
    answers, features = in_parts(part, fitted.positions, 1, fitted.pairs, streams)
    return answers[0], features[0]


def _slopes(
    model: ContinuableLearner, fitted: SearchPairs, share: float
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch row width"]]:
    """Answers at states so far between recipient and donor, and their gradients."""
    pairs, rows = fitted.pairs, exchanged_rows(fitted.positions)
    between = torch.lerp(pairs.recipient[:, rows], pairs.donor[:, rows], share)[None]
    answers, slopes = _read(model, fitted, between)
    return answers[0], slopes[0]


def _num_streams(model: ContinuableLearner, batch: SearchPairs) -> int:
    """How many streams of a prompt a gradient goes through."""
    return max(1, len(model.blocks) - batch.pairs.layer)


def descend(
    model: ContinuableLearner,
    fitted: SearchPairs,
    starts: Sequence[OfAnyRank],
    config: SearchConfig,
    rng: torch.Generator,
) -> list[OfAnyRank]:
    """Steps along the gradient with momentum, of all starts together, whatever their ranks.

    A step's length is relative to its own search's gradients, as in Adam (Kingma and Ba 2015), but
    of the whole basis and not of each number, so that no axis is special. Lengths fall linearly to
    zero. Each batch is of pairs that have not been taken since all others were.

    Args:
        model: the learner, frozen.
        fitted: pairs to fit.
        starts: orthonormal columns (C, S, r), each of a rank of its own.
        config: steps, pairs a step, length of the first.
        rng: of the batches.

    Returns:
        Orthonormal columns, one for each start.
    """
    if not starts:
        return []
    bases, columns = _stacked(starts)
    several = fitted.repeated(len(starts))
    mean, square = torch.zeros_like(bases), bases.new_zeros(len(bases), 1, 1)
    numbers = bases.shape[1] * columns.sum(2, keepdim=True)
    size, number = config.gradient_batch, config.gradient_steps
    passes = -(-number * size // len(fitted))
    order = torch.cat([torch.randperm(len(fitted), generator=rng) for _ in range(passes)])
    for step, rows in enumerate(order[: number * size].split(size)):
        slope = _slope(model, several[rows.to(bases.device)], bases)
        mean = torch.lerp(slope, mean, _MOMENTUM)
        squares = slope.square().sum((1, 2), keepdim=True) / numbers
        square = torch.lerp(squares, square, _SQUARE_MOMENTUM)
        unit = (square / (1 - _SQUARE_MOMENTUM ** (step + 1))).sqrt() + 1e-30
        rate = config.learning_rate * (1 - step / number) / (1 - _MOMENTUM ** (step + 1))
        bases = _orthonormal(bases - rate * mean / unit) * columns
    parts = bases.split([len(one) for one in starts])
    return [part[:, :, : one.shape[2]] for part, one in zip(parts, starts, strict=True)]


def _slope(model: ContinuableLearner, batch: SearchPairs, bases: Bases) -> Bases:
    """Half the gradient of each search's mean squared error, along its basis's tangents.

    With g the gradient of an answer times its error, it is the mean of Σ_t gΔᵀQ + ΔgᵀQ, less its
    part within the subspace (see `_derivatives`).
    """
    columns, rows = batch.span @ bases, exchanged_rows(batch.positions)
    weights = 1 / (batch.scale * len(batch))

    def part(searches: slice, pairs: slice) -> tuple[Tensor]:
        few, own = batch[pairs], columns[searches]
        change = (few.pairs.donor - few.pairs.recipient)[:, rows]
        coordinates = change.flatten(0, 1) @ own  # (C, B·t, r)
        edit = (coordinates @ own.mT).unflatten(1, change.shape[:2])
        answers, slope = _read(model, few, few.pairs.recipient[:, rows] + edit)
        errors = (answers - few.wanted[searches]) * weights[searches, None]
        slope = (slope * errors[..., None, None]).flatten(1, 2)
        total = slope.mT @ coordinates + change.flatten(0, 1).mT @ (slope @ own)
        return (total[:, None],)

    streams = _num_streams(model, batch)
    (sums,) = in_parts(part, batch.positions, len(bases), batch.pairs, streams)
    total = batch.span.mT @ sums.sum(1)
    return total - bases @ (bases.mT @ total)


def _read(
    model: ContinuableLearner, batch: SearchPairs, edited: Float[Tensor, "search batch row width"]
) -> tuple[Float[Tensor, "search batch"], Float[Tensor, "search batch row width"]]:
    """Answers at edited states, and each one's gradient with respect to them."""
    with torch.enable_grad():
        edited = edited.requires_grad_()
        answers = answers_of_edited(model, batch.pairs, batch.positions, edited)
        (slope,) = torch.autograd.grad(answers.sum(), edited)
    return answers.detach(), slope


def _stacked(
    starts: Sequence[OfAnyRank],
) -> tuple[Float[Tensor, "stack span most"], Float[Tensor, "stack 1 most"]]:
    """Bases of several ranks as one tensor, with zero columns, and which columns are not."""
    most = max(one.shape[2] for one in starts)
    bases = torch.cat([pad(one, (0, most - one.shape[2])) for one in starts])
    return bases, (bases != 0).any(1, keepdim=True).to(bases)


def _orthonormal(columns: Bases) -> Bases:
    """The QR decomposition's Q for which R has a positive diagonal: near to what is nearly
    orthonormal, so that momentum keeps its meaning.
    """
    left, right = torch.linalg.qr(columns)
    return left * torch.where(right.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(left)[:, None]


def refine(
    model: ContinuableLearner,
    fitted: SearchPairs,
    start: Bases,
    config: SearchConfig,
    rng: torch.Generator,
) -> Bases:
    """Levenberg-Marquardt from a start, on a new batch in every step.

    A step that does not lower its batch's error is not taken, and the damping grows.
    """
    bases, damping = start, torch.full((len(start),), config.damping).to(start)
    for _ in range(config.num_steps):
        rows = torch.randperm(len(fitted), generator=rng)[: config.batch_size]
        batch = fitted[rows.to(start.device)]
        errors, jacobian = _linearised(model, batch, bases)
        step = _damped_step(errors, jacobian.flatten(2), damping).unflatten(1, bases.shape[1:])
        moved = torch.linalg.qr(bases + step).Q
        better = batch.losses(model, moved) < errors.square().mean(1)
        bases = torch.where(better[:, None, None], moved, bases)
        damping = torch.where(better, damping / 3, damping * 4)
        damping = damping.clamp(_LEAST_DAMPING, _MOST_DAMPING)
    return bases


def _linearised(
    model: ContinuableLearner, batch: SearchPairs, bases: Bases
) -> tuple[Float[Tensor, "search batch"], Float[Tensor, "search batch span rank"]]:
    """Errors in units of their scale, and their derivatives along the bases' tangents."""

    def part(searches: slice, rows: slice) -> tuple[Tensor, Tensor]:
        return _derivatives(model, batch[rows], bases[searches])

    streams = _num_streams(model, batch)
    answers, jacobian = in_parts(part, batch.positions, len(bases), batch.pairs, streams)
    scale = batch.scale.sqrt()[:, None]
    return (answers - batch.wanted) / scale, jacobian / scale[..., None, None]


def _derivatives(
    model: ContinuableLearner, batch: SearchPairs, bases: Bases
) -> tuple[Float[Tensor, "search batch"], Float[Tensor, "search batch span rank"]]:
    """Answers after the exchange, and their derivatives along the bases' tangents.

    One backward pass gives the gradient g of every pair's answer with respect to its edited states.
    A change ξ of the basis moves these by (ξQᵀ + Qξᵀ)Δ, so that the derivative with respect to ξ
    is Σ_t gΔᵀQ + ΔgᵀQ, less its part within the subspace, along which nothing changes.
    """
    pairs, rows = batch.pairs, exchanged_rows(batch.positions)
    change = (pairs.donor - pairs.recipient)[:, rows] @ batch.span
    coordinates = torch.einsum("bts,csr->cbtr", change, bases)
    edit = torch.einsum("cbtr,csr->cbts", coordinates, bases) @ batch.span.mT
    answers, slope = _read(model, batch, pairs.recipient[:, rows] + edit)
    slope = slope @ batch.span
    read = torch.einsum("cbts,csr->cbtr", slope, bases)
    jacobian = torch.einsum("cbts,cbtr->cbsr", slope, coordinates)
    jacobian = jacobian + torch.einsum("bts,cbtr->cbsr", change, read)
    within = torch.einsum("csr,cbsq->cbrq", bases, jacobian)
    return answers, jacobian - torch.einsum("csr,cbrq->cbsq", bases, within)


def _damped_step(
    errors: Float[Tensor, "search batch"],
    jacobian: Float[Tensor, "search batch unknown"],
    damping: Float[Tensor, " search"],
) -> Float[Tensor, "search unknown"]:
    """−(JᵀJ + μD)⁻¹Jᵀρ with D the diagonal of JᵀJ, raised a little; in the smaller of its forms."""
    errors, jacobian, mu = errors.double(), jacobian.double(), damping.double()[:, None]
    diagonal = jacobian.square().sum(1)
    diagonal = diagonal + 1e-3 * diagonal.mean(1, keepdim=True) + 1e-30
    if jacobian.shape[2] <= jacobian.shape[1]:
        normal = jacobian.mT @ jacobian + torch.diag_embed(mu * diagonal)
        slope = (jacobian.mT @ errors[..., None])[..., 0]
        return -torch.linalg.solve(normal, slope).to(damping)
    scaled = jacobian / diagonal[:, None]
    kernel = scaled @ jacobian.mT + torch.diag_embed(mu.expand_as(errors))
    return -(scaled.mT @ torch.linalg.solve(kernel, errors)[..., None])[..., 0].to(damping)


def _random_start(fitted: SearchPairs, rank: int, rng: torch.Generator) -> Bases:
    drawn = torch.randn(len(fitted.wanted), fitted.span.shape[1], rank, generator=rng)
    return torch.linalg.qr(drawn.to(fitted.span)).Q


def _best(model: ContinuableLearner, chosen: SearchPairs, candidates: Sequence[Bases]) -> Bases:
    """Of each search's bases, the one with the smallest error on the pairs that choose."""
    if len(candidates) == 1:
        return candidates[0]
    tried = chosen.repeated(len(candidates)).losses(model, torch.cat(list(candidates)))
    best = tried.unflatten(0, (len(candidates), -1)).argmin(0)
    return torch.stack(list(candidates))[best, torch.arange(len(best), device=best.device)]
