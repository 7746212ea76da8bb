"""The runs of the study of standard training: a norm before the head, decay on the head, no feature penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

import collapsar as cs
from collapsar import Penalties
from collapsar.training import ModelSpec, TrainConfig
from collapsar_studies.presets import Job
from collapsar_studies.sweep import Cell

# Of the merge threshold: two plain cases on either side, and two that bracket it within a tenth.
FACTORS = (0.3, 0.6, 0.9, 1.1, 1.4)
STAGES = ((0.0, 1.0), (0.7, 0.1), (0.9, 0.01))


@dataclass(frozen=True)
class Standard:
    """The grid of the study.

    Attributes:
        preset: "paper", "cpu" or "tiny".
        dataset: of the sweeps over the decay.
        class_counts: of all runs.
        widths: of the perceptrons.
        epochs: of a run with SGD; AdamW's runs and fine-tunings take their own.
        factors: decays of the head, as factors of the merge threshold.
        norms: what stands before the head; "": nothing.
        seeds: of the weights and the order of samples.
        adamw: AdamW's decays of the head at batch 64, rate 1e-3.
        wide: last width of a second perceptron for AdamW's two largest decays, with half of the epochs; 0: none.
        others: further (data set, network) pairs, at half and 1.4 times the threshold.
        tuned: how many short fine-tunings.
    """

    preset: str
    dataset: str
    class_counts: tuple[int, ...]
    widths: tuple[int, ...]
    epochs: int
    factors: tuple[float, ...]
    norms: tuple[str, ...]
    seeds: tuple[int, ...]
    adamw: tuple[float, ...]
    wide: int
    others: tuple[tuple[str, ModelSpec], ...]
    tuned: int


_NORMS = ("layernorm", "rmsnorm", "cosine", "batchnorm", "")
_COUNTS = (100,) * 5 + (20,) * 5
_OTHERS = (
    ("fashion-mnist", ModelSpec("mlp", (128, 128, 32), feature_relu=False)),
    ("fashion-mnist", ModelSpec("cnn", (8, 16, 32), feature_relu=False)),
    ("fashion-mnist", ModelSpec("vit", (7, 32, 32), feature_relu=False)),
)
STANDARD: dict[str, Standard] = {
    "paper": Standard(
        "paper", "fashion-mnist", _COUNTS, (256, 256, 64), 1000, FACTORS, _NORMS, (0, 1, 2), (0.1, 3.0, 10.0, 30.0),
        256, _OTHERS, 20,
    ),
    "cpu": Standard(
        "cpu", "digits", _COUNTS, (128, 128, 32), 600, FACTORS, _NORMS, (0, 1, 2), (0.1, 3.0, 10.0, 30.0),
        128, _OTHERS, 20,
    ),
    "tiny": Standard(
        "tiny", "digits", (40,) * 5 + (8,) * 5, (32, 16), 4, (0.5, 1.4), ("layernorm", ""), (0,), (10.0,), 0, (), 2
    ),
}  # fmt: skip

# Of a fine-tuning: (learning rate, decay, epochs). The clock runs from 2e-5 to .04, and is 1.1 and 3.8 in the last two.
TUNINGS = (
    (2e-5, 0.01, 5), (5e-5, 0.01, 5), (1e-4, 0.01, 10), (1e-4, 0.05, 10), (3e-4, 0.05, 10),
    (1e-3, 0.05, 10), (3e-4, 0.1, 20), (1e-3, 0.1, 20), (1e-3, 3.0, 20), (1e-3, 10.0, 20),
)  # fmt: skip


def problem_of(
    class_counts: tuple[int, ...], lambda_w: float | np.ndarray, length: float, over: str, lambda_b: float = 0.0
) -> cs.Problem:
    """The convex program of networks whose features have a length, per "sample" or per "batch"."""
    which = "batch" if over == "batch" else "sample"
    return cs.Problem.from_normalized(class_counts, lambda_w=lambda_w, norm=length, over=which, lambda_b=lambda_b)


@lru_cache(maxsize=64)
def merge_of(class_counts: tuple[int, ...], over: str) -> float:
    """The decay of the head from which the smallest classes merge, for features of unit length."""
    return float(cs.thresholds(problem_of(class_counts, 1.0, 1.0, over)).merge[int(np.argmin(class_counts))])


def over_of(spec: ModelSpec) -> str:
    """Over what the network's norm normalises."""
    return "batch" if spec.feature_norm == "batchnorm" else "sample"


def length_of(spec: ModelSpec) -> float:
    """The length of its features; without a norm, that of a LayerNorm in its place."""
    length = replace(spec, feature_norm=spec.feature_norm or "layernorm").feature_length(spec.widths[-1])
    assert length is not None  # there is a norm
    return length


def _merge(spec: ModelSpec, class_counts: tuple[int, ...]) -> float:
    return length_of(spec) ** 2 * merge_of(class_counts, over_of(spec))


def sgd_run(grid: Standard, dataset: str, spec: ModelSpec, factor: float, seed: int) -> TrainConfig:
    """Decay of the head alone by SGD, as λ_W: the gradient of a half square."""
    lambda_w = float(f"{factor * _merge(spec, grid.class_counts):.4g}")
    return TrainConfig(
        dataset=dataset,
        class_counts=grid.class_counts,
        penalties=Penalties(lambda_w, 0.0, 0.0),
        epochs=grid.epochs,
        model=spec,
        learning_rate=min(0.25, 2 / lambda_w) if lambda_w else 0.25,  # twice that and the decay alone would swing
        learning_rate_steps=STAGES,
        warm_fraction=0.0,
        clip_norm=1.0,
        eval_every=grid.epochs,
        seed=seed,
        device="cpu",
    )


