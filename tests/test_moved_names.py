"""The import paths of 0.1 that the documentation used, and names that left a room's door, lead to the new homes."""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

OLD = {
    "collapsar.analysis": ("collapsar.diagnose", "fit_to_theory"),
    "collapsar.analysis.phase": ("collapsar.phase.diagram", "phase_diagram"),
    "collapsar.counts": ("collapsar.core.counts", "class_counts"),
    "collapsar.experiments.diagnose": ("collapsar.diagnose.readers", "diagnose"),
    "collapsar.integrations": ("collapsar.monitor", "CollapseMonitor"),
    "collapsar.integrations.lightning": ("collapsar.monitor.lightning", "CollapseCallback"),
    "collapsar.monitor.records": ("collapsar.core.json_lines", "read_json_lines"),
    "collapsar.problem": ("collapsar.core.problem", "Problem"),
    "collapsar.theory.large_samples": ("collapsar.theory.limits", "etf_slope"),
    "collapsar.theory.siblings": ("collapsar_studies.siblings", "layer_peeled_ratio"),
}
DOORS = ("", ".diagnose", ".metrics", ".monitor", ".report", ".solver", ".theory", ".training")
MODULES = (".advise.mitigations", ".theory.vanish_boundary")


@pytest.mark.parametrize("old", OLD)
def test_an_old_path_gives_the_same_object_and_names_the_new_one(old: str, monkeypatch) -> None:
    new, name = OLD[old]
    pytest.importorskip(new.partition(".")[0])  # what went to the studies, where only the library is installed
    for path in [path for path in sys.modules if path in OLD]:
        monkeypatch.delitem(sys.modules, path)  # or an earlier import would have taken the warning
    with warnings.catch_warnings(record=True) as seen:  # an old room on the way to an old module warns as well
        warnings.simplefilter("always")
        before = getattr(importlib.import_module(old), name)
    said = [str(w.message) for w in seen if w.category is DeprecationWarning]
    assert f"{old} has moved: import from {new}" in said
    assert before is getattr(importlib.import_module(new), name)


@pytest.mark.parametrize("door", DOORS + MODULES)
def test_a_name_that_left_a_door_is_found_there_with_a_warning_that_names_its_module(door: str) -> None:
    package = importlib.import_module(f"collapsar{door}")
    left = _left(package.__name__)
    assert left
    for name, module in left.items():
        if find_spec(module.partition(".")[0]) is None:  # it went to the studies, and they are not installed
            continue
        with pytest.warns(DeprecationWarning, match=f"{name}: import it from {module}$"):
            assert getattr(package, name) is getattr(importlib.import_module(module), name)
    assert not set(left) & set(vars(package))


def test_what_went_to_the_studies_says_how_to_get_them(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "collapsar_studies", None)  # as where they are not installed
    monkeypatch.delitem(sys.modules, "collapsar_studies.deep", raising=False)
    theory = importlib.import_module("collapsar.theory")
    said = pytest.warns(DeprecationWarning, match="collapsar_studies.deep$")
    with said, pytest.raises(ModuleNotFoundError, match=r"pip install \./studies"):
        theory.deep_price  # noqa: B018 - looked up for its error


@pytest.mark.parametrize("door", DOORS)
def test_every_public_name_is_there(door: str) -> None:
    package = importlib.import_module(f"collapsar{door}")
    assert {name for name in package.__all__ if not hasattr(package, name)} == set()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018 - looked up for its error


def test_the_doors_stay_few() -> None:
    names = {name for door in (*DOORS, ".cli") for name in importlib.import_module(f"collapsar{door}").__all__}
    assert len(names) <= 92


def _left(package: str) -> dict[str, str]:
    """The names that left a door and their modules, as its source says."""
    source = Path(importlib.import_module(package).__file__ or "").read_text()
    tables = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.keyword) and n.arg == "left"]
    return {
        name: module for table in tables for module, names in ast.literal_eval(table).items() for name in names.split()
    }
