"""What is written is what ``core.record_types`` says of it, key by key: readers are checked against the same types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import collapsar as cs
from collapsar.advise.advice import advise
from collapsar.advise.sources import advise_diagnosis
from collapsar.advise.weight_decay import advise_weight_decay
from collapsar.app.report_record import report_record
from collapsar.app.solution_report import solution_report
from collapsar.app.theory_records import solution_record
from collapsar.core import record_types as rt
from collapsar.core.records import to_json
from collapsar.diagnose.readers import diagnose
from collapsar.phase.diagram import phase_diagram
from record_fit import misfits

MERGED = cs.Problem("50x4,10x4", 0.013, 0.02)
NORMALIZED = cs.Problem.from_normalized("40x2,10x2", lambda_w=0.4, norm=4.0, lambda_b=0.0)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of features: of a merged network, and of one behind a norm."""
    folder, rng = tmp_path_factory.mktemp("networks"), np.random.default_rng(0)
    for name, problem, noise in (("merged", MERGED, 0.1), ("normalized", NORMALIZED, 0.0)):
        W, H, b = cs.solve(problem).factors(16, lambda_w=0.4)
        labels = np.repeat(np.arange(problem.num_classes), problem.class_counts)
        features = H.T[labels] + noise * rng.standard_normal((len(labels), 16))
        np.savez(folder / f"{name}.npz", features=features, labels=labels, weight=W.T, bias=b)
    return folder


@pytest.mark.parametrize("name", ["merged", "normalized"])
def test_diagnoses_and_advice_on_them(networks: Path, name: str) -> None:
    record = diagnose(networks / f"{name}.npz").to_dict()
    assert list(misfits(record, rt.DiagnosisRecord)) == []
    assert list(misfits(to_json(advise_diagnosis(record)), rt.AdviceRecord)) == []


def test_a_report_of_networks_and_optima(networks: Path) -> None:
    cs.solve(MERGED).save(networks / "optimum.npz")
    record = report_record([networks / f"{name}.npz" for name in ("merged", "normalized", "optimum")])
    assert [len(record["runs"]), len(record.get("solutions", ()))] == [2, 1]
    assert list(misfits(record, rt.ReportRecord)) == []


@pytest.mark.parametrize("problem", [MERGED, NORMALIZED, cs.Problem("60,40,5", 0.01, np.inf, features="nonnegative")])
def test_optima_and_advice(problem: cs.Problem) -> None:
    s = cs.solve(problem)
    assert list(misfits(to_json(solution_record(s)), rt.SolutionRecord)) == []
    assert list(misfits(solution_report(s), rt.OptimumRecord)) == []
    assert list(misfits(to_json(advise(problem).to_dict()), rt.AdviceRecord)) == []


@pytest.mark.parametrize("layers", [None, 2])
def test_advice_on_weight_decay(layers: int | None) -> None:
    record = advise_weight_decay("500x5,20x5", 5e-4, layers=layers).to_dict()
    assert list(misfits(record, rt.DecayRecord)) == []


@pytest.mark.parametrize("counts", [None, [100] * 6 + [3] * 6])
def test_audits(counts: list[int] | None) -> None:
    rng = np.random.default_rng(1)
    W, features = rng.standard_normal((12, 6)), rng.standard_normal((40, 6))
    W[3] = W[4]
    found = cs.audit(W, rng.standard_normal(12), class_counts=counts, features=features, labels=np.arange(40) % 12)
    assert list(misfits(found.to_dict(), rt.AuditRecord)) == []


def test_phase_diagrams() -> None:
    record = phase_diagram("lambda_z:0.003:0.005:5", "r:4:6:3").to_dict()
    assert list(misfits(record, rt.PhaseRecord)) == []


def test_a_key_that_is_missing_or_new_or_wrong_is_found() -> None:
    record: Any = json.loads(json.dumps(to_json(advise(MERGED).to_dict())))
    record["suggestions"][0]["price"]["new_sample"] = record["suggestions"][0]["price"].pop("new_samples")
    record["groups"][1]["state"] = "lost"
    record["margin"] = None
    assert sorted(misfits(record, rt.AdviceRecord)) == [
        "record.groups[1].state is 'lost'",
        "record.margin is None",
        "record.suggestions[0].price has new_sample",
        "record.suggestions[0].price lacks new_samples",
    ]
