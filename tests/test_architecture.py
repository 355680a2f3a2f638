"""Which way things point: the library knows nothing of Kedro, MLflow or the pipelines."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "incontext_linear"
WIRING = {"datasets.py", "hooks.py", "settings.py", "pipeline_registry.py", "cli.py", "__main__.py"}
# Of the sweeps: what reads Kedro's configuration, what keeps MLflow's runs, what runs a variant in a worker.
WIRING |= {"project.py", "tracking.py", "variant_run.py"}
LIBRARY = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "pipelines" and path.name not in WIRING
)


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_library_is_found():
    assert {"tasks.py", "transformer.py", "interventions.py"} <= {path.name for path in LIBRARY}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_library_module_imports_kedro_mlflow_or_a_pipeline(path):
    forbidden = ("kedro", "mlflow", "incontext_linear.pipelines", "incontext_linear.hooks")
    assert not [name for name in imported_modules(path) if name.startswith(forbidden)]


def test_nodes_read_no_clock_no_environment_and_no_files():
    for path in (PACKAGE / "pipelines").rglob("nodes.py"):
        names = {name.split(".")[0] for name in imported_modules(path)}
        assert not names & {"os", "time", "datetime", "random", "pathlib"}, path
