"""Ordinary training, weight decay only: what predicts when the small classes are lost?

Perceptrons without batch normalisation and with one to four decayed linear layers above it, several decays and
imbalances, started afresh ("cold") and from the network at the next smaller ("up") or next larger decay ("down").
Measured switch and mean predictions against four predictions: the shallow model at the penalties its head reveals, the
global optimum of the deep model, the same with the decay of the layers below the normalisation, and the spinodal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import collapsar as cs
from collapsar import Penalties
from collapsar.core.types import Record
from collapsar.theory import fractional_problem
from collapsar.training import ModelSpec, TrainConfig, imbalanced, load_data
from collapsar_studies.against_theory import LEAST, contrasts, environment, lost, optimum
from collapsar_studies.deep_body import Body
from collapsar_studies.deep_descent import DescentProblem, descent_switch
from collapsar_studies.deep_two_cluster import DeepPair, DeepPoint, Switches, decay_switches, deep_optimum
from collapsar_studies.effective_scores import (
    BRANCHES,
    PREDICTORS,
    distances_of,
    middle,
    predictors_of,
    statement_of,
)
from collapsar_studies.image_reach import image_reach
from collapsar_studies.presets import Job
from collapsar_studies.sweep import Cell

Reaches = Mapping[int, tuple[float, float]]
"""By the number of images of a small class: ``Body.reach`` of a class of A and one of B."""

K_A = K_B = 5


@dataclass(frozen=True)
class RateSweep:
    """One learning rate, which a static theory does not know, with the networks, imbalances and seeds swept at it.

    Attributes:
        learning_rate: Of the first of three stages; the others use a tenth and a hundredth of it.
        steps: SGD steps of a run.
        minorities: Images of each of the five small classes.
        layers: Decayed linear layers above the batch normalisation, the head included; 0: no normalisation.
        branches: Of ``BRANCHES``.
        seeds: Of the weights and the order of samples.
    """

    learning_rate: float
    steps: int
    minorities: tuple[int, ...]
    layers: tuple[int, ...]
    branches: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Effective:
    """The grid of the experiment.

    Attributes:
        preset: "paper", "cpu" or "tiny".
        dataset: Name of the data set.
        n_a: Images of each of the five large classes.
        minorities: Images of each of the five small classes, over all sweeps.
        factors: Decays, in units of the deep model's global switch.
        early: The same for one layer above the normalisation, where networks switch long before that.
        bare: Decays without normalisation, where there is no such prediction: {images of a small class: decays}.
        width: Of each of the hidden layers.
        hidden: How many.
        batch_size: Images in each step.
        sweeps: What is swept at which learning rate.
        descents: Random starts of the descents on the deep model's factors; 0: none are made.
    """

    preset: str
    dataset: str
    n_a: int
    minorities: tuple[int, ...]
    factors: tuple[float, ...]
    early: tuple[float, ...]
    bare: Mapping[int, tuple[float, ...]]
    width: int
    hidden: int
    batch_size: int
    sweeps: tuple[RateSweep, ...]
    descents: int

    @property
    def combinations(self) -> list[tuple[float, int, int]]:
        """(learning rate, images of a small class, layers) of every switch that is measured."""
        return [(s.learning_rate, n_b, layers) for s in self.sweeps for n_b in s.minorities for layers in s.layers]


_FACTORS = (0.3, 0.5, 0.7, 0.85, 1.0, 1.3, 1.9)
_EARLY = (0.15, 0.25, 0.35, 0.42, 0.5, 0.7, 1.0)
_BARE = {20: (0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.14), 5: (0.004, 0.008, 0.014, 0.02, 0.03, 0.045, 0.07)}
_ALL = (0, 1, 2, 3, 4)
EFFECTIVE: dict[str, Effective] = {
    "paper": Effective(
        *("paper", "fashion-mnist", 1000, (200, 50), _FACTORS, _EARLY, {200: _BARE[20], 50: _BARE[5]}, 512, 4, 1000),
        tuple(RateSweep(lr, steps, (200, 50), _ALL, BRANCHES, _ALL) for lr, steps in ((0.1, 20000), (0.01, 100000))),
        3,
    ),
    "cpu": Effective(
        *("cpu", "fashion-mnist", 100, (20, 5), _FACTORS, _EARLY, _BARE, 96, 4, 200),
        (
            RateSweep(0.1, 1500, (20,), _ALL, BRANCHES, (0, 1, 2)),
            RateSweep(0.1, 1500, (5,), _ALL, BRANCHES, (0,)),
            RateSweep(0.01, 5000, (20,), (1, 2, 3), ("cold", "up"), (0,)),
        ),
        3,
    ),
    "tiny": Effective(
        *("tiny", "digits", 20, (4,), (0.3, 1.9), (0.15, 1.0), {4: (0.01, 0.1)}, 16, 2, 60),
        (RateSweep(0.1, 12, (4,), (0, 2), BRANCHES, (0,)),),
        0,
    ),
}


def decays(grid: Effective, layers: int, n_b: int) -> tuple[float, ...]:
    """The decays of one network and imbalance, ascending, to four digits."""
    if layers == 0:
        return grid.bare[n_b]
    switch = switches(grid.n_a, n_b, layers).deep
    return tuple(float(f"{factor * switch:.4g}") for factor in (grid.factors if layers > 1 else grid.early))


@lru_cache(maxsize=64)
def switches(n_a: int, n_b: int, layers: int, bodies: tuple[Body, Body] | None = None) -> Switches:
    """The deep model's predictions for a batch normalisation below ``layers`` decayed layers."""
    return decay_switches(DeepPair(K_A, K_B, n_a, n_b, layers, 1.0, bodies=bodies), 2e-4, 2.0)


