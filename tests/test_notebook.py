"""The classroom notebook is what its source says, and every cell runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent.parent / "docs"


def test_classroom_runs_and_is_up_to_date() -> None:
    book = runpy.run_path(str(DOCS / "make_classroom.py"))["notebook"]()
    stored = nbformat.read(DOCS / "classroom.ipynb", as_version=4)
    assert [cell.source for cell in stored.cells] == [cell.source for cell in book.cells]
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "at 0.5 of the threshold it knows 100%" in said
    assert "at 1.3 of the threshold it knows 0%" in said
