"""The classroom notebook is what its source says, and every cell runs."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat

DOCS = Path(__file__).parent.parent / "docs"


def test_classroom_runs_and_is_up_to_date(monkeypatch, capsys) -> None:
    book = runpy.run_path(str(DOCS / "make_classroom.py"))["notebook"]()
    stored = nbformat.read(DOCS / "classroom.ipynb", as_version=4)
    assert [cell.source for cell in stored.cells] == [cell.source for cell in book.cells]
    # Here, not in a kernel, which would import torch once more; the pages are made with one.
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in book.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    said = capsys.readouterr().out
    assert "at 0.5 of the threshold it knows 100%" in said
    assert "at 1.3 of the threshold it knows 0%" in said
