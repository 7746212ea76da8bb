"""The studies show that the library can be used from outside: they import public names and nothing else.

A name is public if a room's door holds it, or if it has no underscore and its module is one that the reference names.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import collapsar_studies

ROOT = Path(__file__).parents[2]
OUTSIDE = (Path(collapsar_studies.__file__).parent, Path(__file__).parent, ROOT / "examples", ROOT / "benchmarks")
FILES = [path for folder in OUTSIDE for path in sorted(folder.glob("*.py"))]
REFERENCE = {
    module
    for page in (ROOT / "docs" / "api").glob("*.md")
    for module in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
}


def is_public(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):  # a door
        return name in found.__all__
    return module in REFERENCE and not name.startswith("_") and name in _own_names(Path(str(found.__file__)))


@cache
def _own_names(path: Path) -> set[str]:
    """What a module defines, rather than imports."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    return defined | {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_public_names_are_imported(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = [
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "collapsar"
        for alias in node.names
    ]
    whole = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert [pair for pair in found if not is_public(*pair)] == []
    assert [name for name in whole if name.startswith("collapsar.")] == []


def test_what_is_private_is_told_from_what_is_public() -> None:
    assert is_public("collapsar.report", "styled")
    assert is_public("collapsar.report.style", "COLOURS")
    assert not is_public("collapsar.theory.roots", "root_between")  # a module without a page
    assert not is_public("collapsar.training", "loop")
    assert not is_public("collapsar.training.loop", "_clip")
    assert not is_public("collapsar.training.loop", "TrainConfig")  # imported there
