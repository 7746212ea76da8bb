"""Near the threshold: is a network that misses its optimum held back by its start, or is the theory off?

BatchNorm merged its small classes at .9 of the predicted decay from fresh weights, and one cosine head had not merged
them at 1.1. Each is trained again: longer, gently (a tenth of the decay at first), and from the network at .6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collapsar.training import ModelSpec
from collapsar_studies.against_theory import environment
from collapsar_studies.presets import Job
from collapsar_studies.standard_runs import STANDARD, Standard, over_of, sgd_run
from collapsar_studies.standard_study import beside, has_merged
from collapsar_studies.sweep import Cell

__all__ = ["STARTS", "Starts", "starts_chains", "starts_record"]

Record = dict[str, Any]
GENTLE = 0.5  # of the epochs have a tenth of the decay
BELOW = 0.6  # of the threshold: where a network that is raised comes from


@dataclass(frozen=True)
class Starts:
    """The grid.

    Attributes:
        preset: "paper", "cpu" or "tiny"; data and networks are those of the study of standard training.
        places: (norm, multiple of the threshold, ways to get there).
        longer: By how much the long runs are longer.
        seeds: Of weights and order.
    """

    preset: str
    places: tuple[tuple[str, float, tuple[str, ...]], ...]
    longer: int
    seeds: tuple[int, ...]


_PLACES = (
    ("batchnorm", 0.9, ("fresh", "long", "gentle", "raised")),
    ("cosine", 1.1, ("long",)),
)
STARTS = {
    "paper": Starts("paper", (*_PLACES, ("cosine", 0.9, ("long",))), 4, (0, 1, 2)),
    "cpu": Starts("cpu", _PLACES, 3, (0, 1, 2)),
    "tiny": Starts("tiny", (("batchnorm", 0.9, ("long", "gentle", "raised")),), 2, (0,)),
}


def starts_chains(grid: Starts) -> list[tuple[Job, ...]]:
    """The runs, those of the first seed first; a raised one comes after the one it starts from."""
    base = STANDARD[grid.preset]
    return [
        _chain(base, grid.longer, norm, factor, way, seed)
        for seed in grid.seeds
        for norm, factor, ways in grid.places
        for way in ways
    ]


def _chain(base: Standard, longer: int, norm: str, factor: float, way: str, seed: int) -> tuple[Job, ...]:
    spec = ModelSpec("mlp", base.widths, feature_relu=False, feature_norm=norm)
    labels = {"norm": norm, "factor": factor, "seed": seed, "way": way}
    if way == "long":
        base = replace(base, epochs=longer * base.epochs)
    config = sgd_run(base, base.dataset, spec, factor, seed)
    if way == "gentle":
        config = replace(config, warm_fraction=GENTLE)
    if way != "raised":
        return (Job(labels, Cell(config, detail="decay")),)
    below = Cell(sgd_run(base, base.dataset, spec, BELOW, seed), detail="decay")
    first = Job({**labels, "factor": BELOW, "way": "below"}, below)
    return first, Job(labels, Cell(config, start=below, detail="decay"))


def starts_record(grid: Starts, jobs: Sequence[Job], cells: Mapping[str, Record]) -> Record:
    """Every run beside the model of its norm.

    Args:
        grid: The study.
        jobs: Its runs that have ended.
        cells: Their records by key.
    """
    base = STANDARD[grid.preset]
    runs = []
    for job in jobs:
        if cells[job.cell.key]["result"] is None:
            continue
        run = beside(job, cells[job.cell.key])
        own = over_of(job.cell.config.model)
        kept = ("lambda_w", "contrasts", "predicted_contrasts", "stationarity")
        away = {"distance": run["distance"][own], "merged": has_merged(run)}
        runs.append({**job.labels, **{name: run[name] for name in kept}, **away})
    return {
        "figure": "starts",
        "title": "near the threshold: how a network gets there",
        "preset": grid.preset,
        "data": base.dataset,
        "class_counts": list(base.class_counts),
        "runs": runs,
        "environment": environment([cells[job.cell.key] for job in jobs]),
    }
