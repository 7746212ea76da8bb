"""The record behind ``collapsar report``: networks from folders and files, each diagnosed and advised on.

A run's folder needs torch and the run's data; a record that was written before needs neither.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import collapsar as cs
from collapsar.app.network_records import advice_record, geometry_record
from collapsar.app.solution_report import solution_report
from collapsar.core import record_types as rt
from collapsar.core.records import to_json
from collapsar.core.types import Record
from collapsar.diagnose.readers import diagnose, diagnose_run
from collapsar.solver.solution import is_solution, saved_class_names

Progress = Callable[[str], None]

_CHECKPOINT = "checkpoint.safetensors"
_IN_PAGE = re.compile(r'<script type="application/json" id="record">(.*?)</script>', re.DOTALL)
_PER_CLASS = ("train_class_accuracies", "test_class_accuracies")


def report_record(
    sources: Sequence[str | Path], *, data_dir: str | Path | None = None, progress: Progress | None = None
) -> rt.ReportRecord:
    """One record of all networks and optima in the sources, in the order given; within a folder, by penalty.

    Args:
        sources: folders of a run, or of several (``collapsar demo``); files of ``collapsar diagnose --json`` or ``solve
            --json`` (whose problem is solved again), of a demonstration, of a report, or of features; pages of
            these; optima that ``Solution.save`` wrote.
        data_dir: the folder of the runs' data, if not in a standard place.
        progress: called with the name of each network that has to be measured.

    Raises:
        ValueError: a source does not exist, has nothing that can be reported, or there are none.
        OSError: a file cannot be read.
    """
    if not sources:
        raise ValueError("`sources` must name at least one run, got none; give folders of runs or diagnosis files")
    say = progress if progress is not None else lambda name: None
    found = [part for source in sources for part in _runs_of(Path(source), data_dir, say)]
    taken: dict[str, int] = {}
    for run in found:  # names are shown and linked to: each only once
        taken[run["name"]] = taken.get(run["name"], 0) + 1
        if taken[run["name"]] > 1:
            run["name"] = f"{run['name']} ({taken[run['name']]})"
    solutions = [part for part in found if "diagnosis" not in part]
    runs = [part for part in found if "diagnosis" in part]
    return {"kind": "report", "collapsar": cs.__version__, "runs": runs, "solutions": solutions}


def _runs_of(path: Path, data_dir: str | Path | None, say: Progress) -> Sequence[rt.RunRecord | rt.OptimumRecord]:
    if not path.exists():
        raise ValueError(
            f"`sources` {path} does not exist; give the folder of a run, or a file of `collapsar diagnose`"
        )
    if path.is_dir():
        folders = [path] if (path / _CHECKPOINT).is_file() else _folders_in(path)
        runs: list[rt.RunRecord] = []
        for folder in folders:
            say(folder.name)
            runs.append(_of_folder(folder, data_dir))
        runs.sort(key=lambda run: (run["diagnosis"]["known"]["lambda_z"] or 0.0, run["name"]))
        return runs
    if path.suffix.lower() == ".npz" and is_solution(path):
        return [solution_report(cs.load_solution(path), path.stem, saved_class_names(path))]
    if path.suffix.lower() in (".npz", ".safetensors"):
        say(path.name)
        found = diagnose(path)
        return [_entry(path.name, found.to_dict(), geometry=geometry_record(found))]
    return _of_json(path)


def _folders_in(path: Path) -> list[Path]:
    found = sorted(p for p in path.iterdir() if (p / _CHECKPOINT).is_file())
    if not found:
        raise ValueError(
            f"`sources` {path} has no {_CHECKPOINT}, nor does a folder in it; give the --out folder of "
            "`collapsar train` or `collapsar demo`"
        )
    return found


def _of_folder(folder: Path, data_dir: str | Path | None) -> rt.RunRecord:
    from collapsar.training import imbalanced, load_data, load_run

    result = load_run(folder)
    config = result.config
    data = imbalanced(load_data(config.dataset, None if data_dir is None else Path(data_dir)), config.class_counts)
    found = diagnose_run(result, data, folder.name)
    # Accuracies of every class at every evaluation would be most of the page; the last ones are in the diagnosis.
    history = [{k: v for k, v in r.items() if k not in (*_PER_CLASS, "kind")} for r in result.records]
    training = {
        **json.loads(config.to_json()),
        "trained_epochs": result.epoch,
        "seconds": result.seconds,
        **{key: result.header.get(key) for key in ("versions", "device", "commit", "begun")},
    }
    return _entry(folder.name, found.to_dict(), training=training, history=history, geometry=geometry_record(found))


def _of_json(path: Path) -> Sequence[rt.RunRecord | rt.OptimumRecord]:
    try:
        text = path.read_text(encoding="utf-8")
        inside = _IN_PAGE.search(text)
        record = json.loads(inside[1] if inside else text)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a JSON record of Collapsar ({error}); give the folder of a run, or the --json output of "
            "`collapsar diagnose` or `collapsar solve`"
        ) from None
    kind = record.get("kind") if isinstance(record, dict) else None
    try:
        runs = _runs_in(record) if kind else []
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is an incomplete record ({error}); write it again with the command that it came from"
        ) from None
    if not runs:
        raise ValueError(
            f"{path} must be a record of `collapsar diagnose --json` or `collapsar solve --json`, of a report, or of a "
            f"demonstration with diagnoses, got kind {kind!r}"
        )
    if len(runs) == 1 and not runs[0]["name"]:
        runs[0]["name"] = path.stem
    return runs


def _runs_in(record: Record) -> Sequence[rt.RunRecord | rt.OptimumRecord]:
    """The runs in a record; empty if its kind has none."""
    if rt.is_a(record, rt.DiagnosisRecord):
        return [_entry("", record)]
    if rt.is_a(record, rt.SolutionRecord):
        solved = cs.solve(cs.Problem.from_dict(record["problem"]), throw=False)
        return [solution_report(solved, "", record["class_names"])]
    if rt.is_a(record, rt.ReportRecord):
        for run in record["runs"]:
            _entry(run["name"], run["diagnosis"])  # raises if something is missing
        return [*record["runs"], *record.get("solutions", ())]
    if rt.is_a(record, rt.DemoRecord):
        return [
            _entry(f"{record['data']} {r['position']}", found, history=r["history"], geometry=r.get("geometry"))
            for r in record["runs"]
            if (found := r.get("diagnosis")) is not None
        ]
    return []


def _entry(
    name: str,
    diagnosis: rt.DiagnosisRecord,
    *,
    training: Record | None = None,
    history: Sequence[Record] = (),
    geometry: rt.GeometryRecord | None = None,
) -> rt.RunRecord:
    record: rt.RunRecord = {
        "name": name,
        "training": training,
        "diagnosis": diagnosis,
        "history": list(history),
        "geometry": geometry,
        "advice": advice_record(diagnosis),
    }
    return to_json(record)
