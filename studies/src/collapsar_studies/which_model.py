"""Which feature model do networks follow? The same network with and without its last ReLU, beside both optima."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

import collapsar as cs
from collapsar.core.types import Record
from collapsar.theory import fractional_problem
from collapsar.training import ModelSpec, penalties_for
from collapsar_studies.against_theory import MODELS, brackets, environment, optimum, summary, verdict
from collapsar_studies.presets import LAMBDAS, Job, figure_plan, perceptron_run
from collapsar_studies.sweep import Cell

LAMBDA_B = 0.02
LARGE = 5


@dataclass(frozen=True)
class WhichModel:
    """The grid of the experiment.

    Attributes:
        preset: "paper", "cpu" or "tiny".
        dataset: Name of the data set.
        n_a: Images of each of the five large classes.
        minorities: Images of each of the five small classes, one sweep over lambda_z for each.
        num_lambdas: Penalties of each sweep: from 0.7 of the smallest threshold to 1.05 of the largest, equal ratios.
        steps: SGD steps of each run; 0: the runs of Fig. 5 at this preset, each with and without its last ReLU.
        model: The network; its ``feature_relu`` is what varies. Of Fig. 5's runs it is the figure's own.
        seeds: Of the weights and the order of samples.
    """

    preset: str
    dataset: str
    n_a: int
    minorities: tuple[int, ...]
    num_lambdas: int
    steps: int
    model: ModelSpec
    seeds: tuple[int, ...]


WHICH_MODEL: dict[str, WhichModel] = {
    "paper": WhichModel("paper", "fashion-mnist", 500, (100,), 10, 0, ModelSpec("resnet18"), (0,)),
    "cpu": WhichModel("cpu", "fashion-mnist", 200, (100, 40, 10), 8, 3000, ModelSpec("mlp", (128,) * 3), (0, 1, 2)),
    "tiny": WhichModel("tiny", "digits", 40, (8,), 3, 40, ModelSpec("mlp", (32, 32)), (0,)),
}


@lru_cache(maxsize=64)  # asked for each run, in the plan and in the record
def thresholds_of(n_a: int, n_b: int) -> dict[str, dict[str, float]]:
    """When the minority collapses and when everything does, for both models."""
    out = {}
    for features in MODELS:
        t = cs.thresholds(fractional_problem([n_a] * LARGE + [n_b] * LARGE, 1.0, LAMBDA_B, features=features))
        out[features] = {"vanish": float(t.vanish[-1]), "complete": t.complete}
        out[features]["minority"] = float(t.merge[-1]) if features == "signed" else out[features]["vanish"]
    return out


# Of Fig. 5's penalties, those at which the two models differ most come first, so that few runs say most: merged but
# not zero in the signed model only (.0039), all zero in the nonnegative one only (.0069), then the plain cases.
_TELLING = (0.0039, 0.0069, 0.0030, 0.0051, 0.0063, 0.0033, 0.0075, 0.0045, 0.0057, 0.0027)


def lambdas(grid: WhichModel, n_b: int) -> list[float]:
    """The penalties of one sweep, to four digits."""
    if not grid.steps:
        return list(LAMBDAS[5])
    known = [value for model in thresholds_of(grid.n_a, n_b).values() for value in model.values()]
    low, high = 0.7 * min(known), 1.05 * max(known)
    return [float(f"{v:.4g}") for v in np.geomspace(low, high, grid.num_lambdas)]


def which_model_jobs(grid: WhichModel) -> list[Job]:
    """The runs, those of the first seed first."""
    if not grid.steps:
        return _as_in_figure_5(grid)
    jobs = []
    for seed in grid.seeds:
        for n_b in grid.minorities:
            for lambda_z in lambdas(grid, n_b):
                for relu in (True, False):
                    counts = (grid.n_a,) * LARGE + (n_b,) * LARGE
                    model = replace(grid.model, feature_relu=relu)
                    config = perceptron_run(
                        grid.dataset, counts, penalties_for(lambda_z, LAMBDA_B), model, grid.steps, seed
                    )
                    labels = {"seed": seed, "n_b": n_b, "value": lambda_z, "relu": relu}
                    jobs.append(Job(labels, Cell(config)))
    return jobs


def _as_in_figure_5(grid: WhichModel) -> list[Job]:
    """The figure's own runs, which have the ReLU, and the same without it; the most telling penalties first."""
    jobs = []
    for job in figure_plan(5, grid.preset, grid.dataset, seeds=grid.seeds).jobs:
        config = job.cell.config
        for relu in (True, False):
            changed = replace(config, model=replace(config.model, feature_relu=relu))
            jobs.append(Job({**job.labels, "n_b": min(config.class_counts), "relu": relu}, Cell(changed)))
    return sorted(jobs, key=lambda job: (job.labels["seed"], _TELLING.index(job.labels["value"])))


