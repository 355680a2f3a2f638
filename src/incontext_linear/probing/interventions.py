"""Does the learner use what a probe reads? Change it, and see whether the prediction follows.

A probe shows that a quantity *can be read* from a layer. Here the quantity that the layer holds for
one prompt (the recipient) is replaced by what it holds for another (the donor), the remaining
layers run on, and the prediction for the recipient's own query is set against two others: the
recipient's unchanged one, and the one that the learner gives behind the donor's examples. With ŷ_r,
ŷ_d and ŷ_e the recipient's, the donor's and the edited prediction,

    moved fraction = E[(ŷ_e − ŷ_r)(ŷ_d − ŷ_r)] / E[(ŷ_d − ŷ_r)²]     0: unmoved, 1: the donor's
    answer, distance left  = E[(ŷ_e − ŷ_d)²] / E[(ŷ_d − ŷ_r)²]               1: unmoved, 0: the
    donor's answer.

Two edits change what the probe decodes from the recipient's value to the donor's. The *minimal* one
is the smallest that does so, and moves along the read-out's own directions. A read-out may owe its
precision to directions in which the states hardly vary, and then this edit is tiny and passes
unseen; the table's ``norm`` says so. The *pattern* edit moves the states as they vary with the
decoded value across other prompts, at all positions (Haufe et al. 2014: a decoder's filter is not
the pattern it detects); of all edits with this effect it is the smallest in the metric of the
states' own covariance. Each is set beside random directions of the same norm.

**A positive result** (an edit moves the prediction well above the random directions of the same
norm, and leaves less distance) means that later layers compute the prediction from what is changed.
For the minimal edit, that is the probe's direction itself; for the pattern edit, the direction or
what goes along with it.

How much power the edits have was tried on a network that is built to hold and use such quantities
(`docs/probing.md`): the pattern edit moves its prediction to the donor's in every layer that is
used, while the minimal edit leaves the states that the network knows and goes astray. A null of the
minimal edit alone therefore says little.

**A null result** (no more than random directions) does *not* mean that the layer does not hold the
quantity, nor that the learner does not use it. It may be held a second time where the edit does not
reach (other positions, other directions, non-linearly), it may already have been read by the query
token, or be restored by later layers; an edit may also leave the states that the learner knows. It
means that this direction, on its own, is not what decides. A random direction that moves the
prediction as much says that the edit is merely large.

Interchange replaces whole states, not one direction: it says through which positions and layers the
information passes, not in which form. Where the fraction of the context's interchange falls from 1
to 0, the query token has read what it needs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from incontext_linear.learner.transformer import Transformer
from incontext_linear.probing.readouts import LinearReadout
from incontext_linear.statistics import bootstrap_ratio


class Pairs(NamedTuple):
    """k examples each, and the recipient's query behind both: xs (B, k+1, d), ys (B, k+1)."""

    recipient: tuple[Tensor, Tensor]
    donor: tuple[Tensor, Tensor]


def pair_prompts(
    xs: Float[Tensor, "batch example dim"], ys: Float[Tensor, "batch example"], examples_seen: int
) -> Pairs:
    """Give every prompt the next one's examples as its donor's; the query stays the prompt's
    own.
    """
    k = examples_seen
    donor_xs = torch.cat((xs.roll(-1, 0)[:, :k], xs[:, k : k + 1]), dim=1)
    donor_ys = torch.cat((ys.roll(-1, 0)[:, :k], ys[:, k : k + 1]), dim=1)
    return Pairs((xs[:, : k + 1], ys[:, : k + 1]), (donor_xs, donor_ys))


