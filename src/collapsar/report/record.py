"""The entrance of the report room: records are checked and brought to plain JSON values once, here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast, get_args

import numpy as np
from numpy.typing import NDArray

from collapsar.core import record_types as rt
from collapsar.core.record_types import DemoRecord, R, is_a
from collapsar.core.records import to_json

_KINDS = {"demo": "of a demonstration", "diagnosis": "of a diagnosis", "report": "of a report", "audit": "of an audit",
          "advice": "of advice"}  # fmt: skip
_DEFAULTS = {"diagnosis": {"reason": ""}}  # what records of earlier versions lack
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


def checked(record: Mapping[str, Any], kind: type[R]) -> R:
    """A record of this kind, brought to plain JSON values.

    Raises:
        ValueError: It is of another kind, or a field is missing.
    """
    (own,) = get_args(kind.__annotations__["kind"])
    if not is_a(record, kind):
        got = record.get("kind") if isinstance(record, Mapping) else None
        raise ValueError(f'`record` must be the record {_KINDS[own]} (kind "{own}"), got kind {got!r}')
    return whole({**_DEFAULTS.get(own, {}), **to_json(record)}, kind, "record")


def checked_demo(record: Mapping[str, Any]) -> DemoRecord:
    """The record of a demonstration, brought to plain values, its runs in ascending order of lambda_z.

    Raises:
        ValueError: It is another kind of record, a field is missing, or lengths disagree.
    """
    data = checked(record, DemoRecord)
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
    for index, run in enumerate(data["runs"]):
        _sides(whole(run, rt.DemoRunRecord, f"record.runs[{index}]"), num_classes, f"record.runs[{index}]")
    if standard := data.get("standard"):
        for index, run in enumerate(whole(standard, rt.StandardRecord, "record.standard")["runs"]):
            name = f"record.standard.runs[{index}]"
            _sides(whole(run, rt.StandardRunRecord, name), num_classes, name)
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


def whole(part: Any, kind: type[R], name: str) -> R:
    """A part of a record, which must have all that its kind requires.

    Raises:
        ValueError: A field is missing.
    """
    form: Any = kind
    keys = [key for key in form.__annotations__ if key in form.__required_keys__]
    held = part if isinstance(part, Mapping) else ()
    missing = [key for key in keys if key not in held]
    if missing:
        raise ValueError(f"`{name}` must hold {', '.join(keys)}; missing: {', '.join(missing)}")
    return cast("R", part)


def _sides(run: rt.BesideRecord, num_classes: int, name: str) -> None:
    """Check what theory and network say about every class."""
    for side in ("predicted", "measured"):
        found = whole(run[side], rt.SideRecord, f"{name}.{side}")
        got = (matrix(found["Z"]).shape[0], len(found["states"]), len(found["b"]))
        if got != (num_classes,) * 3:
            raise ValueError(f"`{name}.{side}` must hold Z, states and b of {num_classes} classes, got sizes {got}")
