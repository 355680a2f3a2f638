"""Hidden states of one or several learners, laid out for the probes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.learner.base import LayeredLearner, residual_streams
from incontext_linear.learner.saved import Learner
from incontext_linear.probing.selection import Selection
from incontext_linear.tasks import Xs, Ys


def collect_hidden_states(
    learner: Learner, selection: Selection
) -> Float[Tensor, "layer token batch width"]:
    """The learner's residual streams at the layers that are probed."""
    model = selection.place(learner)
    return collect_states([model], selection.xs, selection.ys, selection.layers)


@torch.no_grad()
def states_size(model: LayeredLearner, selection: Selection) -> int:
    """Bytes of the states that `collect_states` gives of one learner."""
    one = model.embed(selection.xs[:1], selection.ys[:1])
    return len(selection.layers) * len(selection.xs) * one.nbytes


@torch.no_grad()
def collect_states(
    models: Sequence[LayeredLearner],
    xs: Xs,
    ys: Ys,
    layers: Sequence[int],
    prompts_at_once: int = 128,
) -> Float[Tensor, "layer token batch width"]:
    """The residual streams at the chosen layers, one learner after the other.

    Args:
        models: learners of one shape.
        xs: (B, n, d).
        ys: (B, n).
        layers: which layers, 0 being the embedding.
        prompts_at_once: prompts that pass through a learner together.

    Returns:
        (learners · layers, T, B, H); tokens before prompts, so that pooling over tokens needs no
        copy.
    """
    num_tokens, width = models[0].embed(xs[:1], ys[:1]).shape[1:]
    states = xs.new_empty(len(models) * len(layers), num_tokens, len(xs), width)
    for start in range(0, len(xs), prompts_at_once):
        prompts = slice(start, start + prompts_at_once)
        for index, model in enumerate(models):
            for layer, hidden in residual_streams(model, xs[prompts], ys[prompts]):
                for row, wanted in enumerate(layers):
                    if wanted == layer:
                        states[index * len(layers) + row, :, prompts] = hidden.transpose(0, 1)
                if layer == max(layers):
                    break
    return states
