"""What keeps a subspace from looking better than it is: random and dormant ones, unnatural states.

A subspace may move the prediction by a direction that the later layers do not read and that only
goes along with the variable (Makelov et al. 2023): the exchange then carries the variable from the
dormant direction over to one that is read. Its part in the directions that are read, taken alone,
must do the same. And states that are far from any natural one say little about what the network
does with those that it meets.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.learner.base import ContinuableLearner
from incontext_linear.probing.exchange import LayerPairs, answers_from, positions_mask

ROUNDING = 100.0
"""Directions hold rounding alone whose states vary less than this many units of rounding of the
largest number among them.
"""
LEAST_SINE = 1e-2
"""A direction that a projection shortens to less than this has no part in its range."""


def natural_span(pairs: LayerPairs, positions: str) -> Float[Tensor, "width varying"]:
    """The directions in which natural states vary between prompts, as orthonormal columns.

    Subspaces are searched within them: along any other direction recipient and donor are equal, so
    that nothing can be exchanged there, but an exchange could leave the span of natural states.
    """
    mask = positions_mask(positions, pairs.recipient.shape[1]).to(pairs.recipient.device)
    states = pairs.recipient[:, mask]
    unit = torch.finfo(states.dtype).eps * states.abs().max().double()
    change = (pairs.donor[:, mask] - states).double().flatten(0, 1)
    # R alone has these singular values and directions, and is small however many tokens there are.
    triangle = torch.linalg.qr(change / len(change) ** 0.5, mode="r").R
    _, values, directions = torch.linalg.svd(triangle, full_matrices=False)
    return directions[values > ROUNDING * unit].mT.to(states)


def random_bases(
    number: int, span: Float[Tensor, "width varying"], rank: int, rng: torch.Generator
) -> Float[Tensor, "subspace width rank"]:
    """Orthonormal bases of random subspaces of a span."""
    size = span.shape[1]
    drawn = torch.randn(number, size, min(rank, size), generator=rng).to(span)
    return span @ torch.linalg.qr(drawn).Q


def read_directions(
    model: ContinuableLearner,
    pairs: LayerPairs,
    positions: str,
    share: float,
    span: Float[Tensor, "width varying"],
) -> Float[Tensor, "width read"]:
    """The directions that later layers read: eigenvectors of the answer's squared gradient.

    Gradients are taken at the recipients' states and half-way to the donors', so that directions
    count that are read of exchanged states alone.

    Args:
        model: the learner, frozen.
        pairs: states of one layer.
        positions: at which tokens.
        share: of the squared gradient that the directions hold together.
        span: the directions in which states vary; no others are looked at.

    Returns:
        Orthonormal columns.
    """
    mask = positions_mask(positions, pairs.recipient.shape[1]).to(pairs.recipient.device)
    half_way = torch.lerp(pairs.recipient, pairs.donor, 0.5)
    moved = torch.where(mask[:, None], half_way, pairs.recipient)
    hidden = torch.cat((pairs.recipient, moved)).requires_grad_()
    (gradient,) = torch.autograd.grad(answers_from(model, hidden, pairs.layer).sum(), hidden)
    flat = gradient[:, mask].flatten(0, 1) @ span
    values, vectors = torch.linalg.eigh(flat.mT @ flat)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    needed = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    return span @ vectors[:, :needed]


def split_bases(
    bases: Float[Tensor, "subspace width rank"], read: Float[Tensor, "width read"]
) -> tuple[Float[Tensor, "subspace width rank"], Float[Tensor, "subspace width rank"]]:
    """Each subspace's projections onto what is read and onto the rest, as bases.

    A column is zero where the projection has a smaller dimension.
    """
    projected = read @ (read.mT @ bases)
    return _orthonormal(projected), _orthonormal(bases - projected)


def _orthonormal(columns: Float[Tensor, "subspace width rank"]) -> Tensor:
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return left * (values > LEAST_SINE).to(left)[:, None, :]


def unnaturalness(
    natural: Float[Tensor, "other token width"],
    pairs: LayerPairs,
    positions: str,
    bases: Float[Tensor, "subspace width rank"],
) -> Float[Tensor, " subspace"]:
    """Mean squared Mahalanobis distance of edited states, in units of the unedited ones'.

    Args:
        natural: states of other prompts at the same layer, which mean and covariance come from.
        pairs: recipients and donors.
        positions: where they are exchanged; tokens of the kind share a covariance about means of
            their own.
        bases: orthonormal columns of each subspace.

    Returns:
        1: the edited states are as near to the natural ones' mean as natural states are.
    """
    mask = positions_mask(positions, natural.shape[1]).to(natural.device)
    mean = natural[:, mask].double().mean(0)
    centred = (natural[:, mask] - mean).flatten(0, 1)
    covariance = centred.mT @ centred / len(centred)
    # Directions in which natural states do not vary at all cost much, and not infinitely much.
    jitter = 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    factor = torch.linalg.cholesky(covariance + jitter)
    recipient, donor = (states[:, mask].double() for states in (pairs.recipient, pairs.donor))
    change = torch.einsum("bth,chr->cbtr", donor - recipient, bases.double())
    edited = recipient + torch.einsum("cbtr,chr->cbth", change, bases.double())
    return _mahalanobis(edited - mean, factor) / _mahalanobis((recipient - mean)[None], factor)


def _mahalanobis(
    centred: Float[Tensor, "subspace batch token width"], factor: Float[Tensor, "width width"]
) -> Float[Tensor, " subspace"]:
    flat = centred.flatten(1, 2).mT  # (C, H, B·T)
    return torch.linalg.solve_triangular(factor, flat, upper=False).square().sum(1).mean(1)
