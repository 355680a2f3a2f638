"""From probe errors to findings: scores, selectivity over the controls, and where each target
appears.

A low probe error alone says little: a large probe finds much in any hidden state. Every score is
therefore held against controls, and what counts is the error that the controls leave and the
learner does not:

    selectivity(layer, target) = error(best control) − error(learner),

a share of the target's variance. Layer, read-out and test prompts are the same on both sides; which
control is the best is said by the validation prompts, so that its error is not the smallest of
several noisy ones.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from incontext_linear.probing.config import ProbingConfig
from incontext_linear.probing.fitting import PROBE_KEYS, Split
from incontext_linear.probing.selection import Selection
from incontext_linear.statistics import crossed_means, interval, mean_interval

GROUP = ["target", "kind", "hidden_units", "examples_seen"]
"""What is read, and how: all of a probe's keys but its learner and layer."""


def score_table(errors: pd.DataFrame, config: ProbingConfig, seed: int) -> pd.DataFrame:
    """Held-out error and R² of every probe, with intervals over prompts and seeds.

    Args:
        errors: as `ProbeFit.error_table` gives them, of one or several sources.
        config: confidence and number of resamples (``bootstrap``).
        seed: of the bootstrap.

    Returns:
        The probe's keys, ``squared_error``, ``low``, ``high`` (a share of the target's variance),
        and ``r_squared``, ``r_squared_low``, ``r_squared_high``.
    """
    index, values = _arrays(errors)
    low, high = interval(
        crossed_means(values, config.bootstrap.num_resamples, seed), config.bootstrap.confidence
    )
    error = values.mean((0, 1))
    return index.assign(
        squared_error=error,
        low=low,
        high=high,
        r_squared=1 - error,
        r_squared_low=1 - high,
        r_squared_high=1 - low,
    )


