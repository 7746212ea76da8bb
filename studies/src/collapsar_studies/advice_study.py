"""Does following the advice help? Small networks on real images, against what people do without it.

One file per setting and seed, so that an interrupted study resumes where it stopped; the summary is made from the
files that are there.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import collapsar
from collapsar import Problem
from collapsar.advise.outlook import clearance
from collapsar.core.files import write_atomically
from collapsar.core.types import Record
from collapsar.solver import solve
from collapsar.training.loop import one_thread
from collapsar_studies.advice_plans import PRESETS, Setting, StudyPreset, recipes, standard_advice
from collapsar_studies.advice_runs import ADAMW_RATE, Recipe, Schedule, subset, train_and_measure
from collapsar_studies.advice_sharpness import SHARPNESS, sharpness

Progress = Callable[[int, int, float], None]
"""Called with (finished cells, all cells, estimated seconds left); a cell is one setting and seed, every method."""

# A record of another format is computed again.
FORMAT = 1
# The advice says to correct the prior for balanced use; the others are read as people use them.
CORRECTED = ("advice", "advice-weights", "advice-oversampling", "advice-double")
# What the others are compared with: the least advice, and the same with twice the room.
HEADLINES = ("advice", "advice-double")
MEASURES = ("balanced", "majority", "minority", "calibration_error")


def run(
    preset: str = "cpu",
    *,
    out: Path,
    seeds: Sequence[int] = (),
    jobs: int = 1,
    progress: Progress | None = None,
) -> Record:
    """Train what is missing and return the summary of everything that is there.

    Args:
        preset: "cpu" (FashionMNIST, 16 settings, 5 seeds, about 25 core-minutes), "long" (two of its settings trained
            four times as long, 3 seeds), "standard" (LayerNorm, AdamW and a cosine schedule; 3 settings, 3 seeds),
            "acting" (the same at decays whose clock is 3 and more; 4 settings) or "tiny" (digits, half a minute).
        out: folder for the records, ``cells/SETTING-seedS.json`` and ``sharpness.json``, and for ``advice.json``,
            ``advice.png`` and ``advice.svg``.
        seeds: to use instead of the preset's.
        jobs: processes; more than one needs joblib.
        progress: see ``Progress``.

    Returns:
        The summary, see :func:`summary`, with the runs of :func:`sharpness` as "sharpness" (not in "long").

    Raises:
        ValueError: the preset is unknown, ``jobs`` is 0, or the data set cannot be found.
        OSError: a file cannot be written.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
    if jobs == 0:
        raise ValueError("`jobs` must be a number of processes or -1 (one per core), got 0")
    size = PRESETS[preset]()
    chosen = tuple(seeds) or size.seeds
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    work = [(setting, seed) for seed in chosen for setting in size.settings]
    missing = [(s, seed) for s, seed in work if _load(folder, s, seed, size.schedule) is None]
    before, begun = len(work) - len(missing), time.monotonic()
    for new, _ in enumerate(_cells(missing, size.schedule, folder, jobs), 1):
        if progress is not None:
            pace = (time.monotonic() - begun) / new
            progress(before + new, len(work), pace * (len(missing) - new))
    found = [(s, seed, _load(folder, s, seed, size.schedule)) for s, seed in work]
    result = summary(size, [(s, seed, cell) for s, seed, cell in found if cell is not None])
    if preset in SHARPNESS:
        result["sharpness"] = _plain(_sharpness(preset, out))
    _write(result, out)
    return result


def _sharpness(preset: str, out: Path) -> Record:
    """The runs beside the threshold, from their file where it is of this experiment."""
    path = out / "sharpness.json"
    if path.exists():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            same = all(record[name] == _plain(value) for name, value in asdict(SHARPNESS[preset]).items())
        except (ValueError, KeyError, TypeError):
            same, record = False, {}
        if same:
            return record
    return sharpness(preset, out=out)


def _write(record: Record, out: Path) -> None:
    """Record, table and picture; matplotlib is imported here, not before."""
    from collapsar_studies.advice_pictures import study_figure
    from collapsar_studies.picture_files import write_pictures

    figure = study_figure(record)
    write_atomically(out / "advice.json", json.dumps(record, allow_nan=False) + "\n")
    write_pictures(out, "advice", figure, record["title"])


def _cells(work: list[tuple[Setting, int]], schedule: Schedule, folder: Path, jobs: int) -> Iterator[None]:
    if jobs == 1:
        for setting, seed in work:
            _run_cell(setting, seed, schedule, folder)
            yield
        return
    import joblib

    tasks = (joblib.delayed(_run_cell)(setting, seed, schedule, folder) for setting, seed in work)
    results: Any = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
    yield from results


