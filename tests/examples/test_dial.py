"""The notebook runs as it is, shows figures and tables, and warns of nothing; it is kept without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "dial.ipynb"
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def outputs():
    """What the cells show, as {MIME type: text}, one after the other; streams are under their name."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    for package in ("ipykernel", "pandas", "matplotlib"):
        pytest.importorskip(package)
    notebook = nbformat.read(PATH, as_version=4)
    known = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", known)
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return [
        {output["name"]: output["text"]} if output["output_type"] == "stream" else output["data"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def test_it_warns_of_nothing(outputs):
    assert [each["stderr"] for each in outputs if "stderr" in each] == []


def test_figures_are_shown(outputs):
    assert sum("image/png" in each for each in outputs) == 3


def test_tables_have_captions(outputs):
    tables = [each["text/html"] for each in outputs if "text/html" in each]
    captions = [each for each in tables if "<caption" in each]
    assert len(tables) == 4  # records, frontier, outcome, and the data frame of pandas
    assert len(captions) == 3
    for said in ("Records of 3,000 samples", "Frontier of ", "Outcome on 4,000 samples"):
        assert any(said in each for each in captions)


def test_the_choice_is_one_line(outputs):
    (printed,) = [each["stdout"] for each in outputs if "stdout" in each]
    assert printed.startswith("ExitConfig(blocks.")
    assert printed.count("\n") == 1


def test_no_output_is_kept():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
