"""Kedro's list of pipelines: every package below `pipelines`, and the sum of most as the default."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

ON_REQUEST = ("phase_diagram",)
"""Pipelines that read what other commands make, and that no single run can make: a finished sweep."""


def register_pipelines() -> dict[str, Pipeline]:
    """All pipelines by name; ``__default__`` runs those that need nothing but a fresh clone."""
    pipelines = find_pipelines(raise_errors=True)
    pipelines.pop("__default__", None)
    default = [parts for name, parts in pipelines.items() if name not in ON_REQUEST]
    return pipelines | {"__default__": sum(default, Pipeline([]))}
