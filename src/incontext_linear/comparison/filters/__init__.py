"""Spectral filters: which function of the eigenvalues of XᵀX does a learner apply to least squares?

With S = XᵀX = Σ sᵢ uᵢuᵢᵀ of the k examples seen, many algorithms apply a filter f to the
least-squares weights: ŵ = Σ f(sᵢ) (uᵢᵀ w_OLS) uᵢ. The filter of any predictor is the regression of
aᵢ = uᵢᵀŵ on bᵢ = uᵢᵀw_OLS among eigenvalues of a size, where ŵ are its implicit weights (paper,
section 4).

config     settings
families   the filters that algorithms have, and the member that fits best
prompts    prompts whose eigenvalues spread over decades
free       the filter as it is, of no family
scores     families fitted on half of the prompts and compared on the other half
measure    all tables of one learner
states     every layer's state at the query's token
readouts   weights read from them
readable   which filters can be read from a layer
layers     the filter of every layer
"""

from incontext_linear.comparison.filters.config import FilterConfig
from incontext_linear.comparison.filters.free import (
    FreeFilter,
    filter_bins,
    filter_shares,
    fit_free_filter,
    prompt_ratios,
    residual_variances,
)
from incontext_linear.comparison.filters.measure import (
    FilterMeasurement,
    learner_filter,
    measure_filter,
)
from incontext_linear.comparison.filters.prompts import (
    FilterPrompts,
    draw_filter_prompts,
    learner_weights,
    spectra,
)
from incontext_linear.comparison.filters.scores import (
    FilterFits,
    error_ratios,
    filter_power,
    fit_families,
)

__all__ = [
    "FilterConfig",
    "FilterFits",
    "FilterMeasurement",
    "FilterPrompts",
    "FreeFilter",
    "draw_filter_prompts",
    "error_ratios",
    "filter_bins",
    "filter_power",
    "filter_shares",
    "fit_families",
    "fit_free_filter",
    "learner_filter",
    "learner_weights",
    "measure_filter",
    "prompt_ratios",
    "residual_variances",
    "spectra",
]
