"""Every number of the study in docs/advise.md is the one in the committed records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ROWS = {
    "nothing": "nothing",
    "advice": "least advice",
    "advice-double": "advice, twice the room",
    "advice-weights": "advised weights",
    "advice-oversampling": "advised oversampling",
    "balanced-sampling": "balanced sampling",
    "effective-number": "effective-number weights",
    "inverse-weights": "weights 1/n",
    "logit-adjustment": "logit adjustment",
    "decoupled": "decoupled head",
    "sweep": "best of the penalty sweep",
}
MEASURES = ("balanced", "minority", "calibration_error")


@pytest.fixture(scope="module")
def page() -> str:
    path = ROOT / "docs" / "advise.md"
    if not (path.exists() and (ROOT / "results" / "advice").exists()):
        pytest.skip("runs in the repository, beside docs and results")
    return " ".join(path.read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def regimes() -> dict[str, Any]:
    record = json.loads((ROOT / "results" / "advice" / "advice.json").read_text())
    return {regime["regime"]: regime["methods"] for regime in record["regimes"]}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def spread(method: dict[str, Any], measure: str, reading: str) -> str:
    found = method[f"{measure}_{reading}"]
    return f"{percent(found['mean'])} ± {percent(found['sd'])}"


def interval(found: dict[str, float], sign: float = 1) -> str:
    """As prose writes it: "18.0 (14.7 to 21.3)"."""
    ends = sorted(sign * found[end] for end in ("low", "high"))
    return f"{percent(sign * found['mean'])} ({percent(ends[0])} to {percent(ends[1])})".replace("-", "−")


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_the_merging_regime(name: str, page: str, regimes: dict[str, Any]) -> None:
    method = regimes["merging"][name]
    cells = [spread(method, measure, method["used"]) for measure in MEASURES]
    if method["used"] == "raw":
        cells = [f"{c} ({percent(method[f'{m}_corrected']['mean'])})" for c, m in zip(cells, MEASURES, strict=True)]
    assert f"| {ROWS[name]} | {' | '.join(cells)} | {method['merged_classes']:.1f} |" in page


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("advice-")])
def test_the_table_of_the_other_regimes(name: str, page: str, regimes: dict[str, Any]) -> None:
    cells = []
    for regime in ("ordinary", "ordinary-strong", "safe"):
        method = regimes[regime][name]
        raw, corrected = (
            " / ".join(percent(method[f"{m}_{reading}"]["mean"]) for m in MEASURES[:2])
            for reading in ("raw", "corrected")
        )
        cells.append(corrected if method["used"] == "corrected" else f"{raw} ({corrected})")
    assert f"| {'the advice' if name == 'advice' else ROWS[name]} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith(("advice-", "sweep"))])
def test_the_table_of_standard_training(name: str, page: str) -> None:
    record = json.loads((ROOT / "results" / "advice-standard" / "advice.json").read_text())
    (regime,) = record["regimes"]
    method = regime["methods"][name]
    cells = [spread(method, measure, method["used"]) for measure in MEASURES]
    if method["used"] == "raw":
        cells = [f"{c} ({percent(method[f'{m}_corrected']['mean'])})" for c, m in zip(cells, MEASURES, strict=True)]
    words = "the advice" if name == "advice" else ROWS[name]
    assert f"| {words} | {' | '.join(cells)} | {method['merged_classes']:.1f} |" in page
    if name not in ("advice", "nothing"):
        assert interval(method["advice_minus_balanced_raw"]) in page
    assert {row["verdict"]["verdict"] for row in record["settings"]} == {"not acted"}


def test_paired_differences(page: str, regimes: dict[str, Any]) -> None:
    merging, ordinary, safe = (regimes[name] for name in ("merging", "ordinary", "safe"))
    page = page.replace(" points (", " (")
    for method, measure, advice, sign in (
        ("nothing", "balanced_raw", "advice", 1),
        ("nothing", "minority_raw", "advice", 1),
        ("nothing", "balanced_corrected", "advice", 1),
        ("nothing", "minority_corrected", "advice", 1),
        ("balanced-sampling", "balanced_raw", "advice", -1),
        ("balanced-sampling", "balanced_raw", "advice-double", 1),
        ("balanced-sampling", "minority_raw", "advice-double", 1),
        ("sweep", "balanced_corrected", "advice-double", -1),
    ):
        assert interval(merging[method][f"{advice}_minus_{measure}"], sign) in page, (method, measure, advice)
    found = ordinary["logit-adjustment"]["advice_minus_balanced_raw"]
    assert f"({percent(found['mean'])}, {percent(found['low'])} to {percent(found['high'])})".replace("-", "−") in page
    found = regimes["ordinary-strong"]["inverse-weights"]["advice_minus_balanced_raw"]
    assert f"({percent(found['mean'])}, {percent(found['low'])} to {percent(found['high'])}:".replace("-", "−") in page
    assert interval(safe["sweep"]["advice_minus_balanced_corrected"], -1) in page


def test_calibration_and_the_prior_alone(page: str, regimes: dict[str, Any]) -> None:
    merging = regimes["merging"]
    errors = [merging[n][f"calibration_error_{r}"]["mean"] for n, r in
              (("advice", "corrected"), ("nothing", "raw"), ("sweep", "corrected"))]  # fmt: skip
    assert "is {} % against {} % of doing nothing; weak penalties (the sweep, corrected) have {} %".format(
        *map(percent, errors)
    ) in page  # fmt: skip
    alone = {m: merging["nothing"][f"{m}_corrected"]["mean"] - merging["nothing"][f"{m}_raw"]["mean"] for m in MEASURES}
    assert f"gives minority classes +{percent(alone['minority'])} and costs balanced accuracy " in page
    assert f"costs balanced accuracy {percent(-alone['balanced'])}" in page


def test_the_adjusting_trainer(page: str) -> None:
    """The fixed factor minus the adjusting trainer, pair by pair."""
    runs = json.loads((ROOT / "results" / "advice" / "adjusting.json").read_text())["runs"]
    found = {(run["setting"], run["seed"], run["recipe"]): run for run in runs}
    behind = {
        measure: [
            found[setting, seed, "advice"][measure] - found[setting, seed, "adjusting"][measure]
            for setting, seed, recipe in found
            if recipe == "nothing"
        ]
        for measure in ("balanced", "minority")
    }
    assert len(behind["balanced"]) == 6
    balanced, minority = ([percent(pick(values)) for pick in (min, max)] for values in behind.values())
    assert "by {} to {} points of balanced and {} to {} of minority accuracy".format(*balanced, *minority) in page


def test_sharpness(page: str) -> None:
    record = json.loads((ROOT / "results" / "advice" / "sharpness.json").read_text())
    below, above = ([r for r in record["runs"] if r["position"] == p] for p in record["positions"])
    assert not any(run["alive"] for run in below)
    assert all(run["alive"] for run in above)
    separated = sum(state == "separated" for run in above for state in run["states"])
    total = sum(len(run["states"]) for run in above)
    assert f"{separated} of {total} small classes are separated" in page
    assert all(state != "separated" for run in below for state in run["states"])
    low, high = (f"{pick(run['measured_norm'] for run in above):.3f}".lstrip("0") for pick in (min, max))
    assert f"it is {low} to {high}" in page
    assert f"least factor {record['least_factor_by_advice']:.2f}" in page
    assert f"{np.mean([run['predicted_norm'] for run in above]):.3f}".lstrip("0") in page


def test_the_table_of_ordinary_training(page: str) -> None:
    from collapsar.advise.weight_decay import evidence
    from collapsar.theory.deep_switch import decay_switch

    def short(value: float | None) -> str:
        return f"{value:g}".removeprefix("0")

    for depth in evidence()["depths"]:
        low, high = depth["ratio"]
        words = f"{short(low)} to {short(high)}" if low is not None else f"below {short(high)}, how far was not found"
        used = "yes" if depth["predicts"] else 'no: always "undecided"'
        assert f"| {depth['layers']} | {words} | {depth['switches']} | {used} |" in page
    cells = [
        json.loads((ROOT / "results" / "advice" / "cells" / f"ordinary-strong-step-50-seed{seed}.json").read_text())
        for seed in range(5)
    ]
    lost = sum(cell["methods"]["nothing"]["merged_classes"] > 0 for cell in cells)
    place = cells[0]["methods"]["nothing"]["recipe"]["weight_decay"] / decay_switch(cells[0]["class_counts"], 2)
    assert (lost, f"{place:.1f}") == (2, "0.6")
    assert "two of five networks of two layers, imbalance 50, had lost some of their small classes at .6" in page
