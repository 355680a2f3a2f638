"""Kedro's project settings."""

import logging
import os
import warnings

from incontext_linear.runs.garbage import no_search
from incontext_linear.runs.interrupts import quiet_start

# Threads that wait for each other sleep instead of spinning: as fast on an idle machine, and
# several times faster where other programs want the cores too. Must be set before PyTorch loads
# OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What libraries say of each other, recommend though `session` refuses it, or raise as well.
warnings.filterwarnings("ignore", message="(?s).*register_new_resolver")
_NOISE = {
    "py.warnings": "Add type hints to the `predict` method",
    "kedro_mlflow.framework.hooks.mlflow_hook": "Registering new custom resolver",
    "kedro.runner.sequential_runner": "Use the --async flag",
    "kedro_viz.integrations.kedro.run_hooks": "Workflow tracking is disabled for non-sequential",
    "mlflow.store.db.utils": "SQLAlchemy database error",  # with a traceback; it is raised too
}
for _logger, _text in _NOISE.items():
    logging.getLogger(_logger).addFilter(lambda r, text=_text: text not in r.getMessage())

with quiet_start(), no_search():
    from incontext_linear.environment import CONFIG_LOADER_ARGS, OnceConfigLoader  # noqa: F401
    from incontext_linear.hooks import ProjectChecks, Stages
    from incontext_linear.runs.reporting import Reporting
    from incontext_linear.runs.session import ProjectSession
    from incontext_linear.tracking import Tracking

CONFIG_LOADER_CLASS = OnceConfigLoader
SESSION_CLASS = ProjectSession
# Tracking stands in for kedro-mlflow's own hook, so the plugin must not register that one too.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow",)
# Those that stand later are called earlier: the report is logged while its MLflow run is open.
HOOKS = (ProjectChecks(), Tracking(), Stages(), Reporting())
