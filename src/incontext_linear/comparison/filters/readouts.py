"""Weights read linearly from a layer's content or response, on prompts that fitted nothing.

Shape letters: B prompts, d dimensions, H width, K targets.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from incontext_linear.comparison.filters.states import QueryStates

# Ridge penalties tried, as shares of the mean eigenvalue of the features' covariance.
PENALTIES = (1e-12, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class ReadoutSplit(NamedTuple):
    """Disjoint prompts: to fit read-outs, to choose their penalty, and for the filters."""

    train: Bool[np.ndarray, " batch"]
    validation: Bool[np.ndarray, " batch"]
    rest: Bool[np.ndarray, " batch"]


def split_prompts(number: int, num_conditions: int) -> ReadoutSplit:
    """Two fifths to fit, a fifth for the penalty, two fifths for the rest; conditions balanced."""
    place = np.arange(number) // num_conditions % 5
    return ReadoutSplit(place < 2, place == 2, place > 2)


def read_weights(
    features: Float[np.ndarray, "batch row feature"],
    targets: Float[np.ndarray, "batch row target"],
    split: ReadoutSplit,
) -> tuple[Float[np.ndarray, "batch row target"], Float[np.ndarray, " target"]]:
    """Ridge regression of targets on features, each target with its own penalty.

    Args:
        features: rows of a prompt are its coordinates (response) or one (content).
        targets: as many rows.
        split: prompts.

    Returns:
        What is read on all prompts, and the squared error left on the validation prompts.
    """
    scale = np.sqrt((features[split.train] ** 2).mean((0, 1)))
    features = features / np.where(scale > 0, scale, 1)
    train, answers = _flat(features[split.train]), _flat(targets[split.train])
    values, vectors = np.linalg.eigh(train.T @ train)
    rotated, size = vectors.T @ (train.T @ answers), max(values.mean(), np.finfo(float).tiny)
    solutions = [
        vectors @ (rotated / (values.clip(0) + share * size)[:, None]) for share in PENALTIES
    ]
    held_out, wanted = _flat(features[split.validation]), _flat(targets[split.validation])
    errors = np.stack([((held_out @ solution - wanted) ** 2).sum(0) for solution in solutions])
    chosen = errors.argmin(0)
    solution = np.stack(solutions)[chosen, :, np.arange(len(chosen))].T
    return features @ solution, errors.min(0)


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, rows.shape[-1])


def _features(states: QueryStates, layer: int, carrier: str, train: np.ndarray) -> np.ndarray:
    """(B, d, H) for the response; (B, 1, H + 1) for the content, centred, and a constant."""
    if carrier == "response":
        return states.response[layer].swapaxes(1, 2)
    content = states.content[layer]
    return np.pad(content - content[train].mean(0), ((0, 0), (0, 1)), constant_values=1.0)[:, None]


def read_layer(
    states: QueryStates,
    layer: int,
    carrier: str,
    weights: Float[np.ndarray, "batch dim target"],
    split: ReadoutSplit,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (B, d, K) read from a layer's content or response, and validation errors (K,)."""
    features = _features(states, layer, carrier, split.train)
    if carrier == "response":
        return read_weights(features, weights, split)
    read, errors = read_weights(features, weights.reshape(len(weights), 1, -1), split)
    return read.reshape(weights.shape), errors.reshape(weights.shape[1:]).sum(0)


def read_best(
    states: QueryStates, layer: int, weights: np.ndarray, split: ReadoutSplit
) -> np.ndarray:
    """Weights (B, d) read from whichever carrier has the lower validation error."""
    tried = [
        read_layer(states, layer, carrier, weights[..., None], split)
        for carrier in ("response", "content")
    ]
    return min(tried, key=lambda result: result[1].sum())[0][..., 0]
