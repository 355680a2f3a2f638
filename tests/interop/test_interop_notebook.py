"""The notebook and the page on other people's tools find no difference."""

import re
import runpy
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from support.project import ROOT, copy_project, kedro

for name in ("transformer_lens", "nnsight", "pyvene"):
    pytest.importorskip(name, reason=f"needs {name}: make interop")

pytestmark = pytest.mark.slow


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute:DeprecationWarning")
def test_the_notebook_finds_no_difference(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("KEDRO_ENV", "test")
    project = copy_project(tmp_path, "notebooks")
    made = kedro(project, "run", "--env", "test", "--pipelines", "model_training")
    assert made.returncode == 0, made.output[-3000:]
    notebook = nbformat.read(ROOT / "notebooks/interop.ipynb", as_version=4)
    where = {"metadata": {"path": str(project / "notebooks")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    says = printed(notebook)
    compared = re.findall(r"(?:difference:?|output:|embedding:|predictions:|by) (\S+)$", says, re.M)
    assert [float(number) for number in compared] == [0.0] * 8, says


def test_the_pages_code_prints_what_it_says(tmp_path: Path, monkeypatch):
    text = (ROOT / "docs/how-to/interop.md").read_text(encoding="utf-8")
    code = tmp_path / "page.py"  # nnsight reads the lines of a trace from their file
    code.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), "utf-8")
    (fractions,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(ROOT)
    says = StringIO()
    with redirect_stdout(says), torch.enable_grad():  # and as it was before, behind it
        runpy.run_path(str(code))
    *differences, last = says.getvalue().split("0 ", 1)
    assert differences == ["0.0\n0.0\n0.0\n0.0\n"]
    found, said = (
        [[float(number) for number in line.split()] for line in rows.splitlines()]
        for rows in ("0 " + last, fractions)
    )
    assert all(ours == theirs for _, ours, theirs in found)
    assert np.allclose(found, said, rtol=0, atol=1e-6)
