"""Kedro's project settings."""

import os
import warnings

# Threads that wait for each other sleep instead of spinning: as fast on an idle machine, and
# several times faster where other programs want the cores too. Must be set before PyTorch loads
# OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Noise of one library about another, nothing that a user of this project can mend.
warnings.filterwarnings("ignore", message="(?s).*register_new_resolver")

from incontext_linear.environment import CONFIG_LOADER_ARGS  # noqa: E402, F401
from incontext_linear.hooks import ProjectChecks, Stages  # noqa: E402
from incontext_linear.tracking import Tracking  # noqa: E402

# Tracking stands in for kedro-mlflow's own hook, so the plugin must not register that one too.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)
HOOKS = (ProjectChecks(), Tracking(), Stages())