def standard_chains(grid: Standard) -> list[tuple[Job, ...]]:
    """The runs, those of the first seed first; the fine-tunings start from a network that comes before them."""
    chains: list[tuple[Job, ...]] = []
    for seed in grid.seeds:
        for norm in grid.norms:
            spec = ModelSpec("mlp", grid.widths, feature_relu=False, feature_norm=norm)
            for factor in grid.factors:
                config = sgd_run(grid, grid.dataset, spec, factor, seed)
                chains.append(_one("sweep", config, norm=norm or "none", factor=factor, seed=seed))
        chains += _decay_elsewhere(grid, seed)
    for dataset, spec in grid.others:
        for factor in (0.5, 1.4):
            longer = replace(grid, epochs=5 * grid.epochs // 2)  # at 300 epochs, the small classes were not even fitted
            config = sgd_run(longer, dataset, replace(spec, feature_norm="layernorm"), factor, 0)
            labels = {"norm": "layernorm", "network": spec.name, "data": dataset, "factor": factor, "seed": 0}
            chains.append(_one("others", config, **labels))
    return chains + _tunings(grid)


def adamw_run(grid: Standard, seed: int) -> TrainConfig:
    """AdamW on a perceptron with a LayerNorm before the head, no decay yet."""
    spec = ModelSpec("mlp", grid.widths, feature_relu=False, feature_norm="layernorm")
    plain = sgd_run(grid, grid.dataset, spec, 0.5, seed)
    return replace(
        plain, penalties=Penalties(0.0, 0.0, 0.0), optimizer="adamw", learning_rate=1e-3, batch_size=64,
        clip_norm=math.inf,
    )  # fmt: skip


def _one(part: str, config: TrainConfig, **labels: object) -> tuple[Job, ...]:
    return (Job({"part": part, **labels}, Cell(config, detail="decay")),)


def _decay_elsewhere(grid: Standard, seed: int) -> list[tuple[Job, ...]]:
    """AdamW's decay of the head; and decay of every layer, by SGD and by AdamW."""
    spec = ModelSpec("mlp", grid.widths, feature_relu=False, feature_norm="layernorm")
    plain = sgd_run(grid, grid.dataset, spec, 0.5, seed)
    adam = adamw_run(grid, seed)
    width = grid.widths[-1]
    chains = [_one("adamw", replace(adam, head_decay=wd), wd=wd, width=width, seed=seed) for wd in grid.adamw]
    if grid.wide:
        model = replace(spec, widths=(*grid.widths[:-1], grid.wide))
        wide = replace(adam, model=model, epochs=grid.epochs // 2, eval_every=grid.epochs // 2)
        labels = {"width": grid.wide, "seed": seed}
        chains += [_one("adamw", replace(wide, head_decay=wd), wd=wd, **labels) for wd in grid.adamw[-2:]]
    for body in (1e-3, 1e-2):
        # SGD's decay of all parameters adds to λ_W, whose sum stays that of the plain run
        price = Penalties(plain.penalties.lambda_w - body, 0.0, 0.0)
        config = replace(plain, penalties=price, weight_decay=body)
        chains.append(_one("everywhere", config, optimizer="sgd", body=body, seed=seed))
    wd = grid.adamw[-1]
    config = replace(adam, head_decay=wd - 1.0, weight_decay=1.0)
    chains.append(_one("everywhere", config, optimizer="adamw", body=1.0, wd=wd, seed=seed))
    return chains


def _tunings(grid: Standard) -> list[tuple[Job, ...]]:
    """Short fine-tunings of a network trained on balanced classes, each with its twin that has no decay at all."""
    if not grid.tuned:
        return []
    spec = ModelSpec("mlp", grid.widths, feature_relu=False, feature_norm="layernorm")
    balanced = (min(grid.class_counts),) * len(grid.class_counts)
    first = replace(
        sgd_run(grid, grid.dataset, spec, 0.0, 0), class_counts=balanced, epochs=max(2, grid.epochs // 10),
        eval_every=max(2, grid.epochs // 10), learning_rate=0.05,
    )  # fmt: skip
    start = Cell(first, detail="decay")
    jobs = [Job({"part": "start"}, start)]
    for number in range(grid.tuned):
        rate, wd, epochs = TUNINGS[number % len(TUNINGS)]
        for decay in (wd, 0.0):
            config = replace(
                first, class_counts=grid.class_counts, optimizer="adamw", learning_rate=rate, batch_size=32,
                epochs=epochs, eval_every=epochs, weight_decay=decay, seed=1 + number // len(TUNINGS),
                learning_rate_steps=((0.0, 1.0),),
            )  # fmt: skip
            labels = {"part": "tuned", "number": number, "wd": wd, "decayed": decay > 0}
            jobs.append(Job(labels, Cell(config, start=start, detail="decay")))
    return [tuple(_once(jobs))]


def _once(jobs: Sequence[Job]) -> list[Job]:
    """Twins without decay differ in nothing else where rate, epochs and seed agree: one run serves them all."""
    kept: dict[str, Job] = {}
    for job in jobs:
        kept.setdefault(job.cell.key, job)
    return list(kept.values())