def _run_cell(setting: Setting, seed: int, schedule: Schedule, folder: Path) -> None:
    """Train every method of one setting with one seed; equal recipes once, and none that an older plan has trained."""
    path = _file(folder, setting, seed)
    plan, environment = _plan(setting, seed, schedule), _environment()
    old = _read(path, plan)
    trained: dict[str, Record] = {}
    if old is not None and old["environment"] == environment:
        trained = {_key(method["recipe"]): method for method in old["methods"].values()}
    with one_thread():
        images = subset(setting.data, setting.class_counts, schedule.pool, seed)
        methods = {}
        for name, recipe in _recipes(setting).items():
            told = _plain(_told(recipe))
            key = _key(told)
            if key not in trained:
                trained[key] = train_and_measure(images, recipe, schedule, seed)
            methods[name] = {**trained[key], "recipe": told}
    content = {**plan, "class_counts": list(setting.class_counts), "environment": environment, "methods": methods}
    write_atomically(path, json.dumps(_plain(content), allow_nan=False) + "\n")


def _plan(setting: Setting, seed: int, schedule: Schedule) -> Record:
    return _plain({"format": FORMAT, "setting": asdict(setting), "seed": seed, "schedule": asdict(schedule)})


def _environment() -> Record:
    return {
        "collapsar": collapsar.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": 1,
    }


@cache
def _recipes(setting: Setting) -> dict[str, Recipe]:
    return recipes(setting)


def _told(recipe: Recipe) -> Record:
    """A recipe as JSON-able values."""
    standard: Record = {"standard": True} if recipe.standard else {}
    # fields that came later are told where they are not at their default: records of earlier runs stay valid
    if recipe.rate != ADAMW_RATE:
        standard["rate"] = recipe.rate
    if recipe.body_decay is not None:
        standard["body_decay"] = recipe.body_decay
    return {
        **standard,
        "problem": recipe.problem.to_dict(),
        "penalties": None if recipe.penalties is None else asdict(recipe.penalties),
        "weight_decay": recipe.weight_decay,
        "multipliers": recipe.multipliers,
        "penalised_samples": recipe.penalised_samples,
        "retrain_head": recipe.retrain_head,
    }


def _key(told: Record) -> str:
    return json.dumps(told, sort_keys=True)


def _file(folder: Path, setting: Setting, seed: int) -> Path:
    return folder / f"{setting.name}-seed{seed}.json"


def _load(folder: Path, setting: Setting, seed: int, schedule: Schedule) -> Record | None:
    """A cell's record; None where it is missing, is damaged, or was made by another plan.

    Recipes are compared as they are stored, to six digits: the last digits of a penalty differ between machines.
    """
    record = _read(_file(folder, setting, seed), _plan(setting, seed, schedule))
    if record is None:
        return None
    told = {name: method["recipe"] for name, method in record["methods"].items()}
    return record if told == _told_all(setting) else None


def _read(path: Path, plan: Record) -> Record | None:
    """A whole record of this setting, seed and schedule, whatever its recipes; None without one."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = all("recipe" in method for method in record["methods"].values())
        same = all(record[name] == value for name, value in plan.items()) and "environment" in record
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and same else None


@cache
def _told_all(setting: Setting) -> Record:
    return {name: _plain(_told(recipe)) for name, recipe in _recipes(setting).items()}


def _plain(value: Any) -> Any:
    """JSON values, floats with six digits, what is no number as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else "inf" if value == np.inf else None
    return value


# --- the summary


def summary(size: StudyPreset, cells: Sequence[tuple[Setting, int, Record]]) -> Record:
    """Means and spreads of every method in every setting, and paired differences over each regime.

    Args:
        size: the preset.
        cells: (setting, seed, record) of the cells that are there.

    Returns:
        A dict of JSON values: "settings": per setting the counts, seeds and per method "raw" and "corrected" (each
        measure: mean and standard deviation over seeds), "merged_classes", "predicted_merged", "distance_Z",
        "samples_seen", "cpu_seconds"; "regimes": per regime the mean over its settings and the paired differences of
        the advice to every other method: mean over seeds of the mean over settings, with a 95% interval of Student's t
        over seeds. "sweep" is the best value of the sweep by test accuracy, hence too good, at the cost of all.
    """
    settings = []
    for setting in size.settings:
        records = [(seed, _with_sweep(cell["methods"])) for s, seed, cell in cells if s == setting]
        if records:
            settings.append(_setting_row(setting, records))
    regimes = [_regime_row(name, settings) for name in dict.fromkeys(s.regime for s in size.settings)]
    return {
        "kind": "advice-study",
        "title": "Following the advice, against what people do without it",
        "preset": size.name,
        "schedule": asdict(size.schedule),
        "settings": _plain(settings),
        "regimes": _plain([r for r in regimes if r is not None]),
    }


