"""examples/notebooks: their text runs, and the committed notebooks are of that text, with what it printed and drew."""

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.py"))
SHORTER = {"minutes=1.5": "steps=20", "steps=steps": "steps=20"}
named = pytest.mark.parametrize("text", NOTEBOOKS, ids=lambda path: path.stem)


@named
def test_the_text_of_a_notebook_runs(text, tmp_path):
    code = text.read_text()
    assert any(long in code for long in SHORTER)
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@named
def test_a_notebook_is_of_its_text_and_was_executed(text):
    written, notebook = jupytext.read(text), jupytext.read(text.with_suffix(".ipynb"))
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in written.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 3
