"""A trained cell beside both feature models: optimum at its penalties, distances, and where a sweep saw collapse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

import collapsar as cs
from collapsar.core.problem import FeatureModel
from collapsar.core.types import Record
from collapsar.diagnose import distance
from collapsar.metrics import cluster_contrasts
from collapsar.theory.limits import column_cosines
from collapsar.training import TrainConfig
from collapsar.training.penalties import with_weight_decay

LOST, LEAST = 0.1, 0.05
MODELS: tuple[FeatureModel, FeatureModel] = ("signed", "nonnegative")


@lru_cache(maxsize=4096)
def optimum(class_counts: tuple[int, ...], lambda_z: float, lambda_b: float, features: FeatureModel) -> cs.Solution:
    """The certified optimum; kept, because many cells share one."""
    return cs.solve(cs.Problem(class_counts, lambda_z, lambda_b, features=features), throw=False)


def summary(record: Mapping[str, Any], num_large: int, *, matrices: bool = False) -> Record:
    """One finished cell in numbers, with its distance to both optima at its effective penalties.

    Effective: what SGD's weight decay adds to the head is counted. "lambda_z_balance" is read from the head alone.

    Args:
        record: Of a cell, as ``run_sweep`` gives it, with a result.
        num_large: Classes 0..num_large - 1 are cluster A, the others B.
        matrices: Whether Z and b are kept, measured and of both models.
    """
    result, config = record["result"], TrainConfig.from_json(json.dumps(record["config"]))
    penalties = with_weight_decay(config.penalties, config.weight_decay)
    Z, b = np.array(result["Z"], dtype=float), np.array(result["b"], dtype=float)
    states = np.array(result["states"])
    balance = (
        penalties.lambda_w * np.sqrt(result["head_norm"] / result["feature_mass"]) if result["feature_mass"] else 0
    )
    out: Record = {
        "lambda_z": penalties.lambda_z,
        "lambda_b": penalties.lambda_b,
        "lambda_z_balance": float(balance),
        "stationarity": result["stationarity"],
        "nc1_uniform": result["nc1_uniform"],
        "states": result["states"],
        "contrasts": contrasts(Z, num_large),
        "minority_lost": int(lost(Z, num_large).sum()),
        "minority_collapsed": bool(lost(Z, num_large).all()),
        "all_vanished": bool((states == "vanished").all()),
        "distance": {},
    }
    if matrices:
        out |= {"Z": result["Z"], "b": result["b"], "optimum": {}}
    for features in MODELS:
        best = optimum(config.class_counts, penalties.lambda_z, penalties.lambda_b, features)
        out["distance"][features] = asdict(distance(best, Z, b))
        if matrices:
            out["optimum"][features] = {"Z": best.Z, "b": best.b, "gap": best.certificate.relative_gap}
    return out


def contrasts(Z: np.ndarray, num_large: int) -> list[float]:
    """Mean diagonal minus mean off-diagonal entry of the blocks of A and of B."""
    return [float(v) for v in cluster_contrasts(Z, [k >= num_large for k in range(len(Z))])]


def own_contrasts(Z: np.ndarray, num_large: int) -> tuple[np.ndarray, np.ndarray]:
    """For each class of A and of B: its own logit minus the mean of its siblings' logits, in its mean prediction.

    Their means are the cluster contrasts, the alpha that is positive exactly while classes are apart (Hong & Ling 2024,
    Thm 3).

    Example:
        >>> own_contrasts(np.diag([4.0, 4.0, 1.0, 0.0]), 2)
        (array([4., 4.]), array([1., 0.]))
    """
    out = []
    for block in (Z[:num_large, :num_large], Z[num_large:, num_large:]):
        own = np.diag(block)
        out.append(own - (block.sum(axis=0) - own) / (len(block) - 1))
    return out[0], out[1]


def lost(Z: np.ndarray, num_large: int) -> np.ndarray:
    """Which classes of B have collapsed: their own logit stands out among B's by less than a tenth of A's contrast.

    The state of a column is no substitute: images of one garment that resemble another keep a mean prediction that is
    not zero after the network has ceased to tell their class from its siblings.

    Returns:
        One truth value for each class of B; all of them where A's contrast is below 0.05 nats.
    """
    own_a, own_b = own_contrasts(Z, num_large)
    scale = float(own_a.mean())
    return own_b < LOST * scale if scale > LEAST else np.ones(len(own_b), dtype=bool)


def cosines(Z: np.ndarray, num_large: int) -> dict[str, float]:
    """Mean cosine of two columns of A, of B, and of one of each."""
    table = column_cosines(np.asarray(Z) - np.mean(Z, axis=0))
    a, b = slice(0, num_large), slice(num_large, None)
    inner = {"A": table[a, a], "B": table[b, b]}
    means = {name: float(block[~np.eye(len(block), dtype=bool)].mean()) for name, block in inner.items()}
    return {**means, "across": float(table[a, b].mean())}


def brackets(values: Sequence[float], happened: Sequence[bool]) -> list[float | None]:
    """Between which values of an axis an event began: [the last before, the first with]; None beyond the axis' ends.

    An event that comes and goes begins where it comes first.

    Example:
        >>> brackets([1.0, 2.0, 3.0], [False, True, True]), brackets([1.0, 2.0], [False, False])
        ([1.0, 2.0], [2.0, None])
    """
    first = next((i for i, now in enumerate(happened) if now), len(values))
    return [values[first - 1] if first else None, values[first] if first < len(values) else None]


def verdict(predicted: float, bracket: Sequence[float | None], values: Sequence[float]) -> str:
    """Whether a prediction lies "inside" the bracket, in the "next" interval of the axis on either side, or "outside".

    Example:
        >>> [verdict(p, [2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) for p in (2.5, 3.5, 0.5)]
        ['inside', 'next', 'outside']
    """
    edges = [-np.inf, *values, np.inf]
    low = -np.inf if bracket[0] is None else bracket[0]
    high = np.inf if bracket[1] is None else bracket[1]
    seen = next(i for i, pair in enumerate(pairwise(edges)) if pair == (low, high))
    # rounding of 1e-9: a prediction on a value of the axis counts below it
    here = next(i for i, pair in enumerate(pairwise(edges)) if pair[0] < predicted * (1 - 1e-9) <= pair[1])
    return {0: "inside", 1: "next"}.get(abs(here - seen), "outside")


def environment(records: Sequence[Mapping[str, Any]]) -> Record:
    """Where a figure's runs were made, and the processor time of them all."""
    found = [r["environment"] for r in records if r["environment"]]
    versions = sorted({json.dumps(e["versions"], sort_keys=True) for e in found})
    return {
        "versions": [json.loads(v) for v in versions],
        "devices": sorted({str(e["device"]) for e in found}),
        "threads": sorted({e["threads"] for e in found}),
        "commits": sorted({str(e["commit"]) for e in found}),
        "runs": len(records),
        "failed": [r["error"] for r in records if r["error"]],
        "cpu_minutes": round(sum(r["cpu_seconds"] or 0 for r in records) / 60, 2),
    }
