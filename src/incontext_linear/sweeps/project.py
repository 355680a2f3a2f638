"""A project's sweeps, as Kedro's configuration gives them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.framework.project import settings
from kedro.framework.session import KedroSession
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

from incontext_linear.sweeps.config import SweepConfig, SweepError, check_sweeps
from incontext_linear.sweeps.variants import Variant, cross


@dataclass(frozen=True)
class Project:
    """A Kedro project in one environment.

    Args:
        path: the project's folder.
        env: the environment; None: Kedro's default.
    """

    path: Path
    env: str | None = None

    def _loader(self, runtime_params: dict[str, Any] | None = None) -> OmegaConfigLoader:
        source = str(self.path / settings.CONF_SOURCE)
        # Kedro merges into what it is given.
        overrides = copy.deepcopy(runtime_params or {})
        return OmegaConfigLoader(source, self.env, overrides, **settings.CONFIG_LOADER_ARGS)

    def sweeps(self) -> dict[str, SweepConfig]:
        """All sweeps by name.

        Raises:
            SweepError: if one is not well-formed.
        """
        try:
            return check_sweeps(self._loader()["sweeps"])
        except MissingConfigException:
            return {}

    def sweep(self, name: str) -> SweepConfig:
        """One sweep.

        Raises:
            SweepError: if there is none of this name; those that exist are named.
        """
        sweeps = self.sweeps()
        if name not in sweeps:
            raise SweepError(
                f"there is no sweep {name!r}; allowed: {', '.join(sweeps) or 'none is defined'}"
            )
        return sweeps[name]

    def folder(self, name: str) -> Path:
        """Where a sweep's variants lie, relative to the project."""
        return Path(self._loader()["globals"]["data"]) / "sweeps" / name

    def variants(self, name: str, sweep: SweepConfig) -> list[Variant]:
        """A sweep's variants, all checked.

        Raises:
            SweepError: naming every variant and parameter that is not valid.
        """
        return cross(name, sweep, lambda overrides: self._loader(overrides)["parameters"])

    @property
    def worker_environment(self) -> dict[str, str]:
        """Variables of worker processes on this machine: the terminal is the driver's, they log to
        files.
        """
        quiet = self.path / settings.CONF_SOURCE / "logging_workers.yml"
        return {"KEDRO_LOGGING_CONFIG": str(quiet)} if quiet.exists() else {}

    @contextmanager
    def mlflow(self) -> Iterator[KedroMlflowConfig]:
        """kedro-mlflow's configuration, set up as in a run of this environment."""
        try:
            with KedroSession.create(self.path, env=self.env) as session:
                yield session.load_context().mlflow
        except click.ClickException as error:  # of the project's own checks
            raise SweepError(error.message) from None
