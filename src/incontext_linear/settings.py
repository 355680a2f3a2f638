"""Kedro's project settings."""

import os
import warnings

# Threads that wait for each other sleep instead of spinning: as fast on an idle machine, and several times
# faster where other programs want the cores too. Must be set before PyTorch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Noise of one library about another, nothing that a user of this project can mend.
warnings.filterwarnings("ignore", message="(?s).*register_new_resolver")

from incontext_linear.hooks import ProjectChecks, Stages, Tracking  # noqa: E402

# Tracking stands in for kedro-mlflow's own hook, so the plugin must not register that one too.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)
HOOKS = (ProjectChecks(), Tracking(), Stages())
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"sweeps": ["sweeps*", "sweeps*/**", "**/sweeps*"]},
    # An environment overrides single parameters, not whole branches.
    "merge_strategy": {"parameters": "soft", "sweeps": "soft"},
}