def minimal_edit(
    readout: LinearReadout, change: Float[Tensor, "batch size"]
) -> Float[Tensor, "batch token width"]:
    """The smallest change of the hidden states that moves what the read-out decodes by ``change``.

    The read-out is linear in all positions together, v̂ = Σₜ αₜ Mᵀhₜ + b. Of all δ with Σₜ αₜ Mᵀδₜ
    = Δv, the one of least Σₜ‖δₜ‖² is δₜ = αₜ/‖α‖² · M(MᵀM)⁻¹Δv: in the read-out's own space, and
    only where the probe looks.
    """
    profile = readout.attention / readout.attention.square().sum()
    direction = change @ torch.linalg.pinv(readout.matrix)  # (B, H)
    return profile[:, None] * direction[:, None]


def pattern_edit(
    others: Float[Tensor, "other token width"],
    readout: LinearReadout,
    change: Float[Tensor, "batch size"],
) -> Float[Tensor, "batch token width"]:
    """The change of the hidden states that goes along with ``change`` of what is decoded, across
    prompts.

    δₜ = Cov(hₜ, v̂) Cov(v̂)⁻¹ Δv: what the states would be expected to differ by, had the probe
    read another value. It moves what is decoded by Δv too, and reaches all positions.

    Args:
        others: hidden states that the covariances are estimated on. They must be other prompts'
            than the recipients' and donors': among N prompts, a pair's own part in the estimate is
            about D/N of the whole difference of donor and recipient, which would move the
            prediction by as much.
        readout: what decodes v̂.
        change: Δv, for each recipient.
    """
    states = others - others.mean(0)
    decoded = readout.decode(others)
    decoded = decoded - decoded.mean(0)
    loadings = torch.einsum("bth,bd->thd", states, decoded) @ torch.linalg.pinv(
        decoded.mT @ decoded
    )
    return torch.einsum("thd,bd->bth", loadings, change)


def random_edit(
    edit: Float[Tensor, "batch token width"], rng: torch.Generator
) -> Float[Tensor, "batch token width"]:
    """A random direction with the edit's norm at every position: the control of an edit."""
    direction = torch.randn(len(edit), 1, edit.shape[2], generator=rng).to(edit)
    return edit.norm(dim=-1, keepdim=True) * direction / direction.norm(dim=-1, keepdim=True)


def interchange(
    recipient: Float[Tensor, "batch token width"],
    donor: Float[Tensor, "batch token width"],
    positions: Bool[Tensor, " token"],
) -> Float[Tensor, "batch token width"]:
    """The recipient's hidden states, with the donor's at the chosen positions."""
    return torch.where(positions[:, None], donor, recipient)


def attended_positions(
    attention: Float[Tensor, " token"], share: float = 0.9
) -> Bool[Tensor, " token"]:
    """The fewest positions that together hold at least ``share`` of the attention."""
    weights, order = attention.sort(descending=True)
    needed = weights.cumsum(0) - weights < share * weights.sum()
    return torch.zeros_like(attention, dtype=torch.bool).scatter(0, order, needed)


def predict_from(
    model: Transformer, hidden: Float[Tensor, "batch token width"], layer: int
) -> Float[Tensor, " batch"]:
    """Run the layers after ``layer`` on its hidden states; the prediction at the last token, the
    query's.
    """
    for block in model.blocks[layer:]:
        hidden = block(hidden)
    return model.predict(hidden[:, -1:]).squeeze(1)


class Movements(NamedTuple):
    """Predictions for the recipients' queries; interventions by (method, target, layer)."""

    recipient: Tensor
    """Unchanged, (B,)."""
    donor: Tensor
    """Behind the donors' examples, (B,)."""
    edited: dict[tuple[str, str, int], Tensor]
    """Under every intervention, (B,)."""
    norms: dict[tuple[str, str, int], float]
    """Mean norm of the change of the hidden states, as a share of the distance from recipient to
    donor.
    """


