"""All tables of one learner's filter, or of one read-out of one layer, in one call."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.families import Spectra
from incontext_linear.comparison.filters.free import filter_bins, filter_shares
from incontext_linear.comparison.filters.prompts import (
    draw_filter_prompts,
    learner_weights,
    spectra,
)
from incontext_linear.comparison.filters.scores import fit_families
from incontext_linear.config import TaskConfig
from incontext_linear.predictors import Predictor


class FilterMeasurement(NamedTuple):
    """All tables of one learner, or of one read-out of one layer."""

    bins: pd.DataFrame
    shares: pd.DataFrame
    scores: pd.DataFrame
    parameters: pd.DataFrame
    curves: pd.DataFrame


def measure_filter(
    weights: Float[np.ndarray, "batch dim"],
    spectra: Spectra,
    fitting: Bool[np.ndarray, " batch"],
    config: FilterConfig,
    seed: int,
) -> FilterMeasurement:
    """The filter of some implicit weights: in bins, as a share of their variance, and by families.

    Args:
        weights: ŵ (B, d).
        spectra: of the prompts they were estimated on.
        fitting: which prompts fit; the others score.
        config: settings.
        seed: of the bootstrap.
    """
    coordinates = spectra.coordinates(weights)
    bins = [
        filter_bins(coordinates, spectra, axis, config, seed) for axis in ("eigenvalue", "relative")
    ]
    return FilterMeasurement(
        pd.concat(bins, ignore_index=True),
        filter_shares(coordinates, spectra, fitting, config, seed),
        *fit_families(coordinates, spectra, fitting, config, seed),
    )


def learner_filter(
    predictor: Predictor,
    task: TaskConfig,
    config: FilterConfig,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> FilterMeasurement:
    """The filter of a learner's, or any predictor's, final predictions on separating prompts.

    Args:
        predictor: what is measured.
        task: the task whose prompts are stretched.
        config: settings.
        seed: of prompts and bootstrap.
        dtype: of the prompts: that of the learner's weights.
    """
    prompts = draw_filter_prompts(task, config, seed).to(dtype)
    weights = learner_weights(predictor, prompts)
    return measure_filter(weights, spectra(prompts), prompts.fitting, config, seed)
