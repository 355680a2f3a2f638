"""The wheel, used where nothing is installed but what its core dependencies need."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "package_alone.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_CORE = {"kedro", "mlflow", "dask", "distributed", "matplotlib", "plotly", "pyarrow", "rich"}


def needed(requirements: list[str]) -> set[str]:
    """The distributions that these require, directly or through others."""
    found, todo = set(), [Requirement(line) for line in requirements]
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or not (requirement.marker is None or requirement.marker.evaluate()):
            continue
        found.add(name)
        todo += [Requirement(line) for line in distribution(name).requires or ()]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves its folders where it builds."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    made = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = source.glob("dist/*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory) -> Path:
    """A folder of packages with the wheel's files and links to its core dependencies."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    for name in needed(PROJECT["dependencies"]):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    return site


def test_the_core_needs_neither_kedro_nor_what_draws():
    core = needed(PROJECT["dependencies"])
    assert {"torch", "scipy", "pandas"} <= core
    assert not core & NOT_CORE


def test_the_extras_hold_what_the_core_does_not():
    extras = PROJECT["optional-dependencies"]
    assert {"kedro", "mlflow", "matplotlib", "plotly"} <= needed(extras["project"])
    assert not needed(extras["project"]) & {"distributed"}
    both = [line for line in extras["sweeps"] if not line.startswith("incontext-linear")]
    assert {"dask", "distributed"} <= needed(both)


@pytest.mark.slow
def test_the_wheel_holds_what_is_no_python(wheel: Path):
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {"incontext_linear/py.typed", "incontext_linear/report/template.html.j2"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def run_in(site: Path, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command of Python's that finds nothing but its own library and ``site``."""
    command = f"import sys; sys.path.append({str(site)!r}); {command}"
    python = [sys.executable, "-I", "-S", "-c", command]
    return subprocess.run(python, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_package_alone_predicts_compares_identifies_probes_and_trains(site: Path, tmp_path):
    command = f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    ran = run_in(site, tmp_path, command)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "modules; importing PyTorch" in ran.stdout


@pytest.mark.slow
def test_nothing_else_is_found_there(site: Path, tmp_path):
    command = f"from importlib.util import find_spec; print(*filter(find_spec, {NOT_CORE!r}))"
    assert run_in(site, tmp_path, command).stdout.split() == []
    command = command.replace("find_spec, {", "find_spec, {'torch', ")
    assert run_in(site, tmp_path, command).stdout.split() == ["torch"]
