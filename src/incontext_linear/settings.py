"""Kedro's project settings."""

import warnings

# Noise from the libraries about themselves, nothing that a user of this project can mend.
warnings.filterwarnings("ignore", message="(?s).*register_new_resolver")
warnings.filterwarnings("ignore", message="(?s).*Add type hints to the `predict` method")

from incontext_linear.hooks import ProjectChecks, Tracking  # noqa: E402

# Tracking is kedro-mlflow's own hook with one method changed, so the plugin must not register its own.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)
HOOKS = (ProjectChecks(), Tracking())
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment overrides single parameters, not whole branches.
    "merge_strategy": {"parameters": "soft"},
}
