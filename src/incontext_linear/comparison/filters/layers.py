"""The spectral filter of every layer: what would the learner answer if this were its last layer but
one?

Four read-outs turn a layer's state at the query's token (`states`) into implicit weights:

skip    leaves out the layers between this one and the last: the last layer, with this layer's
        context, and the learner's own read-out follow. Nothing is fitted.
lens    the learner's own read-out, applied at once (the logit lens). Nothing is fitted.
final   linear in c or A, fitted to the learner's final implicit weights.
labels  the same, fitted to the least-squares weights, as a read-out of the labels would be.

On constructed gradient descent `skip` finds every step exactly and `lens` finds nothing before the
last layer. `final` and `labels` are biased: a read-out that may combine s and 1 − (1−2αs)^m forms
polynomials of higher degree, and reads two steps as four or eight.

Shape letters: L layers (the embedding is layer 0), B prompts, d dimensions.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.families import Spectra
from incontext_linear.comparison.filters.measure import FilterMeasurement, measure_filter
from incontext_linear.comparison.filters.prompts import FilterPrompts, draw_filter_prompts, spectra
from incontext_linear.comparison.filters.readable import readable_filters
from incontext_linear.comparison.filters.readouts import ReadoutSplit, read_best, split_prompts
from incontext_linear.comparison.filters.scores import filter_power
from incontext_linear.comparison.filters.states import QueryStates, query_states
from incontext_linear.config import MeasurementError, TaskConfig
from incontext_linear.learner.base import Network

READOUTS = ("skip", "lens", "final", "labels")

# Those that fit nothing; the others serve to show their bias.
DIRECT_READOUTS = ("skip", "lens")

# A layer whose read-out is less of a filter than this has no place on a path.
LEAST_SHARE = 0.5

# A constructed network answers 0, up to rounding, until its last layer; mean square of a weight.
SMALLEST_ANSWER = 1e-12


class LayerFilters(NamedTuple):
    """The tables of `FilterMeasurement` with ``readout`` and ``layer``, and what is readable."""

    bins: pd.DataFrame
    shares: pd.DataFrame
    scores: pd.DataFrame
    parameters: pd.DataFrame
    curves: pd.DataFrame
    readable: pd.DataFrame


def layer_filters(
    model: Network,
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
        MeasurementError: if no layer answers to its queries.
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
    if not tables:
        raise MeasurementError(
            "no layer of this learner answers to its queries, so none has a filter; allowed: a "
            "learner that was trained, on inputs of moderate size (task.inputs)"
        )
    joined = (pd.concat(column, ignore_index=True) for column in zip(*tables, strict=True))
    return LayerFilters(*joined, readable_filters(states, spectrum, split, config, seed))


def layer_power(
    model: Network, task: TaskConfig, config: FilterConfig, seed: int, readout: str = "skip"
) -> pd.DataFrame:
    """`filter_power` at each layer: could it tell the families apart there, if one were true?

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
        from scipy.stats import linregress  # takes a second to import

        line: Any = linregress(layers, values)
        growth["linear_r2"] = line.rvalue**2
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
    model: Network, task: TaskConfig, config: FilterConfig, seed: int
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
    return read_best(states, layer, wanted, split)[used], used
