"""The main job, end to end: train on real imbalanced data, measure the collapse, solve the theory, compare.

Three penalties: below, between and above the thresholds of the nonnegative model, which networks with a ReLU before
the head follow. Then two networks with standard training (``demo_standard``).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import collapsar as cs
from collapsar.app.demo_standard import accuracies, beside, collapse_report, smallest, standard_record
from collapsar.app.network_records import advice_record, geometry_record
from collapsar.core.record_types import DemoRecord, DemoRunRecord, TrainedRecord
from collapsar.diagnose.fit import distance
from collapsar.diagnose.readers import diagnose_run
from collapsar.training import ImageData, TrainResult, demo_config, imbalanced, load_data, train
from collapsar.training.loop import Progress as Tick
from collapsar.training.recipes import DEMO_RECIPES

Progress = Callable[[str, int, int], None]
"""Called with (a description of the run, finished epochs, all epochs) while a network trains."""

POSITIONS = ("below", "between", "above")

COLLAPSE_NUMBERS = ("nc1_uniform", "nc1_weighted", "cdnv", "cdnv_max", "nc2_etf", "nc3_self_duality")
"""The metrics of neural collapse that are measured at every evaluation: those that the pages draw over the epochs."""

# The outer penalties, as factors of the thresholds next to them: far enough to show the states clearly, close enough
# for the pictures to be comparable.
_BELOW, _ABOVE = 0.7, 1.25


def demo_penalties(problem: cs.Problem) -> dict[str, float]:
    """lambda_z below, between and above the vanish threshold of the smallest class and complete collapse.

    Args:
        problem: two clusters, ``features="nonnegative"``.

    Raises:
        ValueError: the smallest class does not vanish before all classes do.
    """
    t = cs.thresholds(problem)
    vanish = float(t.vanish[int(np.argmin(problem.class_counts))])
    if not vanish < t.complete:
        raise ValueError(f"`problem` has no state between: its minority vanishes at {vanish:g}, all at {t.complete:g}")
    return {"below": _BELOW * vanish, "between": float(np.sqrt(vanish * t.complete)), "above": _ABOVE * t.complete}


def demo(
    data_name: str = "digits",
    *,
    out: Path,
    data_dir: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoRecord:
    """Train five networks, compare each with its exact optimum, and return one record of JSON-able values.

    Args:
        data_name: a key of ``DEMO_RECIPES``.
        out: folder for the runs; each resumes where it was interrupted.
        data_dir: the folder of the data set, if not in a standard place.
        seed: of weights and order.
        progress: see ``Progress``.

    Raises:
        ValueError: the data cannot be found or are too few, or ``out`` cannot be written.
    """
    if data_name not in DEMO_RECIPES:
        raise ValueError(f"`data_name` must be one of {', '.join(sorted(DEMO_RECIPES))}, got {data_name!r}")
    recipe = DEMO_RECIPES[data_name]
    counts = np.array(recipe.class_counts)
    data = imbalanced(load_data(data_name, data_dir), recipe.class_counts)
    signed = cs.Problem(counts, recipe.penalties.lambda_z, recipe.penalties.lambda_b)
    problem = signed.replace(features="nonnegative")

    def note(words: str) -> Tick:
        return lambda epoch, epochs, _: None if progress is None else progress(words, epoch, epochs)

    runs: list[DemoRunRecord] = []
    result = None
    for position, lambda_z in demo_penalties(problem).items():
        config = replace(demo_config(data_name, lambda_z, seed), eval_every=max(1, recipe.epochs // 20))
        told = note(f"penalty {position} the thresholds")
        result = train(config, data, out / f"{position}-seed{seed}", progress=told, measure=collapse_numbers)
        run = run_record(result, data)
        assert "diagnosis" in run  # in records of now
        runs.append({"position": position, **run, "advice": advice_record(run["diagnosis"])})
    assert result is not None  # there are three positions
    t, ts = cs.thresholds(problem), cs.thresholds(signed)
    small = counts == counts.min()
    return {
        "kind": "demo",
        "data": data_name,
        "class_names": list(data.class_names),
        "class_counts": counts.tolist(),
        "features": "nonnegative",
        "lambda_b": signed.lambda_b,
        "clusters": [np.flatnonzero(~small).tolist(), np.flatnonzero(small).tolist()],
        "thresholds": {
            "nonnegative": {"vanish": t.vanish.tolist(), "complete": t.complete},
            "signed": {"merge": ts.merge.tolist(), "vanish": ts.vanish.tolist(), "complete": ts.complete},
        },
        "environment": _environment(result),
        "runs": runs,
        "standard": standard_record(data, out, seed, note),
    }


def run_record(result: TrainResult, data: ImageData) -> TrainedRecord:
    """One trained network beside both optima at its penalties."""
    config = result.config
    penalties = config.penalties
    problem = cs.Problem(config.class_counts, penalties.lambda_z, penalties.lambda_b, features="nonnegative")
    report, solution = collapse_report(result.model, data), cs.solve(problem, throw=False)
    assert report.Z is not None  # a head was given
    assert report.b is not None
    other = distance(cs.solve(problem.replace(features="signed")), report.Z, report.b)
    separation, small, c = report.separation(), smallest(problem), solution.certificate
    found = diagnose_run(result, data, f"{config.dataset}, lambda_z {penalties.lambda_z:.4g}")
    run = beside(result, report, solution)
    run["predicted"].update({"primal": c.primal, "dual": c.dual, "relative_gap": c.relative_gap})
    run["measured"]["nc1_uniform"], run["measured"]["nc1_weighted"] = report.nc1_uniform, report.nc1_weighted
    run["measured"]["relative_norm"] = separation.relative_norms.tolist()
    run["measured"]["minority_separation"] = float(np.min(separation.nearest_separation[small]))
    run["distance"].update({"Z_signed": other.Z, "b_signed": other.b})
    return {
        "lambda_z": penalties.lambda_z,
        "seed": config.seed,
        **run,
        "diagnosis": found.to_dict(),
        "geometry": geometry_record(found),
        "history": [
            {
                **{k: r.get(k) for k in ("epoch", *COLLAPSE_NUMBERS, "train_loss", "train_accuracy")},
                "test_minority": accuracies(r, small)["test_minority"],
            }
            for r in result.records
        ],
    }


def collapse_numbers(model: Any, data: ImageData) -> dict[str, float]:
    """``COLLAPSE_NUMBERS`` of the training set, for ``training.train(..., measure=)``."""
    values = collapse_report(model, data).scalars()
    return {name: values[name] for name in COLLAPSE_NUMBERS}


def _environment(result: TrainResult) -> dict[str, Any]:
    return {
        "collapsar": cs.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": sys.platform,
        "device": str(next(result.model.parameters()).device),
        "commit": result.header.get("commit"),
    }
