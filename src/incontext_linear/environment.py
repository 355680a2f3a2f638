"""An environment's parameters and catalog entries without a Kedro session, for programs beside
``kedro run``.
"""

from pathlib import Path
from typing import Any

from kedro.config import AbstractConfigLoader, MissingConfigException, OmegaConfigLoader
from kedro.io import DataCatalog
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from incontext_linear.parameters import Parameters, check_parameters

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"sweeps": ["sweeps*", "sweeps*/**", "**/sweeps*"]},
    # An environment overrides single parameters, not whole branches.
    "merge_strategy": {"parameters": "soft", "sweeps": "soft"},
}
"""How Kedro reads ``conf/``."""


class ConfigurationError(ValueError):
    """An environment, or a file of it, is missing or cannot be read; one line says which."""


def read_configuration(loader: AbstractConfigLoader, key: str) -> Any:
    """One kind of configuration: ``parameters``, ``catalog``, ``globals``, …

    Raises:
        ConfigurationError: naming the environment, if it has no folder, or the file that is not
            valid YAML.
    """
    source, env = Path(loader.conf_source), loader.env
    if env and not (source / env).is_dir():
        known = sorted(path.name for path in source.iterdir() if path.is_dir())
        raise ConfigurationError(
            f"--env {env}: there is no folder {source / env}; allowed: {', '.join(known)}"
        )
    try:
        return loader[key]
    except (YAMLError, OmegaConfBaseException, MissingConfigException, ValueError) as error:
        raise ConfigurationError(" ".join(f"the {key} in {source}: {error}".split())) from None


def data_folder(project: Path, loader: AbstractConfigLoader) -> Path:
    """Where a run of the environment keeps what it makes.

    Raises:
        ConfigurationError: as `read_configuration`.
    """
    return project / read_configuration(loader, "globals")["data"]


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
    catalog = read_configuration(loader, "catalog")
    entries = {name: catalog[name] for name in ("learner", "training_checkpoints")}
    for entry in entries.values():
        place = "filepath" if "filepath" in entry else "path"
        entry[place] = str(project / entry[place])
    parameters = check_parameters(read_configuration(loader, "parameters"))
    return parameters, DataCatalog.from_config(entries)
