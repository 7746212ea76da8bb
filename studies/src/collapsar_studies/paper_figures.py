"""The records behind Figs. 1 to 9 of Hong & Ling, JMLR 25(192), 2024, from the records of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

import collapsar as cs
from collapsar.core.types import Record
from collapsar.diagnose import distance
from collapsar.theory import fractional_problem
from collapsar.theory.limits import etf_cosine
from collapsar_studies.against_theory import (
    MODELS,
    brackets,
    contrasts,
    cosines,
    environment,
    optimum,
    summary,
    verdict,
)
from collapsar_studies.presets import CLASSES, LAMBDA_B, LAMBDAS, FigurePlan, Job
from collapsar_studies.theory_figures import table_record

Cells = Mapping[str, Record]

TITLES = {
    1: "within-class variability over training (NC1)",
    2: "mean predictions of all networks beside both optima",
    3: "distance of mean predictions and bias to both optima over training",
    4: "mean predictions beside both optima",
    5: "mean predictions over lambda_z, 5 large and 5 small classes",
    6: "mean predictions over lambda_z, 3 large and 7 small classes",
    7: "mean predictions over n_A, 5 large and 5 small classes",
    8: "mean predictions over n_A, 3 large and 7 small classes",
    9: "cosines of mean predictions over the number of images",
}

# What the paper's Fig. 3 prints at the end of training: Z Frobenius, Z maximum, b Euclidean, b maximum.
PRINTED = {"Dataset1": (0.043, 0.037, 0.207, 0.21), "Dataset2": (0.091, 0.107, 0.41, 0.74)}


def figure_record(plan: FigurePlan, cells: Cells) -> Record:
    """The record that a figure is drawn from; computes optima, trains nothing.

    Args:
        plan: The figure.
        cells: Records of all its cells by key, as ``run_sweep`` gives them.

    Raises:
        ValueError: No run of the plan has a result.
    """
    jobs = [job for job in plan.jobs if cells[job.cell.key]["result"] is not None]
    if not jobs:
        raise ValueError(f"figure {plan.figure} has no run with a result: {cells[plan.jobs[0].cell.key]['error']}")
    return {
        "figure": f"fig{plan.figure}",
        "number": plan.figure,
        "title": TITLES[plan.figure],
        "preset": plan.preset.name,
        "data": plan.preset.dataset,
        "seeds": list(plan.preset.seeds),
        "environment": environment([cells[job.cell.key] for job in plan.jobs]),
        **_RECORDS[plan.figure](plan, jobs, cells),
    }


def _runs(jobs: Sequence[Job], cells: Cells, num_large: int, *, matrices: bool = False) -> list[Record]:
    return [
        {**job.labels, **summary(cells[job.cell.key], num_large, matrices=matrices)}
        for job in sorted(jobs, key=lambda job: [job.labels.get(name, 0) for name in ("value", "seed")])
    ]


# --- Figs. 1 to 4


def _fig_1(plan: FigurePlan, jobs: Sequence[Job], cells: Cells) -> Record:
    """NC1 over epochs."""
    runs = []
    for job in jobs:
        curve = cells[job.cell.key]["result"]["curve"]
        runs.append({**job.labels, **{name: [p[name] for p in curve] for name in ("epoch", "nc1_uniform")}})
    return {"runs": runs}


def _fig_2(plan: FigurePlan, jobs: Sequence[Job], cells: Cells) -> Record:
    """Z of every network at the first seed; distances of all seeds."""
    runs = _runs(jobs, cells, 4, matrices=True)
    for run in runs:
        if run["seed"] != plan.preset.seeds[0]:
            del run["Z"], run["optimum"]
    return {"runs": runs, "printed": PRINTED}


def _fig_3(plan: FigurePlan, jobs: Sequence[Job], cells: Cells) -> Record:
    """Relative distances over epochs."""
    runs = []
    for job, run in zip(jobs, _runs(jobs, cells, 4), strict=True):
        record = cells[job.cell.key]
        curve = record["result"]["curve"]
        distances: Record = {}
        for features in MODELS:
            best = optimum(job.cell.config.class_counts, run["lambda_z"], run["lambda_b"], features)
            each = [distance(best, p["Z"], p["b"]) for p in curve]
            distances[features] = {name: [getattr(d, name) for d in each] for name in ("Z", "Z_max", "b", "b_max")}
        stationarity = [p["stationarity"] for p in curve]
        runs.append({**run, "epoch": [p["epoch"] for p in curve], "stationarities": stationarity, "curves": distances})
    between = {}
    for name in dict.fromkeys(run["counts"] for run in runs):
        job = next(job for job in jobs if job.labels["counts"] == name)
        run = next(run for run in runs if run["counts"] == name)
        a, b = (optimum(job.cell.config.class_counts, run["lambda_z"], run["lambda_b"], f) for f in MODELS)
        d = distance(a, b.Z, b.b)
        between[name] = [d.Z, d.Z_max, d.b, d.b_max]
    return {"runs": runs, "printed": PRINTED, "between_models": between}


def _fig_4(plan: FigurePlan, jobs: Sequence[Job], cells: Cells) -> Record:
    return _fig_2(plan, jobs, cells)


# --- Figs. 5 to 8


@lru_cache(maxsize=1)
def _predictions() -> dict[int, Record]:
    return {row["figure"]: row for row in table_record()["rows"]}


def _fig_5_to_8(plan: FigurePlan, jobs: Sequence[Job], cells: Cells) -> Record:
    """Z at every value, contrasts of both models in between, and where each seed saw collapse."""
    k_a, k_b = CLASSES[plan.figure]
    runs = _runs(jobs, cells, k_a, matrices=True)
    values = sorted({run["value"] for run in runs})
    row = _predictions()[plan.figure]
    observed = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        mine = {run["value"]: run for run in runs if run["seed"] == seed}
        axis = sorted(mine)
        events = {
            "minority_begins": [mine[v]["minority_lost"] > 0 for v in axis],
            "minority": [mine[v]["minority_collapsed"] for v in axis],
            "complete": [mine[v]["all_vanished"] for v in axis],
        }
        seen: Record = {name: brackets(axis, happened) for name, happened in events.items()}
        verdicts = {
            model: {event: verdict(row[model][event], seen[event], axis) for event in ("minority", "complete")}
            for model in MODELS
        }
        observed.append({"seed": seed, **seen, "verdict": verdicts})
    for run in runs:  # one seed is drawn; the optima are those of every seed
        if run["seed"] != plan.preset.seeds[0]:
            for name in ("Z", "b", "optimum"):
                del run[name]
    return {
        "k": [k_a, k_b],
        "varied": row["varied"],
        "values": values,
        "runs": runs,
        "observed": observed,
        "predicted": {model: row[model] for model in MODELS},
        "in_the_paper": row["observed"],
        "theory": _contrast_curves(plan.figure, values),
    }


def _contrast_curves(figure: int, values: Sequence[float]) -> Record:
    """Contrasts of both optima over the axis, at the paper's own counts."""
    k_a, k_b = CLASSES[figure]
    axis = np.geomspace(values[0], values[-1], 6 * len(values))
    out: Record = {"value": axis}
    for features in MODELS:
        if figure in LAMBDAS:
            problem = fractional_problem([500.0] * k_a + [100.0] * k_b, 1.0, LAMBDA_B, features=features)
            solutions = cs.path(problem, axis, throw=False)
        else:
            counts = ([float(n_a)] * k_a + [100.0] * k_b for n_a in axis)
            problems = (fractional_problem(n, 0.005, LAMBDA_B, features=features) for n in counts)
            solutions = [cs.solve(problem, throw=False) for problem in problems]
        found = [contrasts(s.Z, k_a) for s in solutions]
        out[features] = {"A": [c[0] for c in found], "B": [c[1] for c in found]}
    return out


# --- Fig. 9


def _fig_9(plan: FigurePlan, jobs: Sequence[Job], cells: Cells) -> Record:
    k_a, k_b = CLASSES[9]
    runs = _runs(jobs, cells, k_a)
    ordered = sorted(jobs, key=lambda job: [job.labels[name] for name in ("value", "seed")])
    for run, job in zip(runs, ordered, strict=True):
        Z = np.array(cells[job.cell.key]["result"]["Z"], dtype=float)
        run["cosines"] = cosines(Z, k_a)
        run["optimum_cosines"] = {
            f: cosines(optimum(job.cell.config.class_counts, run["lambda_z"], run["lambda_b"], f).Z, k_a)
            for f in MODELS
        }
    return {"k": [k_a, k_b], "runs": runs, "etf": etf_cosine(k_a + k_b)}


_Records = Callable[[FigurePlan, Sequence[Job], Cells], Record]
_RECORDS: dict[int, _Records] = {
    1: _fig_1,
    2: _fig_2,
    3: _fig_3,
    4: _fig_4,
    **dict.fromkeys((5, 6, 7, 8), _fig_5_to_8),
    9: _fig_9,
}
