"""What stands between ``kedro run`` and its first node."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.project import ENVIRONMENT, copy_project

from incontext_linear.runs import garbage

PROGRAM = Path(__file__).parent / "programs" / "first_node.py"
LATER = {"matplotlib", "plotly", "PIL", "IPython", "dask", "distributed", "sklearn"}
"""What draws and what only sweeps and tests use."""


@pytest.mark.slow
def test_the_first_node_waits_for_no_library_that_only_later_ones_use(tmp_path):
    project = copy_project(tmp_path / "project")
    facts = tmp_path / "facts.json"
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), "run", "--env", "test"],
        cwd=project,
        env=ENVIRONMENT | {"FACTS": str(facts)},
        capture_output=True,
        text=True,
    )
    assert facts.exists(), ran.stdout + ran.stderr
    found = json.loads(facts.read_text(encoding="utf-8"))
    top = {name.partition(".")[0] for name in found["modules"]}
    assert {"torch", "mlflow", "pandas"} <= top
    assert not top & LATER
    assert "scipy.special" not in found["modules"]
    assert found["searched"]
    assert found["left_out"] > 100_000


@pytest.fixture
def frozen(monkeypatch):
    """Stand-in for the objects that are left out of searches."""
    left_out = []
    monkeypatch.setattr(gc, "freeze", lambda: left_out.append(1))
    monkeypatch.setattr(gc, "get_freeze_count", lambda: len(left_out))
    return left_out


@pytest.mark.parametrize("begins", [True, False])
def test_garbage_is_looked_for_again_once_the_run_begins_or_cannot(frozen, begins):
    for _ in range(2):
        with garbage.no_search():
            with garbage.no_search():
                assert not gc.isenabled()
            assert not gc.isenabled()
            if begins:
                garbage.search_again()
                assert gc.isenabled()
        assert gc.isenabled()
    assert len(frozen) == begins  # once in a process


def test_whoever_has_stopped_the_search_is_asked_before_it_goes_on(frozen):
    gc.disable()
    try:
        with garbage.no_search():
            garbage.search_again()
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