@torch.no_grad()
def intervene(
    model: Transformer,
    pairs: Pairs,
    others: tuple[Float[Tensor, "other example dim"], Float[Tensor, "other example"]],
    readouts: Mapping[str, Mapping[int, LinearReadout]],
    layers: Sequence[int],
    rng: torch.Generator,
) -> Movements:
    """Predictions for the recipients' queries under every intervention.

    Methods, for each target: ``minimal_edit``, ``pattern_edit``, each with its control
        ``…_random``, and
    ``interchange_attended`` at the context's positions that hold 0.9 of the probe's attention to
    the context. Under target ``all``: ``interchange_context``, all tokens before the query. The
    query's own token is never
    exchanged: it comes to hold the answer, which any layer would then pass on.

    Args:
        model: the learner.
        pairs: recipients and donors.
        others: xs and ys of prompts that are in no pair, as long, on which patterns are estimated.
        readouts: target → layer → the linear probe whose reading is replaced by the donor's.
        layers: where to intervene, 0 being the embedding.
        rng: draws the random directions.
    """
    recipient, donor, other = (model.embed(*prompts) for prompts in (*pairs, others))
    context = torch.arange(recipient.shape[1], device=recipient.device) < recipient.shape[1] - 1
    edited, norms = {}, {}
    for layer in range(len(model.blocks) + 1):
        if layer:
            recipient, donor, other = (
                model.blocks[layer - 1](hidden) for hidden in (recipient, donor, other)
            )
        if layer not in layers:
            continue
        distance = (donor - recipient).flatten(1).norm(dim=1).mean()
        variants = {("interchange_context", "all"): interchange(recipient, donor, context)}
        for target, by_layer in readouts.items():
            variants |= _variants(target, by_layer[layer], recipient, donor, other, rng)
        for name, hidden in variants.items():
            edited[*name, layer] = predict_from(model, hidden, layer)
            norms[*name, layer] = (
                (hidden - recipient).flatten(1).norm(dim=1).mean() / distance
            ).item()
    last = len(model.blocks)
    return Movements(
        predict_from(model, recipient, last), predict_from(model, donor, last), edited, norms
    )


def _variants(
    target: str,
    readout: LinearReadout,
    recipient: Tensor,
    donor: Tensor,
    others: Tensor,
    rng: torch.Generator,
) -> dict[tuple[str, str], Tensor]:
    """The recipients' hidden states under every intervention on one target."""
    change = readout.decode(donor) - readout.decode(recipient)
    edits = {
        "minimal_edit": minimal_edit(readout, change),
        "pattern_edit": pattern_edit(others, readout, change),
    }
    edits |= {f"{name}_random": random_edit(edit, rng) for name, edit in edits.items()}
    variants = {(name, target): recipient + edit for name, edit in edits.items()}
    attended = F.pad(attended_positions(readout.attention[:-1]), (0, 1))
    return variants | {("interchange_attended", target): interchange(recipient, donor, attended)}


def movement_table(
    movements: Movements, confidence: float, num_resamples: int, seed: int
) -> pd.DataFrame:
    """How far every intervention moves the prediction, with intervals over prompts.

    Returns:
        ``method``, ``target``, ``layer``, the moved fraction (``fraction``, ``low``, ``high``), the
        distance left (``distance``, ``distance_low``, ``distance_high``) and the ``norm``, as the
        module defines them.
    """
    predictions = torch.stack(list(movements.edited.values()), dim=1).double().cpu().numpy()
    start, goal = (values.double().cpu().numpy()[:, None] for values in movements[:2])
    whole = np.broadcast_to((goal - start) ** 2, predictions.shape)
    settings = confidence, num_resamples, seed
    fraction = bootstrap_ratio((predictions - start) * (goal - start), whole, *settings)
    distance = bootstrap_ratio((predictions - goal) ** 2, whole, *settings)
    keys = pd.DataFrame(list(movements.edited), columns=["method", "target", "layer"])
    distance.columns = ["distance", "distance_low", "distance_high"]
    table = pd.concat((keys, fraction.rename(columns={"mean": "fraction"}), distance), axis=1)
    return table.assign(norm=[movements.norms[name] for name in movements.edited])
