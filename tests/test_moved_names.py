"""The import paths of 0.1 that the documentation used lead to the new homes, and say so."""

from __future__ import annotations

import subprocess
import sys

import pytest

OLD = {
    "collapsar.analysis": ("collapsar.diagnose", "fit_to_theory"),
    "collapsar.analysis.phase": ("collapsar.phase.diagram", "phase_diagram"),
    "collapsar.counts": ("collapsar.core.counts", "class_counts"),
    "collapsar.experiments.diagnose": ("collapsar.diagnose.readers", "diagnose"),
    "collapsar.integrations": ("collapsar.monitor", "CollapseMonitor"),
    "collapsar.integrations.lightning": ("collapsar.monitor.lightning", "CollapseCallback"),
    "collapsar.problem": ("collapsar.core.problem", "Problem"),
}


@pytest.mark.parametrize("old", OLD)
def test_an_old_path_gives_the_same_object_and_names_the_new_one(old: str) -> None:
    new, name = OLD[old]
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        f"    from {old} import {name} as old\n"
        f"from {new} import {name}\n"
        f"assert old is {name}\n"
        f"assert any(w.category is DeprecationWarning and '{new}' in str(w.message) for w in seen)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verbs_stay_functions_beside_the_rooms_of_their_names() -> None:
    code = (
        "import collapsar as cs, collapsar.diagnose.words, collapsar.advise.advice\n"
        "from collapsar.diagnose import measure\n"
        "assert callable(cs.diagnose) and callable(cs.advise) and callable(measure)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
