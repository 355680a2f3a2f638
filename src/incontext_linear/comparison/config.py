"""Parameters of the behavioural comparison."""

from incontext_linear.config import BootstrapConfig, Config, PositiveInt


class ComparisonConfig(Config):
    """Behavioural comparison: SPD, implicit weights, ILWD and their bootstrap intervals."""

    num_queries: PositiveInt = 64
    num_weight_prompts: PositiveInt = 256
    """Prompts on which implicit weights are estimated (each costs num_queries predictions a
    prefix).
    """
    bootstrap: BootstrapConfig = BootstrapConfig()
