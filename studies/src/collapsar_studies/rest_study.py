"""AdamW run to its rest: is it the fixed point of its own map, and what is one penalty per row worth?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

import collapsar as cs
from collapsar.advise.forecast import forecast_rows
from collapsar.advise.recipe import Recipe
from collapsar.core.types import Record
from collapsar.diagnose import distance
from collapsar_studies.adamw_rest import AdamWHead, RestPoint, averaged, random_point, rest_of_adamw
from collapsar_studies.against_theory import environment
from collapsar_studies.presets import Job
from collapsar_studies.standard_runs import STANDARD, adamw_run, problem_of
from collapsar_studies.sweep import Cell

# The study of standard training stops AdamW after a fifth of this: what its rate still does after falling is then less
# than rest asks for, and sqrt(v), which remembers 1000 steps, still holds the noise of the large rate.
STAGES = ((0.0, 1.0), (0.3, 0.1), (0.9, 0.01))
# Beyond this a fixed point has not been found: its margins run off.
SETTLED = 1e-3


@dataclass(frozen=True)
class Rest:
    """The grid.

    Attributes:
        preset: "paper", "cpu" or "tiny"; data, counts and body are those of the study of standard training.
        decays: (features d, decay of the head).
        epochs: Of a run.
        seeds: Of the weights and the order of samples.
        spread: (features d, decay) at which the fixed point is sought from random starts: wd / d is one number, and so
            is the optimum that a penalty per row forecasts.
        starts: How many.
    """

    preset: str
    decays: tuple[tuple[int, float], ...]
    epochs: int
    seeds: tuple[int, ...]
    spread: tuple[tuple[int, float], ...]
    starts: int


_DECAYS = ((32, 10.0), (32, 30.0), (128, 30.0))
_SPREAD = ((16, 5.0), (32, 10.0), (64, 20.0), (128, 40.0), (256, 80.0))
REST = {
    "paper": Rest("paper", (*_DECAYS, (512, 160.0)), 4000, (0, 1, 2), (*_SPREAD, (512, 160.0)), 20),
    "cpu": Rest("cpu", _DECAYS, 2000, (0, 1, 2), _SPREAD, 10),
    "tiny": Rest("tiny", ((16, 10.0),), 4, (0,), ((16, 10.0),), 2),
}


def rest_chains(grid: Rest) -> list[tuple[Job, ...]]:
    """The runs, those of the first seed first."""
    base = STANDARD[grid.preset]
    chains: list[tuple[Job, ...]] = []
    for seed in grid.seeds:
        plain = adamw_run(base, seed)
        for width, wd in grid.decays:
            model = replace(plain.model, widths=(*plain.model.widths[:-1], width))
            stages = {"epochs": grid.epochs, "eval_every": grid.epochs, "learning_rate_steps": STAGES}
            config = replace(plain, model=model, head_decay=wd, **stages)
            chains.append((Job({"width": width, "wd": wd, "seed": seed}, Cell(config, detail="entries")),))
    return chains


def rest_record(grid: Rest, jobs: Sequence[Job], cells: Mapping[str, Record]) -> Record:
    """Every run beside the rows' optimum and the entries' fixed point; the fixed points of random starts.

    Args:
        grid: The study.
        jobs: Its runs that have ended.
        cells: Their records by key.
    """
    base = STANDARD[grid.preset]
    counts = base.class_counts
    return {
        "figure": "rest",
        "title": "AdamW at rest: entry by entry, and by rows",
        "preset": grid.preset,
        "data": base.dataset,
        "class_counts": list(counts),
        "runs": [_run(job, cells[job.cell.key]) for job in jobs if cells[job.cell.key]["result"] is not None],
        "spread": [_spread(counts, width, wd, grid.starts) for width, wd in grid.spread],
        "environment": environment([cells[job.cell.key] for job in jobs]),
    }


def _run(job: Job, cell: Record) -> Record:
    config, result = job.cell.config, cell["result"]
    counts, width = config.class_counts, config.model.widths[-1]
    num_large = sum(n == max(counts) for n in counts)
    Z, b, W, H, penalties = (np.array(result[name]) for name in ("Z", "b", "weight", "means", "penalties"))
    H = H * np.sqrt(width) / np.linalg.norm(H, axis=1, keepdims=True)  # means are shorter where not yet collapsed
    point = rest_of_adamw(AdamWHead(counts, config.head_decay, config.batch_size), W, H, b)
    forecast = _forecast(counts, width, config.head_decay, config.batch_size)
    by_rows = rows_optimum(counts, width, penalties)
    return {
        **job.labels,
        "rows": _two(penalties.mean(axis=1), num_large),
        "forecast": {"rows": _two(forecast.rows, num_large), "settled": forecast.settled},
        "slope": result["slope"],
        "correlation": result["correlation"],
        "residual": result["residual"],
        "varies": float(np.mean(penalties.std(axis=1) / penalties.mean(axis=1))),
        "settled": max(point.residual) < SETTLED,
        "distance": {
            "entries": _apart(Z, point.Z),
            "rows": distance(by_rows, Z, b).Z,
            "rows_averaged": _apart(averaged(Z, num_large), by_rows.Z),
            "forecast": distance(forecast.solution, Z, b).Z,
            "b": distance(by_rows, Z, b).b,
        },
    }


def rows_optimum(counts: tuple[int, ...], width: int, penalties: np.ndarray) -> cs.Solution:
    """The certified optimum with one penalty per row, the mean over rows of classes of one size."""
    rows, sizes = penalties.mean(axis=1), np.array(counts)
    even = np.array([rows[sizes == n].mean() for n in sizes])
    return cs.solve(problem_of(counts, even, float(np.sqrt(width)), "sample"), 1e-8, throw=False)


def _spread(counts: tuple[int, ...], width: int, wd: float, starts: int) -> Record:
    """Fixed points from random starts: how far from each other, and from the optimum of their own rows."""
    head, generator = AdamWHead(counts, wd, 64), np.random.default_rng(width)
    num_large = sum(n == max(counts) for n in counts)
    points: list[RestPoint] = []
    for _ in range(starts):
        W, H, b = random_point(head, width, generator)
        points.append(rest_of_adamw(head, W, H, b))
    settled = [point for point in points if max(point.residual) < SETTLED]
    away = [(point, rows_optimum(counts, width, point.penalties)) for point in settled]
    return {
        "width": width,
        "wd": wd,
        "starts": starts,
        "settled": len(settled),
        "varies": _middle([float(np.mean(p.penalties.std(axis=1) / p.penalties.mean(axis=1))) for p in settled]),
        "apart": _middle([_apart(a.Z, b.Z) for i, a in enumerate(settled) for b in settled[:i]]),
        "rows": _middle([_apart(p.Z, s.Z) for p, s in away]),
        "rows_averaged": _middle([_apart(averaged(p.Z, num_large), s.Z) for p, s in away]),
    }


@lru_cache(maxsize=16)
def _forecast(counts: tuple[int, ...], width: int, wd: float, batch_size: int) -> Any:
    recipe = Recipe("adamw", wd, 1e-3, 10_000, batch_size, "layernorm", width, schedule="constant")
    return forecast_rows(counts, recipe)


def _two(rows: np.ndarray, num_large: int) -> list[float]:
    return [float(rows[:num_large].mean()), float(rows[num_large:].mean())]


def _middle(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _apart(Z: np.ndarray, target: np.ndarray) -> float:
    """Relative Frobenius distance of the columns, each less its mean, which no loss sees."""
    target = target - target.mean(axis=0)
    return float(np.linalg.norm(Z - Z.mean(axis=0) - target) / np.linalg.norm(target))
