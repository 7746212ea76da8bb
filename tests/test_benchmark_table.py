"""The page of benchmarks says what the run's JSON says, and nothing that names the machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "table.py"


@pytest.fixture
def table(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "benchmarks.md"
    page.write_text(module.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def run(tmp_path, name="run", commit="abcdef0123", **changed):
    solved = {"kind": "cone", "K": 10, "J": 3, "gap": 8.6e-14, "status": "OPTIMAL", "steps": 3, "case": "dataset1"}
    solved |= {"their_solver": "SCS", "their_status": "optimal", "their_seconds": 0.036, "their_seconds_again": 0.0105}
    solved |= {"their_gap": 3.6e-9, "ratio": 240.0, **changed}
    gave_up = {**solved, "case": "distinct20", "K": 20, "their_solver": "CLARABEL", "their_status": "SolverError"}
    gave_up |= {"their_gap": None, "their_seconds_again": None}
    svd = {
        "kind": "svd",
        "K": 50,
        "J": 50,
        "gap": 1e-12,
        "steps": 7,
        "multiple": 0.1,
        "svd_seconds": 2.5e-4,
        "svds": 58.0,
    }
    names = {"cone[a]": solved, "cone[b]": gave_up, "svd[50]": svd, "metrics": {"peak": 1}}
    info = {"cpu": {"brand_raw": "Some(R) CPU @ 2GHz"}, "cores": 2, "blas_threads": "all cores", "system": "Linux"}
    info |= {"machine": "x86_64", "python_version": "3.11.7", "versions": {"numpy": "2.4.6"}, "node": "secret-host"}
    benches = [{"name": n, "stats": {"median": 1.5e-4, "rounds": 9}, "extra_info": e} for n, e in names.items()]
    file = tmp_path / f"{name}.json"
    whole = {"machine_info": info, "commit_info": {"id": commit}, "datetime": "2026-01-02T03:04:05"}
    file.write_text(json.dumps({**whole, "benchmarks": benches}))
    return str(file)


def test_tables_picture_and_summary_come_from_the_run(table, tmp_path):
    table.main([run(tmp_path)])
    text = table.PAGE.read_text(encoding="utf-8")
    assert "| Dataset1, K = 10, J = 3 | SCS | 36 ms | 10.5 ms | 4e-09 | 150 µs | 9e-14 | 240 |" in text
    assert (
        "| all counts distinct, K = 20 | CLARABEL | 36 ms (SolverError) | – | – | 150 µs | 9e-14 | no answer |" in text
    )
    assert "| 50 | 0.1 | 250 µs | 150 µs | 58 | 7 | 1e-12 |" in text
    assert "2 cores of an Some CPU (Linux x86_64)" in text
    assert "commit abcdef0. Command: `make bench`." in text
    assert "secret-host" not in text
    summary = json.loads((tmp_path / "results" / "solver.json").read_text(encoding="utf-8"))
    assert [e["name"] for e in summary["benchmarks"]] == ["cone[a]", "cone[b]", "svd[50]"]
    assert "secret-host" not in json.dumps(summary)
    assert (tmp_path / "benchmarks.svg").read_text(encoding="utf-8").startswith("<svg")
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_replaces_the_first(table, tmp_path):
    table.main([run(tmp_path)])
    table.main([run(tmp_path, ratio=999.0)])
    text = table.PAGE.read_text(encoding="utf-8")
    assert "| 999 |" in text
    assert "| 240 |" not in text
    assert text.count("<!-- begin cone -->") == 1


def test_pieces_of_one_run_make_one_page_and_of_two_runs_none(table, tmp_path):
    table.main([run(tmp_path), run(tmp_path, "more", case="distinct100", K=100, ratio=4321.0)])
    text = table.PAGE.read_text(encoding="utf-8")
    assert "| 4,321 |" in text
    assert "Command: `COLLAPSAR_BENCH=all make bench`, in 2 pieces." in text
    with pytest.raises(SystemExit, match="another commit"):
        table.main([run(tmp_path), run(tmp_path, "other", commit="0123abcdef")])
    assert table.PAGE.read_text(encoding="utf-8") == text


def test_a_page_without_a_place_is_refused(table, tmp_path):
    table.PAGE.write_text("# Benchmarks\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="machine"):
        table.main([run(tmp_path)])


# --- the guard


@pytest.fixture
def guard(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_guard", SCRIPT.with_name("guard.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recorded = json.loads(module.RECORD.read_text(encoding="utf-8"))
    assert list(recorded) == list(module.ROWS)
    monkeypatch.setattr(module, "RECORD", tmp_path / "guard.json")
    module.RECORD.write_text(json.dumps(dict.fromkeys(recorded, 2.0)))
    return module


@pytest.mark.parametrize(("seconds", "code"), [(2.5, 0), (2.7, 1)])
def test_the_guard_fails_beyond_its_limit_only(guard, monkeypatch, capsys, seconds, code):
    monkeypatch.setattr(guard, "in_own_process", lambda *_: {"seconds": seconds, "reference": 1.0, "mib": 1.0})
    assert guard.guard(list(guard.ROWS)[:2]) == code
    assert ("SLOW" in capsys.readouterr().out) == bool(code)


def test_a_row_that_was_disturbed_is_measured_again(guard, monkeypatch):
    found = iter([9.0, 2.1])
    monkeypatch.setattr(guard, "in_own_process", lambda *_: {"seconds": next(found), "reference": 1.0, "mib": 1.0})
    assert guard.guard(list(guard.ROWS)[:1]) == 0
