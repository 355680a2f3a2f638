"""Kedro's list of pipelines: every package below `pipelines`, and the sum of most as the
default.
"""

import pkgutil

import click
from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

from incontext_linear import pipelines as packages


def register_pipelines() -> dict[str, Pipeline]:
    """All pipelines by name; ``__default__`` runs those that need nothing but a fresh clone."""
    try:
        pipelines = find_pipelines(raise_errors=True)
    except ImportError as error:
        if error.__cause__:  # a pipeline's own code
            raise
        name = str(error).split("'")[1].rpartition(".")[2]
        known = ", ".join(sorted(module.name for module in pkgutil.iter_modules(packages.__path__)))
        raise click.ClickException(f"there is no pipeline {name!r}; allowed: {known}") from None
    pipelines.pop("__default__", None)
    default = [parts for name, parts in pipelines.items() if name not in packages.ON_REQUEST]
    return pipelines | {"__default__": packages.merge(default)}
