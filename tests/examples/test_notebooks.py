"""The notebooks run, from an empty kernel; what is committed has no outputs."""

import os
from pathlib import Path

import nbformat
import pytest

PLACE = Path(__file__).parents[2] / "examples" / "notebooks"
BOOKS = sorted(PLACE.glob("*.ipynb"))


def test_outputs_are_stripped() -> None:
    assert [book.stem for book in BOOKS] == ["compare_routers", "route_your_adapters"]
    for book in BOOKS:
        notebook = nbformat.read(book, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None), book


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own libraries
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_runs(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("MPLBACKEND", "agg")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    notebook = nbformat.read(book, as_version=4)
    settings = {"resources": {"metadata": {"path": str(tmp_path)}}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", **settings).execute()
    printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert printed and not [output for output in printed if output.output_type == "error"]
