"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import collapsar

ROOMS = ("", ".theory", ".solver", ".metrics", ".diagnose", ".training", ".monitor", ".report")
SOURCE = Path(collapsar.__file__).parent
MODULES = sorted(
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples that write do so here
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        if test.examples:  # a run without any looks through all files of all modules for changes, too
            runner.run(test)
    assert any(test.examples for test in tests)
    assert runner.failures == 0


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_has_every_public_name(room: str) -> None:
    """``docs/api`` documents modules: that of every name which a room or the package exports is among them."""
    pages = "".join(
        page.read_text(encoding="utf-8") for page in (Path(__file__).parent.parent / "docs" / "api").glob("*.md")
    )
    documented = set(re.findall(r"automodule:: (\S+)", pages))
    package = importlib.import_module(f"collapsar{room}")
    homes = {name: getattr(getattr(package, name), "__module__", None) for name in package.__all__}
    homes = {name: home for name, home in homes.items() if str(home).startswith("collapsar")}  # not plain constants
    assert homes
    assert {name: home for name, home in homes.items() if home not in documented} == {}