def reaches(grid: Effective, data_dir: Path | None = None) -> Reaches:
    """Geometric mean of ``image_reach`` over each cluster, from the training images of each imbalance."""
    whole, out = load_data(grid.dataset, data_dir), {}
    for n_b in grid.minorities:
        data = imbalanced(whole, (grid.n_a,) * K_A + (n_b,) * K_B)
        each = np.log(image_reach(data.normalised(data.train_images).numpy(), data.train_labels.numpy()))
        out[n_b] = (math.exp(each[:K_A].mean()), math.exp(each[K_A:].mean()))
    return out


def _bodies(grid: Effective, n_b: int, layers: int, reach: Reaches) -> tuple[Body, Body] | None:
    """The layers below the batch normalisation, the normalised one included; None without one."""
    if not layers:
        return None
    below = grid.hidden + 1 - layers
    return Body(below, reach[n_b][0]), Body(below, reach[n_b][1])


def effective_chains(grid: Effective) -> list[tuple[Job, ...]]:
    """The runs, one chain for each seed, learning rate, imbalance and network: cold ones, then up, then down."""
    seeds = sorted({seed for sweep in grid.sweeps for seed in sweep.seeds})
    return [
        _chain(grid, sweep, {"rate": sweep.learning_rate, "n_b": n_b, "layers": layers, "seed": seed})
        for seed in seeds
        for sweep in grid.sweeps
        if seed in sweep.seeds
        for n_b in sweep.minorities
        for layers in sweep.layers
    ]


def _chain(grid: Effective, sweep: RateSweep, labels: Mapping[str, Any]) -> tuple[Job, ...]:
    axis = decays(grid, labels["layers"], labels["n_b"])
    counts = (grid.n_a,) * K_A + (labels["n_b"],) * K_B
    epochs = max(2, round(sweep.steps / math.ceil(sum(counts) / grid.batch_size)))

    def config(decay: float) -> TrainConfig:
        return TrainConfig(
            dataset=grid.dataset,
            class_counts=counts,
            penalties=Penalties(0.0, 0.0, 0.0),
            epochs=epochs,
            model=ModelSpec("mlp", widths=(grid.width,) * grid.hidden, layers_above_norm=labels["layers"]),
            batch_size=grid.batch_size,
            learning_rate=sweep.learning_rate,
            learning_rate_steps=((0.0, 1.0), (0.6, 0.1), (0.85, 0.01)),
            weight_decay=decay,
            warm_fraction=0.0,
            clip_norm=1.0,
            eval_every=epochs,
            seed=labels["seed"],
            device="cpu",
        )

    cold = {decay: Cell(config(decay), detail="layers") for decay in axis}
    places: dict[str, dict[float, Cell]] = {"cold": cold}
    for branch, order in (("up", axis), ("down", axis[::-1])):
        if branch not in sweep.branches:
            continue
        before = cold[order[0]]
        places[branch] = {}
        for decay in order[1:]:
            before = places[branch][decay] = Cell(config(decay), start=before, detail="layers")
    return tuple(
        Job({**labels, "decay": decay, "branch": branch}, cell)
        for branch, cells in places.items()
        for decay, cell in cells.items()
    )


