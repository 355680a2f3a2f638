"""Hidden states of one or several learners, laid out for the probes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.learner.transformer import Transformer


@torch.no_grad()
def collect_states(
    models: Sequence[Transformer],
    xs: Float[Tensor, "batch example dim"],
    ys: Float[Tensor, "batch example"],
    layers: Sequence[int],
    prompts_at_once: int = 128,
) -> Float[Tensor, "layer token batch width"]:
    """The residual streams at the chosen layers, one learner behind the other.

    Args:
        models: learners of one shape.
        xs: (B, n, d).
        ys: (B, n).
        layers: which layers, 0 being the embedding.
        prompts_at_once: prompts that pass through a learner together.

    Returns:
        (learners · layers, 2n−1, B, H); tokens before prompts, so that pooling over tokens needs no
        copy.
    """
    num_tokens, width = 2 * xs.shape[1] - 1, models[0].config.width
    states = xs.new_empty(len(models) * len(layers), num_tokens, len(xs), width)
    for start in range(0, len(xs), prompts_at_once):
        prompts = slice(start, start + prompts_at_once)
        for index, model in enumerate(models):
            hidden = model.embed(xs[prompts], ys[prompts])
            for layer in range(max(layers) + 1):
                if layer:
                    hidden = model.blocks[layer - 1](hidden)
                for row, wanted in enumerate(layers):
                    if wanted == layer:
                        states[index * len(layers) + row, :, prompts] = hidden.transpose(0, 1)
    return states
