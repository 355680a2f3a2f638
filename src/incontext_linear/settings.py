"""Kedro's project settings."""

from incontext_linear.hooks import ProjectChecks, Tracking

# Tracking is kedro-mlflow's own hook with one method changed, so the plugin must not register its own.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-mlflow",)
HOOKS = (ProjectChecks(), Tracking())
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment overrides single parameters, not whole branches.
    "merge_strategy": {"parameters": "soft"},
}
