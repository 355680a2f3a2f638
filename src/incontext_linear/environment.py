"""An environment's parameters and catalog entries without a Kedro session, for programs beside
``kedro run``.
"""

from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog

from incontext_linear.parameters import Parameters, check_parameters

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"sweeps": ["sweeps*", "sweeps*/**", "**/sweeps*"]},
    # An environment overrides single parameters, not whole branches.
    "merge_strategy": {"parameters": "soft", "sweeps": "soft"},
}
"""How Kedro reads ``conf/``."""


def read_environment(
    project: Path, env: str | None, runtime_parameters: dict[str, Any] | None = None
) -> tuple[Parameters, DataCatalog]:
    """The parameters of a Kedro environment, and its catalog's entries for the learner and
    checkpoints.

    Kedro's hooks are left out: many processes that each open MLflow's database would trip over one
    another.
    """
    arguments = {**CONFIG_LOADER_ARGS, "runtime_params": runtime_parameters or {}}
    loader = OmegaConfigLoader(str(project / "conf"), env=env, **arguments)
    entries = {name: loader["catalog"][name] for name in ("learner", "training_checkpoints")}
    for entry in entries.values():
        place = "filepath" if "filepath" in entry else "path"
        entry[place] = str(project / entry[place])
    return check_parameters(loader["parameters"]), DataCatalog.from_config(entries)
