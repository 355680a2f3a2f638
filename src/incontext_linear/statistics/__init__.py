"""The one bootstrap: resampling counts over prompts and seeds, and the intervals made from them.

draws         which samples each resample holds: prompts, seeds, prompts within seeds, both crossed
means         means, paired differences and medians of samples
ratios        ratios of means over the same samples
percentiles   of any other statistic in resamples, also over few seeds; shares of the arg min
tails         the Pareto tail by which upper limits look past the largest value seen

Every interval of the project comes from here. Squared prediction differences (SPD, paper section 4)
have heavy tails near k = d: the worst prompt in a thousand holds a quarter to a third of the mean,
so a percentile interval of 1,024 prompts covers the mean in 65 to 80 of 100 samples where it says
95. `mean_interval` therefore studentises on the log scale and lets the upper limit look past the
largest value seen. `docs/reference/statistics.md` has formulas and measured coverage.

Why not `scipy.stats.bootstrap`: it draws its resamples anew in every call, so columns and
predictors would not share them (and drawing is most of the cost); it holds resamples × samples ×
columns values at once (32 GB for 100,000 prompts and 40 columns, or a loop over batches); and it
has no studentised interval, no tails, and no nested or crossed resampling. The tests compare with
it. `scipy.special` is imported by the functions that use it, since a run imports this package
before its first node.
"""

from incontext_linear.config import BootstrapConfig
from incontext_linear.statistics.draws import (
    Draws,
    crossed_means,
    nested_draws,
    nested_weights,
    resampled_means,
    sample_draws,
)
from incontext_linear.statistics.means import (
    FEW,
    LARGEST,
    mean_interval,
    median_interval,
    paired_difference,
)
from incontext_linear.statistics.percentiles import (
    argmin_shares,
    few_seeds_factor,
    interval,
    seeds_interval,
)
from incontext_linear.statistics.ratios import paired_log_ratio, ratio_interval

__all__ = [
    "FEW",
    "LARGEST",
    "BootstrapConfig",
    "Draws",
    "argmin_shares",
    "crossed_means",
    "few_seeds_factor",
    "interval",
    "mean_interval",
    "median_interval",
    "nested_draws",
    "nested_weights",
    "paired_difference",
    "paired_log_ratio",
    "ratio_interval",
    "resampled_means",
    "sample_draws",
    "seeds_interval",
]
