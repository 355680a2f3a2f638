"""The spectral filter of every layer: what would the learner answer if this were its last layer but
one?

A layer's state at the query's token is nearly affine in the query, h(q) ≈ c + A q, where c and A
depend on the context. A vector v that reads the state has implicit weights Aᵀv (the *response*). A
layer may also hold weights that it has not yet multiplied with the query; these are linear in c
(the *content*). Four read-outs turn a state into implicit weights:

skip    leaves out the layers between this one and the last: the last layer, with this layer's
        context, and the learner's own read-out follow. Nothing is fitted.
lens    the learner's own read-out, applied at once (the logit lens). Nothing is fitted.
final   linear in c or A, fitted to the learner's final implicit weights.
labels  the same, fitted to the least-squares weights, as a read-out of the labels would be.

On constructed gradient descent `skip` finds every step exactly and `lens` finds nothing before the
last layer. `final` and `labels` are biased: a read-out that may combine s and 1 − (1−2αs)^m makes
polynomials of higher degree of them, and reads two steps as four or eight.

`readable_filters` asks the converse: which filters can be read linearly from a layer, and which of
them are new there. On the same networks the new ones are the steps, one a layer.

Shape letters: L layers (the embedding is layer 0), B prompts, d dimensions, H width, K filters, Q
queries.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.stats import linregress
from torch import Tensor

from incontext_linear.comparison.filter_families import FAMILIES, Spectra, fit_family
from incontext_linear.comparison.filters import (
    FilterConfig,
    FilterMeasurement,
    FilterPrompts,
    draw_filter_prompts,
    error_ratios,
    filter_power,
    measure_filter,
    spectra,
)
from incontext_linear.config import TaskConfig
from incontext_linear.learner.transformer import Transformer

READOUTS = ("skip", "lens", "final", "labels")
# Those that fit nothing; the others serve to show their bias.
DIRECT_READOUTS = ("skip", "lens")
# A layer whose read-out is less of a filter than this has no place on a path.
LEAST_SHARE = 0.5
# Ridge penalties tried for fitted read-outs, as shares of the mean eigenvalue of the features'
# covariance.
PENALTIES = (1e-12, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# A constructed network answers 0, up to rounding, until its last layer; mean square of a weight.
SMALLEST_ANSWER = 1e-12
# Families whose members are looked for in the states: one free number each.
READ_FAMILIES = ("ridge", "gradient_flow", "newton", "gradient_descent")


class QueryStates(NamedTuple):
    """Each layer at the query's token, float64."""

    content: Float[np.ndarray, "layer batch width"]
    """c, less that of the first prompt."""
    response: Float[np.ndarray, "layer batch width dim"]
    """A."""
    curvature: Float[np.ndarray, " layer"]
    """Share of the states' variance over queries that is not affine in the query."""
    lens: Float[np.ndarray, "layer batch dim"]
    """Implicit weights of the read-out, applied at once."""
    skip: Float[np.ndarray, "layer batch dim"]
    """Implicit weights of the last layer and the read-out, applied at once; for the last layer, its
    own answer.
    """


@torch.no_grad()
def query_states(
    model: Transformer, prompts: FilterPrompts, prompts_at_once: int = 64
) -> QueryStates:
    """Run fresh queries behind each prompt's k examples, and take every layer's state there.

    Args:
        model: the learner.
        prompts: k + 1 examples each, in the dtype and on the device of the learner.
        prompts_at_once: prompts in memory together.

    Raises:
        ValueError: if there are too few queries to determine an affine map.
    """
    num_queries, dim = prompts.queries.shape[1:]
    if num_queries <= dim + 1:
        raise ValueError(
            f"num_queries={num_queries} cannot determine an affine map of dim={dim}; "
            f"allowed: more than {dim + 1}"
        )
    chunks = zip(*(tensor.split(prompts_at_once) for tensor in prompts[:3]), strict=True)
    columns = zip(*(_run(model, *chunk) for chunk in chunks), strict=True)
    content, response, lens, skip, missed, total = (torch.cat(column, dim=1) for column in columns)
    content = content - content[:, :1]
    curvature = missed.sum(1) / total.sum(1)
    return QueryStates(
        *(tensor.cpu().numpy() for tensor in (content, response, curvature, lens, skip))
    )


