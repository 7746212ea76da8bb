"""Near the threshold: is a network that misses its optimum held back by its start, or is the theory off?

BatchNorm merged its small classes at .9 of the predicted decay from fresh weights, one cosine head had not merged
them at 1.1, and a vision transformer was not there at .5. They are trained again: longer, gently (a tenth of the decay
at first), and from the network at .6. A perceptron on FashionMNIST, of which there was one seed, has three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from collapsar.core.types import Record
from collapsar.training import ModelSpec
from collapsar_studies.against_theory import environment
from collapsar_studies.presets import Job
from collapsar_studies.standard_runs import STANDARD, over_of, sgd_run
from collapsar_studies.standard_study import beside, has_merged
from collapsar_studies.sweep import Cell

GENTLE = 0.5  # of the epochs have a tenth of the decay
BELOW = 0.6  # of the threshold: where a network that is raised comes from


@dataclass(frozen=True)
class Place:
    """A network and a decay.

    Attributes:
        norm: Before the head.
        factor: Decay of the head, as a multiple of the merge threshold.
        ways: To get there.
        network: Another than the perceptron of the study of standard training.
        dataset: Another than that study's.
        epochs: As a multiple of that study's.
        seeds: Others than the grid's.
    """

    norm: str
    factor: float
    ways: tuple[str, ...]
    network: ModelSpec | None = None
    dataset: str = ""
    epochs: float = 1.0
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Starts:
    """The grid.

    Attributes:
        preset: "paper", "cpu" or "tiny"; data and networks are those of the study of standard training.
        places: Where to get to.
        longer: By how much the long runs are longer.
        seeds: Of the weights and the order of samples.
    """

    preset: str
    places: tuple[Place, ...]
    longer: int
    seeds: tuple[int, ...]


_BATCH_NORM = Place("batchnorm", 0.9, ("fresh", "long", "gentle", "raised"))
_PERCEPTRON, _, _TRANSFORMER = (network for _, network in STANDARD["cpu"].others)
_FASHION = ("fashion-mnist", 2.5)
_PLACES = (
    _BATCH_NORM,
    Place("cosine", 1.1, ("long",)),
    Place("layernorm", 0.5, ("fresh",), _PERCEPTRON, *_FASHION),
    Place("layernorm", 1.4, ("fresh",), _PERCEPTRON, *_FASHION),
)
STARTS = {
    "paper": Starts(
        "paper",
        (*_PLACES, Place("cosine", 0.9, ("long",)), Place("layernorm", 0.5, ("gentle",), _TRANSFORMER, *_FASHION)),
        4,
        (0, 1, 2),
    ),
    "cpu": Starts("cpu", _PLACES, 3, (0, 1, 2)),
    "tiny": Starts("tiny", (Place("batchnorm", 0.9, ("long", "gentle", "raised")),), 2, (0,)),
}


def starts_chains(grid: Starts) -> list[tuple[Job, ...]]:
    """The runs, those of the first seed first; a raised one comes after the one it starts from."""
    return [
        _chain(grid, place, way, seed)
        for seed in grid.seeds
        for place in grid.places
        if seed in (place.seeds or grid.seeds)
        for way in place.ways
    ]


def _chain(grid: Starts, place: Place, way: str, seed: int) -> tuple[Job, ...]:
    base = STANDARD[grid.preset]
    network = place.network or ModelSpec("mlp", base.widths, feature_relu=False)
    network, dataset = replace(network, feature_norm=place.norm), place.dataset or base.dataset
    base = replace(base, epochs=round(base.epochs * place.epochs) * (grid.longer if way == "long" else 1))
    labels = {
        "norm": place.norm, "network": network.name, "data": dataset, "factor": place.factor, "seed": seed, "way": way,
    }  # fmt: skip
    config = sgd_run(base, dataset, network, place.factor, seed)
    if way == "gentle":
        config = replace(config, warm_fraction=GENTLE)
    if way != "raised":
        return (Job(labels, Cell(config, detail="decay")),)
    below = Cell(sgd_run(base, dataset, network, BELOW, seed), detail="decay")
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
