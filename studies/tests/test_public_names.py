"""The studies show that the library can be used from outside: they import what its modules export, nothing private."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import collapsar_studies

ROOT = Path(__file__).parents[2]
FILES = sorted(Path(collapsar_studies.__file__).parent.glob("*.py")) + sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_exported_names_are_imported(path: Path) -> None:
    found = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "collapsar"
        for alias in node.names
    ]
    assert [(home, name) for home, name in found if name not in importlib.import_module(home).__all__] == []
