"""A project's sweeps, as Kedro's configuration gives them."""

import copy
import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from kedro.framework.project import settings
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

from incontext_linear import pipelines as packages
from incontext_linear.environment import (
    ConfigurationError,
    OnceConfigLoader,
    read_configuration,
)
from incontext_linear.pipelines import OF_SEVERAL
from incontext_linear.runs.session import ProjectSession
from incontext_linear.sweeps.config import SweepConfig, SweepError, check_sweep
from incontext_linear.sweeps.state import SweepFolder
from incontext_linear.sweeps.variants import DECISIVE, PIPELINES, Variant, cross, laid_over


def branches_read(name: str, pipelines: tuple[str, ...]) -> tuple[str, ...]:
    """The branches of the parameters that a variant's pipelines read: its results depend on them.

    Args:
        name: of the sweep, for the message.
        pipelines: that the sweep names.

    Raises:
        SweepError: if there is no such pipeline, or it does not measure a learner.
    """
    if pipelines == ("behavioral_comparison",):  # the imports of the others take seconds
        return DECISIVE
    known = [module.name for module in pkgutil.iter_modules(packages.__path__)]
    allowed = [module for module in known if module not in (*PIPELINES, *OF_SEVERAL)]
    wrong = [pipeline for pipeline in pipelines if pipeline not in allowed]
    if wrong:
        raise SweepError(
            f"{name}.pipelines: there is no pipeline {wrong[0]!r} of one learner; allowed: "
            f"{', '.join(allowed)}"
        )
    branches: dict[str, None] = {}
    for pipeline in (*PIPELINES, *pipelines):
        module = importlib.import_module(f"{packages.__name__}.{pipeline}")
        inputs: set[str] = module.create_pipeline().inputs()
        read = (given.removeprefix("params:") for given in inputs if given.startswith("params:"))
        branches |= dict.fromkeys(sorted(one.partition(".")[0] for one in read))
    return tuple(
        branch for branch in branches if branch not in ("seed", "device", "registered_model")
    )


@dataclass(frozen=True)
class Project:
    """A Kedro project in one environment.

    Args:
        path: the project's folder.
        env: the environment; None: Kedro's default.
    """

    path: Path
    env: str | None = None

    @cached_property
    def _loader(self) -> OnceConfigLoader:
        source = str(self.path / settings.CONF_SOURCE)
        return OnceConfigLoader(source, self.env, **settings.CONFIG_LOADER_ARGS)

    def names(self) -> list[str]:
        """The sweeps that the environment defines, whether they can be run or not.

        Raises:
            SweepError: if there is no such environment, or a file of it cannot be read.
        """
        return list(self._sweeps())

    def sweep(self, name: str) -> SweepConfig:
        """One sweep.

        Raises:
            SweepError: if there is none of this name, naming those that exist; or if it is not
                well-formed.
        """
        sweeps = self._sweeps()
        if name not in sweeps:
            raise SweepError(
                f"there is no sweep {name!r}; allowed: {', '.join(sweeps) or 'none is defined'}"
            )
        return check_sweep(name, sweeps[name])

    def _sweeps(self) -> dict[str, Any]:
        if not list((self.path / settings.CONF_SOURCE).rglob("sweeps*")):
            return {}
        return self._read("sweeps")

    def _read(self, key: str) -> dict[str, Any]:
        try:
            return read_configuration(self._loader, key)
        except ConfigurationError as error:
            raise SweepError(str(error)) from None

    def _parameters(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The parameter tree with others laid over it, as Kedro's loader gives it.

        Where no parameter is made from another one it is read once: Kedro's loader takes a quarter
        of a second for every set of overrides.
        """
        if not self._interpolates:
            return laid_over(self._read("parameters"), overrides)
        # Kedro merges into what it is given.
        self._loader.runtime_params = copy.deepcopy(overrides)
        return self._read("parameters")

    @cached_property
    def _interpolates(self) -> bool:
        """Whether a file of parameters refers to others, beyond the environment's globals."""
        folders = {self._loader.base_env, self.env or self._loader.default_run_env}
        files = (
            file
            for folder in folders
            for pattern in self._loader.config_patterns["parameters"]
            for file in (self.path / settings.CONF_SOURCE / folder).glob(pattern)
            if file.is_file()
        )
        return any("${" in file.read_text("utf8").replace("${globals:", "") for file in files)

    def folder(self, name: str) -> SweepFolder:
        """Where a sweep's variants lie."""
        data = self._read("globals")["data"]
        return SweepFolder(self.path, Path(data) / "sweeps" / name)

    def variants(self, name: str, sweep: SweepConfig) -> list[Variant]:
        """A sweep's variants, all checked.

        Raises:
            SweepError: naming every variant and parameter that is not valid.
        """
        return cross(
            name,
            sweep,
            self._parameters,
            branches_read(name, sweep.pipelines),
        )

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
            with ProjectSession.create(self.path, env=self.env) as session:
                yield session.load_context().mlflow
        except click.ClickException as error:  # of the project's own checks
            raise SweepError(error.message) from None