def effective_record(
    grid: Effective, chains: Sequence[Sequence[Job]], cells: Mapping[str, Record], reach: Reaches
) -> Record:
    """Every run beside the predictions, the switches, and how well each predictor does.

    Args:
        grid: The experiment.
        chains: Its runs.
        cells: Their records by key.
        reach: As ``reaches`` measures it.
    """
    runs = [
        {**job.labels, **_run(grid, job, cells[job.cell.key]["result"], reach)}
        for chain in chains
        for job in chain
        if cells[job.cell.key]["result"] is not None
    ]
    table = [
        _switch_row(grid, place, [r for r in runs if (r["rate"], r["n_b"], r["layers"]) == place], reach)
        for place in grid.combinations
    ]
    return {
        "figure": "effective",
        "title": "ordinary training: when weight decay loses the small classes",
        "preset": grid.preset,
        "data": grid.dataset,
        "n_a": grid.n_a,
        "minorities": list(grid.minorities),
        "runs": runs,
        "table": table,
        "reach": {str(n_b): list(pair) for n_b, pair in reach.items()},
        "predictors": (predictors := predictors_of(table)),
        "statement": statement_of(predictors),
        "distances": distances_of(runs),
        "environment": environment([cells[job.cell.key] for chain in chains for job in chain]),
    }


# --- one run


def _run(grid: Effective, job: Job, result: Record, reach: Reaches) -> Record:
    """Order parameter, what each predictor says of it, and the distance of Z to each."""
    decay, layers, n_b = (job.labels[name] for name in ("decay", "layers", "n_b"))
    Z = np.array(result["Z"], dtype=float)
    scale, of_b = contrasts(Z, K_A)
    num_lost = int(lost(Z, K_A).sum())
    balance = decay * math.sqrt(result["head_norm"] / result["feature_mass"]) if result["feature_mass"] else math.nan
    lambda_h, depth = _feature_penalty(result["layers"], decay)
    N = K_A * grid.n_a + K_B * n_b
    pair = DeepPair(K_A, K_B, grid.n_a, n_b, depth, decay, None if layers else lambda_h)
    bodies = _bodies(grid, n_b, layers, reach)
    whole = pair if bodies is None else replace(pair, bodies=bodies)
    vanish = _shallow_threshold(grid.n_a, n_b, decay)
    says = {
        "shallow": bool(balance >= vanish),
        "deep": _foresees_loss(pair),
        **({} if bodies is None else {"body": _foresees_loss(whole)}),
        "spinodal": _branch(whole, True) is None,
    }
    apart = num_lost * 2 <= K_B
    observed = {name: _branch(p, apart) or _branch(p, False) for name, p in (("deep", pair), ("body", whole))}
    shallow = optimum((grid.n_a,) * K_A + (n_b,) * K_B, float(balance), decay, "nonnegative") if balance > 0 else None
    return {
        "contrast_a": scale,
        "ratio": of_b / scale if scale > LEAST else None,
        "lost": num_lost,
        "switched": num_lost * 2 > K_B,
        "test_minority": float(np.mean(result["test_class_accuracies"][K_A:])),
        "stationarity": result["stationarity"],
        "lambda_z_balance": balance,
        "lambda_z_shallow_threshold": vanish,
        "lambda_h_over_decay_per_sample": lambda_h * N / decay,
        "factors": depth + 1,
        "body_share": _body_share(result["layers"], depth),
        "says_lost": says,
        "distance": {
            "shallow": None if shallow is None else _relative(Z, shallow.Z),
            **{name: None if point is None else _relative(Z, point.Z) for name, point in observed.items()},
        },
    }


def _foresees_loss(pair: DeepPair) -> bool:
    """Whether the optimum without the small classes is the better one, or the only one."""
    alive, dead = _branch(pair, True), _branch(pair, False)
    return alive is None or (dead is not None and dead.value <= alive.value)


def _feature_penalty(layers: Sequence[Record], decay: float) -> tuple[float, int]:
    """Feature penalty read from the balance of norms, and the number of decayed layers above those features.

    The features are what the batch normalisation emits, or the first hidden layer where there is none: at rest
    wd ||W||^2 = lambda_H Σ ||h||^2 for the layer W above them.
    """
    place = next((i for i, layer in enumerate(layers) if layer["normalised"]), 0)
    above = layers[place + 1]
    penalty = decay * above["weight"] / above["inputs"] if above["inputs"] else math.nan
    return penalty, len(layers) - place - 1