def which_model_record(grid: WhichModel, jobs: Sequence[Job], cells: Mapping[str, Record]) -> Record:
    """Distances to both optima, and observed transitions against both models' thresholds.

    Args:
        grid: The experiment.
        jobs: Its runs.
        cells: Their records by key.
    """
    done = [job for job in jobs if cells[job.cell.key]["result"] is not None]
    runs = [{**job.labels, **summary(cells[job.cell.key], LARGE)} for job in done]
    transitions = []
    for n_b in grid.minorities:
        predicted = thresholds_of(grid.n_a, n_b)
        for relu in (True, False):
            for seed in grid.seeds:
                mine = sorted(
                    (r for r in runs if (r["n_b"], r["relu"], r["seed"]) == (n_b, relu, seed)), key=lambda r: r["value"]
                )
                if not mine:
                    continue
                axis = [r["value"] for r in mine]
                seen = {
                    "minority": brackets(axis, [r["minority_collapsed"] for r in mine]),
                    "complete": brackets(axis, [r["all_vanished"] for r in mine]),
                }
                verdicts = {m: {e: verdict(predicted[m][e], seen[e], axis) for e in seen} for m in MODELS}
                transitions.append({"n_b": n_b, "relu": relu, "seed": seed, **seen, "verdict": verdicts})
    return {
        "figure": "which-model",
        "title": "which feature model networks follow, with and without their last ReLU",
        "preset": grid.preset,
        "data": grid.dataset,
        "n_a": grid.n_a,
        "minorities": list(grid.minorities),
        "lambda_b": LAMBDA_B,
        "seeds": list(grid.seeds),
        "predicted": {str(n_b): thresholds_of(grid.n_a, n_b) for n_b in grid.minorities},
        "runs": runs,
        "transitions": transitions,
        "between": [entry for job in done for entry in _between(grid, job, cells[job.cell.key])],
        "table": [row for n_b in grid.minorities for relu in (True, False) for row in _rows(n_b, relu, runs)],
        "environment": environment([cells[job.cell.key] for job in jobs]),
    }


def _between(grid: WhichModel, job: Job, cell: Record) -> list[Record]:
    """How long B's columns are where the signed model has them merged and not zero: between its two thresholds.

    Returns:
        One entry, or none at other penalties: the labels of the run, "norm", the median of ||z_k|| over B relative to
        the largest column, and "signed", the same of the signed optimum. The nonnegative model has 0 there.
    """
    config = job.cell.config
    signed = thresholds_of(grid.n_a, job.labels["n_b"])["signed"]
    if not signed["minority"] < job.labels["value"] < signed["vanish"]:
        return []
    best = optimum(config.class_counts, config.penalties.lambda_z, config.penalties.lambda_b, "signed")
    norms = [np.linalg.norm(np.array(Z, dtype=float), axis=0) for Z in (cell["result"]["Z"], best.Z)]
    network, optimal = (float(np.median(n[LARGE:]) / n.max()) for n in norms)
    return [{**job.labels, "norm": network, "signed": optimal}]


def _rows(n_b: int, relu: bool, runs: Sequence[Record]) -> list[Record]:
    """Median and range of the distances where the compared optimum is not zero."""
    mine = [r for r in runs if r["n_b"] == n_b and r["relu"] == relu]
    row: Record = {"n_b": n_b, "relu": relu, "runs": len(mine)}
    for model in MODELS:
        for name in ("Z", "b"):
            found = [r["distance"][model][name] for r in mine if not math.isnan(r["distance"][model][name])]
            row[f"{model}_{name}"] = [float(np.median(found)), float(min(found)), float(max(found))] if found else None
    closer = [r["distance"]["nonnegative"]["Z"] < r["distance"]["signed"]["Z"] for r in mine if _both(r)]
    row["nearer_to_nonnegative"] = [int(sum(closer)), len(closer)]
    row["stationarity"] = float(np.median([r["stationarity"] for r in mine])) if mine else None
    return [json.loads(json.dumps(row))]


def _both(run: Record) -> bool:
    return not any(math.isnan(run["distance"][m]["Z"]) for m in MODELS)
