"""The entrance of the report room: records are checked and brought to plain JSON values once, here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from collapsar.core.records import to_json
from collapsar.core.types import Record

_KINDS = {"demo": "of a demonstration", "diagnosis": "of a diagnosis", "report": "of a report", "audit": "of an audit",
          "advice": "of advice"}  # fmt: skip
_KEYS = {
    "demo": "data class_names class_counts features lambda_b clusters thresholds environment runs",
    "diagnosis": "headline words source class_names class_counts accuracies Z b separation metrics known forces "
    "at_rest effective fit prediction notes",
    "report": "runs",
}
_DEFAULTS = {"diagnosis": {"reason": ""}}  # what records of earlier versions lack
_RUN_KEYS = "lambda_z seed position predicted measured distance accuracy stationarity seconds epochs history"
_STANDARD_RUN_KEYS = "lambda_w predicted measured distance accuracy stationarity"
_MOST_SIZES = 8


def matrix(values: Any) -> NDArray[np.float64]:
    """The matrix as float64, shape (K, K), with NaN where the record has None.

    Raises:
        ValueError: ``values`` is not a square matrix of numbers.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("`Z` must be a square matrix of numbers (logit, class), got rows that are not") from None
    if array.ndim != 2 or len(set(array.shape)) != 1:
        raise ValueError(f"`Z` must be a square matrix of numbers (logit, class), got shape {array.shape}")
    return array


def defined(value: float | str | None) -> TypeGuard[float]:
    """Whether the number is defined: not None, NaN or infinite, which a record writes as "inf"."""
    return value is not None and not isinstance(value, str) and math.isfinite(value)


def checked(record: Mapping[str, Any], kind: str) -> Record:
    """A record of this kind, brought to plain JSON values.

    Raises:
        ValueError: It is of another kind, or a field is missing.
    """
    got = record.get("kind") if isinstance(record, Mapping) else None
    if got != kind:
        raise ValueError(f'`record` must be the record {_KINDS[kind]} (kind "{kind}"), got kind {got!r}')
    data: Record = {**_DEFAULTS.get(kind, {}), **to_json(record)}
    _require(data, _KEYS.get(kind, ""), "record")
    return data


def checked_demo(record: Mapping[str, Any]) -> Record:
    """The record of a demonstration, brought to plain values, its runs in ascending order of lambda_z.

    Raises:
        ValueError: It is another kind of record, a field is missing, or lengths disagree.
    """
    data = checked(record, "demo")
    num_classes = len(data["class_counts"])
    if len(data["class_names"]) != num_classes:
        raise ValueError(
            f"`record.class_names` must name each of the {num_classes} classes, got {len(data['class_names'])} names"
        )
    data["class_names"] = [str(name) for name in data["class_names"]]
    data["clusters"] = cluster_of_classes(data["clusters"], num_classes)
    if data["features"] not in data["thresholds"]:
        raise ValueError(
            f"`record` must hold the thresholds of its own feature model {data['features']!r}, "
            f"got those of {', '.join(data['thresholds']) or 'none'}"
        )
    if not data["runs"]:
        raise ValueError("`record` must hold at least one run, got none; train before drawing")
    standard = data.get("standard") or {"norm": "", "merge": None, "runs": []}  # records of earlier versions have none
    _require(standard, "norm merge runs", "record.standard")
    for name, runs, keys in (
        ("record.runs", data["runs"], _RUN_KEYS),
        ("record.standard.runs", standard["runs"], _STANDARD_RUN_KEYS),
    ):
        for index, run in enumerate(runs):
            _require(run, keys, f"{name}[{index}]")
            _sides(run, num_classes, f"{name}[{index}]")
    for index, run in enumerate(data["runs"]):
        if not (defined(run["lambda_z"]) and run["lambda_z"] > 0):
            raise ValueError(f"`record.runs[{index}].lambda_z` must be positive, got {run['lambda_z']}")
    data["runs"].sort(key=lambda run: (run["lambda_z"], run["seed"]))
    return data


def cluster_of_classes(clusters: Sequence[Sequence[int]], num_classes: int) -> list[list[int]]:
    """The clusters as a partition of the classes: those in no cluster form one of their own at the end.

    Raises:
        ValueError: A class is named twice or does not exist.
    """
    named = [k for cluster in clusters for k in cluster]
    if len(set(named)) != len(named) or not set(named) <= set(range(num_classes)):
        raise ValueError(
            f"`clusters` must name each of the classes 0 to {num_classes - 1} at most once, got {clusters}"
        )
    rest = [k for k in range(num_classes) if k not in set(named)]
    return [list(cluster) for cluster in [*clusters, rest] if cluster]


def same_counts(counts: Sequence[int]) -> list[list[int]]:
    """Classes of one size together, the largest first; in their own order if nearly all differ."""
    groups: dict[int, list[int]] = {}
    for k in sorted(range(len(counts)), key=lambda k: (-counts[k], k)):
        groups.setdefault(counts[k], []).append(k)
    return list(groups.values()) if len(groups) <= _MOST_SIZES else [[k for group in groups.values() for k in group]]


def _require(part: Any, keys: str, name: str) -> None:
    missing = [key for key in keys.split() if not isinstance(part, Mapping) or key not in part]
    if missing:
        raise ValueError(f"`{name}` must hold {', '.join(keys.split())}; missing: {', '.join(missing)}")


def _sides(run: Record, num_classes: int, name: str) -> None:
    """Check what theory and network say about every class."""
    for side in ("predicted", "measured"):
        _require(run[side], "states Z b", f"{name}.{side}")
        got = (matrix(run[side]["Z"]).shape[0], len(run[side]["states"]), len(run[side]["b"]))
        if got != (num_classes,) * 3:
            raise ValueError(f"`{name}.{side}` must hold Z, states and b of {num_classes} classes, got sizes {got}")
