"""The interchange of a context's states, made by pyvene (Wu et al. 2024).

The same intervention as `incontext_linear.probing.interventions.InterchangeContext`, by the library
that others use for it: the recipient's states in one layer are replaced, at all tokens before the
query, by the donor's, and the later layers run on.
"""

import copy
from typing import cast

import torch
from jaxtyping import Float
from pyvene import (  # pyright: ignore[reportMissingImports]
    IntervenableConfig,
    IntervenableModel,
    VanillaIntervention,
)
from torch import Tensor, nn

from incontext_linear.learner.base import ContinuableLearner, check_learner, predict_from
from incontext_linear.probing.interventions import Pairs
from incontext_linear.tasks import Xs, Ys


class WholeRun(nn.Module):
    """A learner run as `predict_from` runs it, every block at every token, with what pyvene reads
    of a model.

    The paper's transformer leaves the y-tokens out of its last block, so the places of that one's
    output are not those of the tokens.

    Args:
        learner: the network, whose blocks are modules, each run once.

    Attributes:
        learner: a copy: pyvene takes the gradients away from what it is given.

    Raises:
        ValueError: if the network cannot be continued from a residual stream, or a block is no
            module or is run more than once.
    """

    def __init__(self, learner: nn.Module):
        super().__init__()
        check_learner(learner, "interventions")
        self.learner = cast(ContinuableLearner, copy.deepcopy(learner))
        blocks = list(self.learner.blocks)
        if not all(isinstance(block, nn.Module) for block in blocks):
            raise ValueError(
                f"{type(learner).__name__}: blocks are not modules; allowed: nn.Module"
            )
        if len({id(block) for block in blocks}) < len(blocks):
            raise ValueError(
                f"{type(learner).__name__}: {len(blocks)} blocks share their modules; allowed: a "
                "module for each block, since pyvene names a layer by its module"
            )
        self.config = getattr(learner, "config", None)

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return next(self.parameters()).device

    def forward(self, xs: Xs, ys: Ys) -> Ys:
        return predict_from(self.learner, self.learner.embed(xs, ys), layer=0)


def component_of(layer: int) -> str:
    """What pyvene calls the residual stream behind ``layer`` layers, 0 being the embedding."""
    return f"learner.blocks[{layer - 1}].output" if layer else "learner.blocks[0].input"


@torch.no_grad()
def interchange_context(learner: nn.Module, pairs: Pairs, layer: int) -> Float[Tensor, " batch"]:
    """Predictions for the recipients' queries after the donor's context was put in.

    Args:
        learner: the network.
        pairs: recipients and donors, as `incontext_linear.probing.interventions.pair_prompts`
            makes them.
        layer: where to intervene, 0 being the embedding.

    Returns:
        (B,): what `incontext_linear.probing.interventions.intervene` gives as ``edited``.

    Raises:
        ValueError: as `WholeRun`, or if there is no such layer.
    """
    model = WholeRun(learner)
    num_layers = len(model.learner.blocks)
    if not 0 <= layer <= num_layers:
        raise ValueError(f"layer={layer} is not there; allowed: 0 to {num_layers}")
    recipient, donor = (dict(zip(("xs", "ys"), prompts, strict=True)) for prompts in pairs)
    num_pairs, num_tokens = model.learner.embed(*pairs.recipient).shape[:2]
    places = [list(range(num_tokens - 1))] * num_pairs
    # An instance: from a class pyvene would look up the width of the models that it knows.
    where = {
        "component": component_of(layer),
        "unit": "pos",
        "max_number_of_units": num_tokens - 1,
        "intervention": VanillaIntervention(embed_dim=None),
    }
    intervenable = IntervenableModel(IntervenableConfig([where]), model)
    # pyvene takes the gradients away, and PyTorch multiplies by weights without any in another
    # kernel, whose last bits differ.
    for own, given in zip(model.parameters(), learner.parameters(), strict=True):
        own.requires_grad_(given.requires_grad)
    _, predictions = intervenable(
        recipient, [donor], unit_locations={"sources->base": ([places], [places])}
    )
    return predictions[:, -1]