def selectivity_tables(
    errors: pd.DataFrame, control_errors: pd.DataFrame, config: ProbingConfig, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Selectivity of every layer, target, read-out and k; where each target appears; in what order.

    A target appears at the first layer whose selectivity is at least a threshold, the same for all
    targets: measured by its own largest selectivity, one of two targets that are read equally well
    would appear before the other. Intervals are percentiles over the same resamples of prompts and
    seeds for all targets, so that differences of layers are paired; a resample in which a target
    does not reach the threshold counts as a layer behind all others (infinity).

    Args:
        errors: the learner's, as `ProbeFit.error_table` gives them.
        control_errors: the controls', of the same probes.
        config: confidence and number of resamples (``bootstrap``), thresholds (``appearance``).
        seed: of the bootstrap.

    Returns:
        Selectivities: ``layer`` and the group's columns, ``best_control``, ``selectivity``,
        ``low``, ``high``. Appearances: the group's columns, ``threshold``, ``layer`` (NaN: it
        appears nowhere), ``low``, ``high``. And for each threshold and pair of targets the
        ``difference`` of their layers (``later`` minus ``earlier``), ``low``, ``high`` and
        ``share_before``, the share of resamples in which ``earlier`` is strictly before.
    """
    confidence = config.bootstrap.confidence
    index, point, resamples, best = _selectivity(errors, control_errors, config, seed)
    low, high = interval(resamples, confidence)
    selectivity = index.assign(best_control=best, selectivity=point, low=low, high=high)
    found, orders = [], []
    for threshold in config.appearance:
        layers = {}
        for group, rows in index.groupby(GROUP, sort=False):
            columns = rows.sort_values("layer").index.to_numpy()
            values = np.vstack((point[columns], resamples[:, columns]))
            numbers = index["layer"].to_numpy()[columns]
            layers[group] = _first_reaching(values, numbers, threshold)
            limits = interval(layers[group][1:, None], confidence, discrete=True)
            first = layers[group][0]
            bounds = [limit.item() if np.isfinite(first) else np.nan for limit in limits]
            row = [*group, threshold, first if np.isfinite(first) else np.nan, *bounds]
            found.append(dict(zip([*GROUP, "threshold", "layer", "low", "high"], row, strict=True)))
        orders.append(_order_table(layers, confidence).assign(threshold=threshold))
    return selectivity, pd.DataFrame(found), pd.concat(orders, ignore_index=True)


def overlap_table(selection: Selection, config: ProbingConfig, seed: int) -> pd.DataFrame:
    """What each target gives away of every other: the error of a linear regression between them.

    Targets of the same examples are correlated. A layer that holds one of them perfectly, and
    nothing else, lets a probe read another down to this error: only below it is there evidence of
    the other target itself. No learner has a part in this.

    Args:
        selection: the targets' values, prompts to fit on and prompts to test on.
        config: confidence and number of resamples (``bootstrap``).
        seed: of the bootstrap.

    Returns:
        ``target``, ``given``, ``examples_seen``, ``squared_error`` (a share of the target's
        variance), ``low``, ``high``.
    """
    rows, errors = [], []
    for column in selection.columns:
        target, seen, values = column.target, column.examples_seen, column.values
        for other in selection.columns:
            given, also, known = other.target, other.examples_seen, other.values
            if target == given or seen != also:
                continue
            rows.append({"target": target, "given": given, "examples_seen": seen})
            errors.append(_regression_errors(known.double(), values.double(), selection.split))
    if not rows:
        names = ["target", "given", "examples_seen", "squared_error", "low", "high"]
        return pd.DataFrame(columns=names)
    bootstrap = config.bootstrap
    values = torch.stack(errors, 1).cpu().numpy()
    means = mean_interval(values, bootstrap, seed)[["mean", "low", "high"]]
    return pd.concat((pd.DataFrame(rows), means.rename(columns={"mean": "squared_error"})), axis=1)


def _regression_errors(
    known: Float[Tensor, "batch known"], values: Float[Tensor, "batch size"], split: Split
) -> Float[Tensor, " test"]:
    train, test = (part.to(values.device) for part in (split.train, split.test))
    known, values = known - known[train].mean(0), values - values[train].mean(0)
    weights = torch.linalg.pinv(known[train]) @ values[train]
    missed = (known[test] @ weights - values[test]).square().sum(-1)
    return missed / values[train].square().sum(-1).mean()


def _first_reaching(
    selectivity: Float[np.ndarray, "resample layer"], numbers: np.ndarray, threshold: float
) -> Float[np.ndarray, " resample"]:
    """The first layer that reaches the threshold, in every resample; infinity: none does."""
    reached = selectivity >= threshold
    return np.where(reached.any(1), numbers[reached.argmax(1)].astype(float), np.inf)


def _order_table(
    layers: dict[tuple, Float[np.ndarray, " resample"]], confidence: float
) -> pd.DataFrame:
    rows = []
    for earlier, first in layers.items():
        for later, second in layers.items():
            if earlier[1:] != later[1:] or list(layers).index(earlier) >= list(layers).index(later):
                continue
            row = [np.nan] * 4  # no order of what appears nowhere
            if np.isfinite(first[0]) and np.isfinite(second[0]):
                with np.errstate(invalid="ignore"):  # neither reaches the threshold: no order
                    resampled = np.nan_to_num(second[1:] - first[1:], nan=0.0)
                limits = interval(resampled[:, None], confidence, discrete=True)
                bounds = [limit.item() for limit in limits]
                row = [second[0] - first[0], *bounds, float((resampled > 0).mean())]
            rows.append([earlier[0], later[0], *earlier[1:], *row])
    names = ["earlier", "later", *GROUP[1:], "difference", "low", "high", "share_before"]
    return pd.DataFrame(rows, columns=names)


def _selectivity(
    errors: pd.DataFrame, control_errors: pd.DataFrame, config: ProbingConfig, seed: int
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """Keys, selectivity and its resamples, and best control of each column."""
    index, learner = _arrays(errors)
    own, values = _arrays(control_errors)
    names, by_source, chooses = list(dict.fromkeys(own["source"])), [], []
    for name in names:
        rows = own[own["source"] == name].reset_index().set_index([*GROUP, "layer"])["index"]
        rows = rows.loc[pd.MultiIndex.from_frame(index[[*GROUP, "layer"]])].to_numpy()
        by_source.append(values[..., rows])
        chooses.append(_validation_means(control_errors, own)[rows])
    best = np.argmin(chooses, axis=0)
    control = np.take_along_axis(np.stack(by_source), best[None, None, None], 0)[0]
    # Learner and control are of the same prompts, so that their difference is resampled.
    num_resamples = config.bootstrap.num_resamples
    resampled = crossed_means(control - learner, num_resamples, seed)
    point = (control - learner).mean((0, 1))
    return index.drop(columns="source"), point, resampled, np.array(names)[best]


def _validation_means(errors: pd.DataFrame, keys: pd.DataFrame) -> Float[np.ndarray, " probe"]:
    """Each probe's error on the validation prompts, the mean over refits."""
    means = errors.groupby(PROBE_KEYS, observed=True)["validation_error"].mean()
    return means.loc[pd.MultiIndex.from_frame(keys[PROBE_KEYS])].to_numpy()


def _arrays(errors: pd.DataFrame) -> tuple[pd.DataFrame, Float[np.ndarray, "seed prompt column"]]:
    """Keys of each probe, in the order of the table, and its errors (S, P, columns)."""
    codes, keys = pd.factorize(pd.MultiIndex.from_frame(errors[PROBE_KEYS]))
    keys = keys.set_names(PROBE_KEYS)
    num_seeds, num_prompts = errors["seed"].nunique(), errors["prompt"].nunique()
    values = np.empty((num_seeds, num_prompts, len(keys)))
    values[errors["seed"], errors["prompt"], codes] = errors["squared_error"]
    return keys.to_frame(index=False), values