def _body_share(layers: Sequence[Record], depth: int) -> float | None:
    """What part of the squared weights that decay pulls at lies below the features, which the deep model has for free.

    A layer below a batch normalisation costs nothing by scale, and would shrink for ever; it comes to rest where the
    normalisation's eps is felt, and from there on it is paid for.
    """
    sizes = [layer["weight"] + layer["bias"] + layer.get("scale", 0.0) + layer.get("shift", 0.0) for layer in layers]
    below = sum(layer["weight"] + layer["bias"] for layer in layers[: len(layers) - depth])
    return below / sum(sizes) if sum(sizes) > 0 else None


@lru_cache(maxsize=4096)
def _branch(pair: DeepPair, minority_alive: bool) -> DeepPoint | None:
    if pair.lambda_h is not None and not 0 < pair.lambda_h < math.inf:
        return None
    return deep_optimum(pair, minority_alive=minority_alive)


@lru_cache(maxsize=256)
def _shallow_threshold(n_a: int, n_b: int, decay: float) -> float:
    problem = fractional_problem([n_a] * K_A + [n_b] * K_B, 1.0, decay, features="nonnegative")
    return float(cs.thresholds(problem).vanish[-1])


@lru_cache(maxsize=16)
def _descent(n_a: int, n_b: int, layers: int, starts: int, column: float) -> float:
    """The switch of the lowest descents: nowhere near below that of the column form, which is one of their points."""
    return descent_switch(DescentProblem(K_A, K_B, n_a, n_b, layers, 1.0), 0.7 * column, 3 * column, starts)


def _relative(Z: np.ndarray, target: np.ndarray) -> float | None:
    scale = float(np.linalg.norm(target))
    return float(np.linalg.norm(Z - target)) / scale if scale > 1e-9 else None


# --- switches


def _switch_row(grid: Effective, place: tuple[float, int, int], runs: Sequence[Record], reach: Reaches) -> Record:
    """Between which decays each branch switched, for each seed; and the predictions as decays."""
    rate, n_b, layers = place
    axis = decays(grid, layers, n_b)
    row: Record = {"rate": rate, "n_b": n_b, "layers": layers, "decays": list(axis), "measured": {}}
    seeds = sorted({r["seed"] for r in runs})
    for branch in BRANCHES:
        row["measured"][branch] = [
            _bracket({r["decay"]: r["switched"] for r in runs if r["seed"] == seed and r["branch"] in ends}, axis)
            for seed in seeds
            if (ends := _with_ends(branch)) and any(r["seed"] == seed and r["branch"] == branch for r in runs)
        ]
    cold = [r for r in runs if r["branch"] == "cold"]
    says = {
        name: _bracket({wd: _majority([r["says_lost"][name] for r in cold if r["decay"] == wd]) for wd in axis}, axis)
        for name in PREDICTORS
        if name in runs[0]["says_lost"]
    }
    row["predicted"] = {name: middle(says[name]) if name in says else None for name in PREDICTORS}
    if layers:
        whole = switches(grid.n_a, n_b, layers, _bodies(grid, n_b, layers, reach))
        free = switches(grid.n_a, n_b, layers)
        row["predicted"] |= {"deep": free.deep, "body": whole.deep, "spinodal": whole.spinodal}
        if grid.descents:
            row["predicted"]["descent"] = _descent(grid.n_a, n_b, layers, grid.descents, free.deep)
    row["predicted_brackets"] = says
    return row


def _with_ends(branch: str) -> tuple[str, ...]:
    """A warm branch begins with a cold run, where no other run of its own lies."""
    return ("cold",) if branch == "cold" else ("cold", branch)


def _bracket(switched: Mapping[float, bool], axis: Sequence[float]) -> list[float | None]:
    """The last decay that is not switched below all that are, and the first that is switched; None beyond the ends."""
    there = [wd for wd in axis if wd in switched]
    first = next((i for i, wd in enumerate(there) if switched[wd]), len(there))
    return [there[first - 1] if first else None, there[first] if first < len(there) else None]


def _majority(votes: Sequence[bool]) -> bool:
    return 2 * sum(votes) > len(votes)
