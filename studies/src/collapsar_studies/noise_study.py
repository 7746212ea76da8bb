"""Ordinary training again: does the noise of the steps explain why the switch depends on the learning rate?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from collapsar.core.types import Record
from collapsar_studies.against_theory import brackets, contrasts, environment, lost
from collapsar_studies.effective import EFFECTIVE, K_A, Effective, RateSweep, effective_chains
from collapsar_studies.gradient_noise import noise_share
from collapsar_studies.presets import Job
from collapsar_studies.sweep import Cell


@dataclass(frozen=True)
class Noise:
    """The grid; data, networks and decays are those of ``effective``.

    Attributes:
        preset: "paper", "cpu" or "tiny".
        ways: (learning rate, steps, images in a batch); 0: all of them, without noise.
        layers: Decayed linear layers above the normalisation.
        places: Which of the decays of each network: around its switch.
        seeds: Of the weights and the order of samples.
    """

    preset: str
    ways: tuple[tuple[float, int, int], ...]
    layers: tuple[int, ...]
    places: Mapping[int, tuple[int, ...]]
    seeds: tuple[int, ...]


_WAYS = ((0.1, 1500, 200), (0.1, 1500, 0), (0.03, 3000, 200))
NOISE = {
    "paper": Noise(
        "paper",
        (*_WAYS, (0.1, 1500, 50), (0.01, 5000, 200)),
        (1, 2),
        {1: (1, 2, 3, 4, 5), 2: (0, 1, 2, 3, 4)},
        (0, 1, 2),
    ),
    "cpu": Noise("cpu", _WAYS, (1, 2), {1: (2, 3, 4), 2: (1, 2, 3)}, (0,)),
    "tiny": Noise("tiny", ((0.1, 12, 60), (0.1, 12, 0)), (2,), {2: (0, 1)}, (0,)),
}


def noise_chains(grid: Noise) -> list[tuple[Job, ...]]:
    """The runs, from fresh weights, those of the first seed and way first."""
    base = EFFECTIVE[grid.preset]
    return [
        (_job(base, job, way),)
        for seed in grid.seeds
        for way in grid.ways
        for layers in grid.layers
        for place, job in enumerate(_cold(base, way, layers, seed))
        if place in grid.places[layers]
    ]


def _cold(base: Effective, way: tuple[float, int, int], layers: int, seed: int) -> Sequence[Job]:
    rate, steps, batch = way
    counts = K_A * base.n_a + K_A * base.minorities[0]
    sweep = RateSweep(rate, steps, base.minorities[:1], (layers,), ("cold",), (seed,))
    return effective_chains(replace(base, batch_size=batch or counts, sweeps=(sweep,)))[0]


def _job(base: Effective, job: Job, way: tuple[float, int, int]) -> Job:
    config = job.cell.config
    labels = {name: job.labels[name] for name in ("rate", "layers", "decay", "seed")}
    return Job({**labels, "batch": config.batch_size}, Cell(config, detail="noise"))


def noise_record(grid: Noise, jobs: Sequence[Job], cells: Mapping[str, Record]) -> Record:
    """Every run with the decay that its noise amounts to, and the switch of every way.

    Args:
        grid: The study.
        jobs: Its runs that have ended.
        cells: Their records by key.
    """
    base = EFFECTIVE[grid.preset]
    runs = [_run(job, cells[job.cell.key]) for job in jobs if cells[job.cell.key]["result"] is not None]
    return {
        "figure": "noise",
        "title": "ordinary training: the noise of the steps as decay",
        "preset": grid.preset,
        "data": base.dataset,
        "n_a": base.n_a,
        "n_b": base.minorities[0],
        "runs": runs,
        "table": [_row(runs, way) for way in dict.fromkeys((r["layers"], r["rate"], r["batch"]) for r in runs)],
        "environment": environment([cells[job.cell.key] for job in jobs]),
    }


def _run(job: Job, cell: Record) -> Record:
    """Its noise as decay, kappa eta / (1 - mu) Var(xi) of the median small class: by samples, and by batches."""
    config, result = job.cell.config, cell["result"]
    Z = np.array(result["Z"], dtype=float)
    num_lost = int(lost(Z, K_A).sum())
    batches = -(-sum(config.class_counts) // config.batch_size)
    factor = noise_share(config.momentum, batches) * config.learning_rate / (1 - config.momentum)
    return {
        **job.labels,
        "lost": num_lost,
        "switched": 2 * num_lost > len(Z) - K_A,
        "contrasts": contrasts(Z, K_A),
        "stationarity": result["stationarity"],
        "pull": float(np.median(result["pull"])),
        "noise": factor * float(np.median(result["variance"])),
        "as_trained": factor * float(np.median(result["batch_variance"])) if batches > 1 else 0.0,
    }


def _row(runs: Sequence[Record], way: tuple[int, float, int]) -> Record:
    """The switch of one way to train, and the noise of the last network before it."""
    mine = [r for r in runs if (r["layers"], r["rate"], r["batch"]) == way]
    axis = sorted({r["decay"] for r in mine})
    seen, before = [], []
    for seed in sorted({r["seed"] for r in mine}):
        here = {r["decay"]: r for r in mine if r["seed"] == seed}
        bracket = brackets(axis, [here[wd]["switched"] for wd in axis])
        seen.append(bracket)
        before += [here[bracket[0]]] if bracket[0] is not None else []
    return {
        "layers": way[0],
        "rate": way[1],
        "batch": way[2],
        "measured": seen,
        "noise": _largest(before, "noise"),
        "as_trained": _largest(before, "as_trained"),
        "stationarity": _largest(before, "stationarity"),
    }


def _largest(runs: Sequence[Record], name: str) -> float | None:
    return max((r[name] for r in runs), default=None)