def _with_sweep(methods: Mapping[str, Record]) -> dict[str, Record]:
    """One entry for the whole sweep, doing nothing included: its best by each reading, the cost of all."""
    tried = [m for name, m in methods.items() if name.startswith("sweep:") or name == "nothing"]
    best: Record = {
        **max(tried, key=lambda m: m["raw"]["balanced"]),
        "corrected": max((m["corrected"] for m in tried), key=lambda r: r["balanced"]),
        "samples_seen": sum(m["samples_seen"] for m in tried),
        "cpu_seconds": sum(m["cpu_seconds"] for m in tried),
    }
    return {**{name: m for name, m in methods.items() if not name.startswith("sweep:")}, "sweep": best}


def _setting_row(setting: Setting, records: list[tuple[int, dict[str, Record]]]) -> Record:
    rows = {}
    for name in records[0][1]:
        runs = [methods[name] for _, methods in records]
        row: Record = {
            reading: {m: _spread([run[reading][m] for run in runs]) for m in MEASURES}
            for reading in ("raw", "corrected")
        }
        row["used"] = "corrected" if name in CORRECTED else "raw"
        row["per_seed"] = {
            reading: {m: [run[reading][m] for run in runs] for m in MEASURES} for reading in ("raw", "corrected")
        }
        for value in ("merged_classes", "samples_seen", "cpu_seconds"):
            row[value] = float(np.mean([run[value] for run in runs]))
        if "predicted_states" in runs[0]:
            problem = Problem.from_dict(runs[0]["recipe"]["problem"])
            row["predicted_merged"] = int(np.sum(clearance(solve(problem, 1e-7, throw=False)) <= 0))
            distances = [run["distance_Z"] for run in runs if run["distance_Z"] is not None]
            row["distance_Z"] = float(np.mean(distances)) if distances else None
        rows[name] = row
    said = {"verdict": _verdict(setting)} if setting.adamw is not None else {}
    return {
        **said,
        "name": setting.name,
        **asdict(setting),
        "class_counts": list(setting.class_counts),
        "seeds": [seed for seed, _ in records],
        "methods": rows,
    }


def _verdict(setting: Setting) -> Record:
    """What the advice said before training, and how many classes it has merged."""
    advice = standard_advice(setting)
    told = {name: getattr(advice, name) for name in ("verdict", "reason", "cure", "clock", "largest_decay")}
    return {**told, "merged": len(advice.merged)}


def _spread(values: Sequence[float]) -> Record:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _regime_row(regime: str, settings: Sequence[Record]) -> Record | None:
    """Over the settings of a regime, and the seeds that all of them have."""
    rows = [row for row in settings if row["regime"] == regime]
    if not rows:
        return None
    seeds = sorted(set.intersection(*(set(row["seeds"]) for row in rows)))
    if not seeds:
        return None
    names = [name for name in rows[0]["methods"] if all(name in row["methods"] for row in rows)]

    def matrix(name: str, measure: str, reading: str) -> np.ndarray:  # seeds by settings
        return np.array(
            [
                [row["methods"][name]["per_seed"][reading][measure][row["seeds"].index(seed)] for row in rows]
                for seed in seeds
            ]
        )

    methods = {}
    for name in names:
        used = rows[0]["methods"][name]["used"]
        entry: Record = {"used": used, "settings": len(rows), "seeds": len(seeds)}
        for measure in MEASURES:
            for reading in ("raw", "corrected"):
                entry[f"{measure}_{reading}"] = _spread(matrix(name, measure, reading).mean(axis=1))
            for advice in (name for name in HEADLINES if name in names):
                ours = matrix(advice, measure, "corrected").mean(axis=1)
                for reading in ("raw", "corrected"):
                    theirs = matrix(name, measure, reading).mean(axis=1)
                    entry[f"{advice}_minus_{measure}_{reading}"] = _interval(ours - theirs)
        for value in ("samples_seen", "cpu_seconds", "merged_classes"):
            entry[value] = float(np.mean([row["methods"][name][value] for row in rows]))
        methods[name] = entry
    return {"regime": regime, "settings": [row["name"] for row in rows], "seeds": seeds, "methods": methods}


def _interval(differences: np.ndarray) -> Record:
    """Mean and 95% interval of Student's t over seeds."""
    n = differences.size
    if n == 0:
        return {"mean": None, "low": None, "high": None}
    mean = float(differences.mean())
    if n == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half}
