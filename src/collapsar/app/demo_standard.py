"""The demonstration's second half: networks with standard training, below and above its merge threshold.

A LayerNorm before the head, weight decay on the head's weight alone, no feature penalty (docs/theory/normalized.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import collapsar as cs
from collapsar.core.record_types import AccuracyRecord, BesideRecord, Number, StandardRecord, StandardRunRecord
from collapsar.diagnose.fit import distance
from collapsar.metrics import CollapseReport
from collapsar.metrics import collapse_report as report_of
from collapsar.metrics.running import RunningMoments
from collapsar.training import ImageData, TrainResult, standard_config, train
from collapsar.training.loop import Progress
from collapsar.training.measure import Evaluation, features_and_logits
from collapsar.training.models import FeatureNetwork

STANDARD_POSITIONS = {"below": 0.5, "above": 1.4}
"""Penalties of the head's weight, as factors of the merge threshold."""


def standard_record(data: ImageData, out: Path, seed: int, note: Callable[[str], Progress | None]) -> StandardRecord:
    """Two LayerNorm networks beside their optimum, as JSON-able values.

    Args:
        data: A data set with a recipe, cut to the recipe's counts.
        out: Folder for the runs; each resumes where it was interrupted.
        seed: Of weights and order.
        note: Takes the description of a run and returns what is called after each epoch (see ``training.train``).

    Returns:
        ``merge``, the ``lambda_w`` above which the smallest classes merge in theory, and the runs in ascending order.
    """
    spec = standard_config(data.name, 1.0).model
    width = spec.widths[-1]
    length = spec.feature_length(width)
    assert length is not None  # the recipe normalises
    problem = cs.Problem.from_normalized(data.class_counts, lambda_w=1.0, norm=length, lambda_b=0.0)
    merge = float(cs.thresholds(problem).merge[int(np.argmin(data.class_counts))])
    runs: list[StandardRunRecord] = []
    for position, factor in STANDARD_POSITIONS.items():
        here = problem.replace(lambda_w=factor * merge)
        config = standard_config(data.name, factor * merge, seed)
        config = replace(config, eval_every=config.epochs)
        told = note(f"LayerNorm, {position} its threshold")
        result = train(config, data, out / "layernorm" / f"{position}-seed{seed}", progress=told)
        report, solution = collapse_report(result.model, data), cs.solve(here, throw=False)
        run = beside(result, report, solution)
        run["predicted"]["cosines"] = _cosines(solution.feature_gram(), smallest(problem))
        run["measured"]["cosines"] = _cosines(report.class_means @ report.class_means.T, smallest(problem))
        runs.append({"position": position, "lambda_w": factor * merge, "seed": seed, **run})
    return {"norm": spec.feature_norm, "width": width, "lambda_b": 0.0, "merge": merge, "runs": runs}


def beside(result: TrainResult, report: CollapseReport, solution: cs.Solution) -> BesideRecord:
    """A trained network beside an optimum, in the form for tables and pages: "predicted", "measured" and the rest."""
    assert report.Z is not None  # a head was given
    assert report.b is not None
    away, last = distance(solution, report.Z, report.b), result.records[-1]
    return {
        "predicted": {
            "states": list(solution.class_states),
            "Z": solution.Z.tolist(),
            "b": solution.b.tolist(),
            "gap": solution.certificate.gap,
            "status": solution.status.name.lower(),
        },
        "measured": {"states": list(report.separation().states), "Z": report.Z.tolist(), "b": report.b.tolist()},
        "distance": {"Z": away.Z, "Z_max": away.Z_max, "b": away.b},
        "accuracy": accuracies(last, smallest(solution.problem)),
        "stationarity": last["stationarity"],
        "seconds": result.seconds,
        "epochs": result.epoch,
    }


def smallest(problem: cs.Problem) -> np.ndarray:
    """Which classes have the fewest samples, shape (K,)."""
    return problem.class_counts == problem.class_counts.min()


def _cosines(gram: np.ndarray, small: np.ndarray) -> dict[str, Number]:
    """Mean cosine of two class means: of two small classes, of two large ones, of one of each."""
    lengths = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(lengths, lengths)
    apart = ~np.eye(len(gram), dtype=bool)
    pairs = {"minority": (small, small), "majority": (~small, ~small), "across": (small, ~small)}
    return {name: float(cosines[np.outer(*rows) & apart].mean()) for name, rows in pairs.items()}


def accuracies(record: Evaluation, small: np.ndarray) -> AccuracyRecord:
    """Shares of images recognised, from the record of an evaluation; ``small`` marks the minority, shape (K,)."""
    on_train, on_test = (np.array(record[key]) for key in ("train_class_accuracies", "test_class_accuracies"))
    large = small if small.all() else ~small  # with balanced data every class is both
    return {
        "train": record["train_accuracy"],
        "train_minority": float(on_train[small].mean()),
        "train_majority": float(on_train[large].mean()),
        "test_minority": float(on_test[small].mean()),
        "test_majority": float(on_test[large].mean()),
        "test_balanced": float(on_test.mean()),
    }


def collapse_report(model: FeatureNetwork, data: ImageData) -> CollapseReport:
    """Every collapse metric of the training set in one pass, features in ``eval()`` mode."""
    metric = RunningMoments(model.head.out_features, model.num_features, model.head.weight.device)
    for features, _, labels in features_and_logits(model, data, "train"):
        metric.update(features, labels)
    return report_of(metric.moments, model.head.weight, model.head.bias)
