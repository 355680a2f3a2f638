"""Parameters of the behavioural comparison."""

from incontext_linear.config import Config, OpenFraction, PositiveInt


class ComparisonConfig(Config):
    """Behavioural comparison: SPD, implicit weights, ILWD and their bootstrap intervals."""

    num_queries: PositiveInt = 64
    num_weight_prompts: PositiveInt = 256
    """Prompts on which implicit weights are estimated (each costs num_queries predictions a
    prefix).
    """
    confidence: OpenFraction = 0.95
    num_resamples: PositiveInt = 1000