def _run(model: Transformer, xs: Tensor, ys: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
    """Content, response, lens and skip of a few prompts, and the curvature as two sums a prompt."""
    seen = xs.shape[1] - 1
    context = model.embed(xs, ys)[:, : 2 * seen]
    hidden = (model.read_in(F.pad(queries, (1, 0))) + model.positions[2 * seen])[:, None]
    visible = torch.ones(1, 2 * seen, dtype=torch.bool, device=xs.device)
    rows = []
    for layer in range(len(model.blocks) + 1):
        if layer:
            block = model.blocks[layer - 1]
            hidden, context = block.from_context(hidden, context, visible), block(context)
        shortcut = hidden
        if layer < len(model.blocks):
            shortcut = model.blocks[-1].from_context(hidden, context, visible)
        content, response, missed, total = _affine(queries, hidden[:, 0])
        answers = (_slopes(queries, model.read(state[:, 0])) for state in (hidden, shortcut))
        rows.append((content, response, *answers, missed, total))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _slopes(
    queries: Float[Tensor, "batch query dim"], answers: Float[Tensor, "batch query"]
) -> Float[Tensor, "batch dim"]:
    """Implicit weights of answers."""
    return (torch.linalg.pinv(queries.double()) @ answers.double().unsqueeze(-1)).squeeze(-1)


def _affine(
    queries: Float[Tensor, "batch query dim"], states: Float[Tensor, "batch query width"]
) -> tuple[Tensor, ...]:
    """Content (B, H), response (B, H, d), and a prompt's sums of squares missed and in all."""
    design = F.pad(queries.double(), (0, 1), value=1.0)
    # Relative to one query's state first: a constructed network's padding is 1e14.
    reference = states[:, :1].double()
    moved = states.double() - reference
    fitted = torch.linalg.pinv(design) @ moved
    missed = (moved - design @ fitted).square().sum((1, 2))
    total = (moved - moved.mean(1, keepdim=True)).square().sum((1, 2))
    return fitted[:, -1] + reference[:, 0], fitted[:, :-1].mT, missed, total


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


def _read(
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


def _read_best(
    states: QueryStates, layer: int, weights: np.ndarray, split: ReadoutSplit
) -> np.ndarray:
    """Weights (B, d) read from whichever carrier has the lower validation error."""
    tried = [
        _read(states, layer, carrier, weights[..., None], split)
        for carrier in ("response", "content")
    ]
    return min(tried, key=lambda result: result[1].sum())[0][..., 0]


class LayerFilters(NamedTuple):
    """The tables of `FilterMeasurement` with ``readout`` and ``layer``, and what is readable."""

    bins: pd.DataFrame
    shares: pd.DataFrame
    scores: pd.DataFrame
    parameters: pd.DataFrame
    curves: pd.DataFrame
    readable: pd.DataFrame


def layer_filters(
    model: Transformer,
    task: TaskConfig,
    config: FilterConfig,
    seed: int,
    readouts: tuple[str, ...] = DIRECT_READOUTS,
) -> LayerFilters:
    """The filter of each layer, by each read-out, on prompts that the read-out was not fitted to.

    Args:
        model: the learner, of any dtype.
        task: the task whose prompts are stretched.
        config: settings; its ``layer_families`` are fitted.
        seed: of prompts and bootstrap.
        readouts: of `READOUTS`.

    Raises:
        ValueError: on a read-out that does not exist.
    """
    _check(readouts)
    prompts, spectrum, states, split = _prepare(model, task, config, seed)
    settings = config.model_copy(update={"families": config.layer_families})
    tables: list[FilterMeasurement] = []
    for readout in readouts:
        for layer in range(len(states.lens)):
            weights, used = _weights(states, layer, readout, spectrum, split)
            if (weights**2).mean() <= SMALLEST_ANSWER:
                continue
            measured = measure_filter(
                weights, spectrum.select(used), prompts.fitting[used], settings, seed
            )
            tables.append(FilterMeasurement(*(_label(table, readout, layer) for table in measured)))
    joined = (pd.concat(column, ignore_index=True) for column in zip(*tables, strict=True))
    return LayerFilters(*joined, readable_filters(states, spectrum, split, config, seed))


def layer_power(
    model: Transformer, task: TaskConfig, config: FilterConfig, seed: int, readout: str = "skip"
) -> pd.DataFrame:
    """`filter_power` at each layer: would the families be told apart there, were one the truth?

    Args:
        model: the learner.
        task: the task whose prompts are stretched.
        config: settings.
        seed: of prompts and noise.
        readout: of `READOUTS`.

    Returns:
        The table of `filter_power` with ``readout`` and ``layer``.

    Raises:
        ValueError: on a read-out that does not exist.
    """
    _check((readout,))
    prompts, spectrum, states, split = _prepare(model, task, config, seed)
    tables = []
    for layer in range(len(states.lens)):
        weights, used = _weights(states, layer, readout, spectrum, split)
        if (weights**2).mean() > SMALLEST_ANSWER:
            inside = spectrum.select(used)
            coordinates = inside.coordinates(weights)
            power = filter_power(coordinates, inside, prompts.fitting[used], config, seed)
            tables.append(_label(power, readout, layer))
    return pd.concat(tables, ignore_index=True)


def layer_paths(filters: LayerFilters) -> pd.DataFrame:
    """Does each family's free number grow by equal amounts a layer, or by equal factors?

    Fu et al. (2023) read "Newton" from steps that grow linearly with depth where gradient descent's
    grow exponentially. A ridge penalty that falls by a factor a layer shows both, so that this
    table says how fast the learner moves, and the filters' shape (``scores``) by which family.

    Returns:
        ``readout``, ``quantity`` (``newton_steps``, ``gradient_time`` = 2αm, ``ridge_strength`` =
        1/λ), ``num_layers`` (those whose read-out is a filter by at least half), ``first``,
        ``last``, ``linear_r2`` and ``log_r2`` (of a straight line over layers, in the quantity and
        in its logarithm) and ``doublings`` a layer.
    """
    shares = filters.shares[filters.shares["axis"] == "eigenvalue"]
    good = shares[shares["mean"] >= LEAST_SHARE][["readout", "layer"]]
    # The last layer by itself is what `skip` reads from the one before.
    good = good[(good["readout"] != "skip") | (good["layer"] < filters.shares["layer"].max())]
    fitted = filters.parameters.merge(good, on=["readout", "layer"])
    rows = []
    for family, parameter, quantity, power in (
        ("newton", "num_steps", "newton_steps", 1),
        ("gradient_flow", "time", "gradient_time", 1),
        ("ridge", "penalty", "ridge_strength", -1),
    ):
        names = (family, f"scaled_{family}")
        chosen = fitted[fitted["family"].isin(names) & (fitted["parameter"] == parameter)]
        chosen = chosen.drop_duplicates(["readout", "layer"])
        for readout, steps in chosen.groupby("readout", sort=False):
            values = steps["value"].to_numpy(float)
            growth = _growth(steps["layer"].to_numpy(float), 1 / values if power < 0 else values)
            rows.append({"readout": readout, "quantity": quantity} | growth)
    return pd.DataFrame(rows)


def _growth(layers: np.ndarray, values: np.ndarray) -> dict[str, int | float]:
    """Straight lines over layers; of fewer than three layers, or of the logarithm of 0, none."""
    growth = {"num_layers": len(layers), "first": values[0], "last": values[-1]}
    growth |= {"linear_r2": np.nan, "log_r2": np.nan, "doublings": np.nan}
    if len(layers) >= 3:
        growth["linear_r2"] = linregress(layers, values).rvalue ** 2
        if (values > 0).all():
            line = linregress(layers, np.log2(values))
            growth |= {"log_r2": line.rvalue**2, "doublings": line.slope}
    return growth


def _check(readouts: tuple[str, ...]) -> None:
    unknown = [name for name in readouts if name not in READOUTS]
    if unknown or not readouts:
        raise ValueError(
            f"readouts={readouts!r} is not allowed; allowed: some of {', '.join(READOUTS)}"
        )


def _prepare(
    model: Transformer, task: TaskConfig, config: FilterConfig, seed: int
) -> tuple[FilterPrompts, Spectra, QueryStates, ReadoutSplit]:
    parameter = next(model.parameters())
    prompts = draw_filter_prompts(task, config, seed)
    states = query_states(model, prompts.to(parameter.device, parameter.dtype))
    split = split_prompts(config.num_prompts, len(config.conditions))
    return prompts, spectra(prompts), states, split


def _label(table: pd.DataFrame, readout: str, layer: int) -> pd.DataFrame:
    labelled = table.copy()
    labelled.insert(0, "layer", layer)
    labelled.insert(0, "readout", readout)
    return labelled


def _weights(
    states: QueryStates, layer: int, readout: str, spectrum: Spectra, split: ReadoutSplit
) -> tuple[Float[np.ndarray, "used dim"], np.ndarray]:
    """Weights read from a layer, and their prompts: those that the read-out was not fitted to."""
    if readout in DIRECT_READOUTS:
        return getattr(states, readout)[layer], np.arange(len(spectrum.values))
    used = np.flatnonzero(split.rest)
    wanted = states.lens[-1] if readout == "final" else spectrum.weights(spectrum.solution)
    return _read_best(states, layer, wanted, split)[used], used


def readable_filters(
    states: QueryStates, spectrum: Spectra, split: ReadoutSplit, config: FilterConfig, seed: int
) -> pd.DataFrame:
    """Which member of each family is read best from a layer, and which is new in it.

    Each member's weights are regressed on the states. ``best`` is the member with the lowest share
    missed on validation prompts; it is no measure of progress by itself, as what an early layer
    held is often still there. ``new`` is the member whose share missed fell most from the layer
    before: for constructed gradient descent, the step that the layer took. Members are on a grid;
    gradient descent has the step size that fits the learner's final weights.

    Returns:
        ``layer``, ``carrier``, ``choice`` (``best`` or ``new``), ``family``, ``value`` (of the free
        number), ``missed`` with ``low`` and ``high``, ``gain`` (share missed in the layer before,
        over this one's) with ``gain_low``, ``gain_high``, and ``ratio`` with ``ratio_low``,
        ``ratio_high``: to the family with the least share missed. All on prompts that chose
        nothing.
    """
    names, values, targets = _targets(states, spectrum, split)
    total = (targets[split.rest] ** 2).sum(1)
    rows = []
    for carrier in ("response", "content"):
        validated = left = None
        for layer in range(len(states.lens)):
            before, left_before = validated, left
            read, errors = _read(states, layer, carrier, targets, split)
            validated = errors / (targets[split.validation] ** 2).sum((0, 1))
            left = ((read - targets)[split.rest] ** 2).sum(1)
            left_before = total if left_before is None else left_before
            gains = (np.ones_like(validated) if before is None else before) / validated
            choices = {"best": _lowest(names, validated), "new": _lowest(names, 1 / gains)}
            for choice, chosen in choices.items():
                parts = (part[:, chosen] for part in (left, left_before, total))
                table = _readable_rows(*parts, config, seed)
                labels = {"layer": layer, "carrier": carrier, "choice": choice}
                labels |= {"family": names[chosen], "value": values[chosen]}
                rows.append(pd.DataFrame(labels).join(table))
    return pd.concat(rows, ignore_index=True)


def _lowest(names: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The index of the lowest value of each family."""
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    return np.array([indices[values[indices].argmin()] for indices in members])


def _readable_rows(
    left: np.ndarray, before: np.ndarray, total: np.ndarray, config: FilterConfig, seed: int
) -> pd.DataFrame:
    nearest = np.repeat(left[:, [(left.sum(0) / total.sum(0)).argmin()]], left.shape[1], axis=1)
    missed = error_ratios(left, total, config, seed)
    table = missed.rename(columns={"mean": "missed"})
    for name, over in (
        ("gain", error_ratios(before, left, config, seed)),
        ("ratio", error_ratios(left, nearest, config, seed)),
    ):
        table[[name, f"{name}_low", f"{name}_high"]] = over[["mean", "low", "high"]]
    return table


def _targets(
    states: QueryStates, spectrum: Spectra, split: ReadoutSplit
) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, "batch dim target"]]:
    """Names, free numbers and weights of the members that are looked for."""
    size = float(spectrum.values.max())
    used = split.train | split.validation
    final = spectrum.coordinates(states.lens[-1])[used]
    inside = spectrum.select(used)
    descent = FAMILIES["gradient_descent"]
    fit = fit_family(descent, final, inside, np.ones_like(final), size)
    step_size = fit.number[0]
    names, values, weights = [], [], []
    for name in READ_FAMILIES:
        grid = FAMILIES[name].grid(size)
        if name == "gradient_descent":
            steps = np.unique(grid[:, 1])
            grid = np.stack((np.full(len(steps), step_size), steps), axis=1)
        elif name != "newton":
            grid = grid[::2]
        names += [name] * len(grid)
        values.append(grid[:, -1])
        weights.append(FAMILIES[name].apply(spectrum, grid))
    names.append("least_squares")
    values.append(np.array([np.nan]))
    weights.append(spectrum.solution[None])
    targets = np.moveaxis(spectrum.weights(np.concatenate(weights)), 0, -1)
    return np.array(names), np.concatenate(values), targets
