"""What is probed, chosen once: prompts, layers, targets and split.

Every measurement of the hidden states (probes, controls, interventions, the layers' progress) is
given the same `Selection`, so they agree on which prompt is a test prompt, and no target is
computed twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from incontext_linear.config import resolve_device
from incontext_linear.learner.base import Network, check_learner
from incontext_linear.learner.devices import on_device
from incontext_linear.learner.saved import Learner
from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.fitting import Column, Split, split_prompts
from incontext_linear.probing.targets import build_targets, target_values
from incontext_linear.tasks import Xs, Ys

FITTED_ON = "fitted_on"
"""Among saved read-outs: tells the learner and the prompts that they were fitted on from others."""


@dataclass(frozen=True)
class Selection:
    """Prompts on the device that computes, and what is read from which layers after how many
    examples.
    """

    xs: Xs
    """No longer than the longest context and its query."""
    ys: Ys
    layers: list[int]
    """0 is the embedding."""
    context_lengths: list[int]
    """Numbers of examples seen, k."""
    columns: list[Column]
    """Every target after every number of examples."""
    split: Split
    """Of the first refit; its test prompts are those of all."""
    places: Sequence[int] | None = None
    """Tokens that predict; None: the paper's x-tokens."""

    def num_tokens(self, examples_seen: int) -> int:
        """Tokens of a prompt up to the query behind so many examples."""
        return 1 + (2 * examples_seen if self.places is None else self.places[examples_seen])

    @property
    def device(self) -> torch.device:
        """Where the prompts lie, and everything is computed."""
        return self.xs.device

    def place(self, learner: Learner) -> Network:
        """The learner's network where the prompts lie; the learner's own does not move."""
        return on_device(learner.model, self.device)


def select(
    learner: Learner, prompts: Mapping[str, Tensor], probing: ProbingConfig, device: str, seed: int
) -> Selection:
    """Choose what is probed.

    Args:
        learner: whose layers are probed.
        prompts: xs (B, n, d) and ys (B, n).
        probing: layers, number of prompts, targets, numbers of examples, parts of the split.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: decides the split.

    Raises:
        ValueError: if the learner shows no layers or lacks one, or the prompts are too short or too
            few.
    """
    check_learner(learner.model, "probing")
    context_lengths = lengths_seen(probing.context_lengths, prompts["xs"].shape[1])
    longest = max(context_lengths) + 1  # the query's token comes after the context
    where = resolve_device(device)
    xs, ys = (prompts[name][: probing.num_prompts, :longest].to(where) for name in ("xs", "ys"))
    targets = build_targets(probing.targets, probing.ridge_penalty)
    places = _prediction_places(on_device(learner.model, where), xs[:1], ys[:1])
    columns = [
        Column(name, k, target_values(name, target, xs[:, :k], ys[:, :k]), places[k] + 1)
        for k in context_lengths
        for name, target in targets.items()
    ]
    layers = _layers(probing.layers, len(learner.model.blocks))
    split = split_prompts(len(xs), probing.fit, seed)
    return Selection(xs, ys, layers, context_lengths, columns, split, places)


@torch.no_grad()
def _prediction_places(model: Network, xs: Xs, ys: Ys) -> list[int]:
    """The tokens that predict; of a learner that does not say it, the paper's x-tokens."""
    if not hasattr(model, "prediction_tokens"):
        return list(range(0, 2 * xs.shape[1], 2))
    places = torch.arange(model.embed(xs, ys).shape[1])
    return places[model.prediction_tokens(len(places))].tolist()


def identify(learner: Learner, selection: Selection) -> UInt8[Tensor, "32"]:
    """A hash of the learner's weights and of the prompts: equal for no others."""
    digest = hashlib.sha256()
    for values in (*learner.model.parameters(), selection.xs, selection.ys):
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _layers(asked: Sequence[int] | None, num_layers: int) -> list[int]:
    """The layers to probe, checked against the saved learner, whatever the parameters say."""
    layers = list(range(num_layers + 1) if asked is None else asked)
    if max(layers) > num_layers:
        raise ValueError(
            f"probing.layers={layers}, but the saved learner has {num_layers} layers; "
            f"allowed: 0 to {num_layers}, or train another learner with the pipeline model_training"
        )
    return layers


def lengths_seen(asked: Sequence[int | None], num_examples: int) -> list[int]:
    """Numbers of examples seen, checked against the saved prompts, whatever the parameters say."""
    seen = [num_examples - 1 if k is None else k for k in asked]
    if max(seen) >= num_examples:
        raise ValueError(
            f"probing.context_lengths={seen}, but the saved prompts have {num_examples} examples; "
            f"allowed: 1 to {num_examples - 1}, or draw new prompts with the pipeline "
            "data_generation"
        )
    return list(dict.fromkeys(seen))
