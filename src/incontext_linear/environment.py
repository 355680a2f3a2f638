"""An environment's parameters and catalog entries without a Kedro session, for programs beside
``kedro run``.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.config import AbstractConfigLoader, MissingConfigException, OmegaConfigLoader
from kedro.io import DataCatalog
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from incontext_linear.files import remove_temporaries
from incontext_linear.parameters import Parameters, check_parameters
from incontext_linear.runs.locks import LOCK_FILE, LockedError, exclusive

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"sweeps": ["sweeps*", "sweeps*/**", "**/sweeps*"]},
    # An environment overrides single parameters, not whole branches.
    "merge_strategy": {"parameters": "soft", "sweeps": "soft"},
}
"""How Kedro reads ``conf/``."""


logger = logging.getLogger(__name__)


class OnceConfigLoader(OmegaConfigLoader):
    """Kedro's, which reads each kind of configuration once: a run asks for the same files four or
    five times, and each time costs a quarter of a second.
    """

    def __init__(self, *args: Any, **settings: Any):
        self._read: dict[tuple[str, ...], Any] = {}
        super().__init__(*args, **settings)

    def __getitem__(self, key: str) -> Any:
        """As Kedro's; what is given belongs to the caller, who may change it."""
        if key in self.data:  # set by somebody
            return super().__getitem__(key)
        # Runtime parameters and patterns of plugins can be given after the loader is made.
        changing = self.env, self.runtime_params, self.config_patterns.get(key)
        asked = key, *map(repr, changing)
        if asked not in self._read:
            self._read[asked] = super().__getitem__(key)
        return copy.deepcopy(self._read[asked])


LAYERS = "[0-9][0-9]_*"
"""The folders of a data folder that a run writes to; beside them lie other environments' folders
and sweeps, which have writers of their own.
"""


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


@contextmanager
def sole_run(data: Path) -> Iterator[None]:
    """Be the only run that writes to a data folder; remove what killed ones left there half-made.

    Raises:
        click.ClickException: if another run holds the folder, saying which, or it cannot be
            written to.
    """
    lock = exclusive(data / LOCK_FILE)
    try:
        lock.__enter__()
    except LockedError as error:
        raise click.ClickException(
            f"{error}. Two runs would mix their results, and the later learner would take the "
            "place of the earlier one. Wait for it, or give this run files of its own: "
            "`--env NAME` with a folder conf/NAME whose globals.yml says `data: data/NAME`, or "
            "`kedro sweep run`, where every variant has a folder"
        ) from None
    except OSError as error:
        raise click.ClickException(f"cannot write to {data}: {error.strerror}") from None
    try:
        stale = [path for layer in data.glob(LAYERS) for path in remove_temporaries(layer)]
        if stale:
            logger.info("Removed %d unfinished files of a run that was killed", len(stale))
        yield
    finally:
        lock.__exit__(None, None, None)


def environment_data(project: Path, env: str | None) -> Path:
    """The data folder of a Kedro environment."""
    return data_folder(project, _loader(project, env, None))


def _loader(
    project: Path, env: str | None, runtime_parameters: dict[str, Any] | None
) -> OnceConfigLoader:
    arguments = {**CONFIG_LOADER_ARGS, "runtime_params": runtime_parameters or {}}
    return OnceConfigLoader(str(project / "conf"), env=env, **arguments)


def read_environment(
    project: Path, env: str | None, runtime_parameters: dict[str, Any] | None = None
) -> tuple[Parameters, DataCatalog]:
    """The parameters of a Kedro environment, and its catalog's entries for the learner and
    checkpoints.

    Kedro's hooks are left out: many processes that each open MLflow's database would trip over one
    another.
    """
    loader = _loader(project, env, runtime_parameters)
    catalog = read_configuration(loader, "catalog")
    entries = {name: catalog[name] for name in ("learner", "training_checkpoints")}
    for entry in entries.values():
        place = "filepath" if "filepath" in entry else "path"
        entry[place] = str(project / entry[place])
    parameters = check_parameters(read_configuration(loader, "parameters"))
    return parameters, DataCatalog.from_config(entries)
