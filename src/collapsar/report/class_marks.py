"""Marks for what a state does not say: classes that are lost (no sample recognised) and dead ones.

Example:
    >>> record = {"class_names": ["ant", "bee", "cat"], "dead": [2], "accuracies": [1.0, 0.0, 0.5],
    ...           "separation": {"states": ["separated"] * 3}, "standings": {"carried": [], "lost": [
    ...               {"index": 1, "reason": "outvoted", "rival": 0, "nats": 1.5}]}}
    >>> marked_names(record)
    ['ant', '▽ bee', '† cat']
    >>> lost_and_dead(record)[0]
    'Lost, with none of their samples recognised: bee (outvoted by ant by 1.5 nats).'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from collapsar.core.record_types import DiagnosisRecord, LostRecord, PredictionRecord
from collapsar.core.sentences import listed
from collapsar.core.states import ClassState
from collapsar.report.words import number_text

MARKS: Mapping[str, str] = {"lost": "▽", "dead": "†"}

# How many classes of a larger head are drawn and listed, and the share of classes in trouble among them.
_MOST_CLASSES, _TOLD = 400, 0.75
_MOST_NAMES = 8
# The parts of a diagnosis that pictures read, and those that are a number or a word for each class.
_DRAWN = ("class_names", "class_counts", "accuracies", "separation", "effective", "prediction")
_BY_CLASS = {"class_names", "class_counts", "accuracies", "states", "relative_norms", "nearest", "nearest_separation"}
_BY_CLASS |= {"by_class", "tells", "seen", "lengths", "merge", "vanish", "edge", "b"}

StatesRecord = TypedDict("StatesRecord", {"states": list[ClassState]})  # noqa: UP013
Placed = TypedDict("Placed", {  # noqa: UP013 - an optimum, for the pictures that it has in common with diagnoses
    "class_names": list[str], "class_counts": list[int], "prediction": PredictionRecord, "separation": StatesRecord
})  # fmt: skip
Shown = DiagnosisRecord | Placed


def class_marks(record: Shown) -> list[list[str]]:
    """For each class, which of ``MARKS`` it has; records of earlier versions have none."""
    lost = {c["index"] for c in (record.get("standings") or {}).get("lost", ())}
    dead = set(record.get("dead") or ())
    return [
        [word for word, members in (("lost", lost), ("dead", dead)) if k in members]
        for k in range(len(record["class_names"]))
    ]


def marked_names(record: Shown) -> list[str]:
    """The names of the classes, preceded by their marks."""
    marks = class_marks(record)
    return [" ".join([*(MARKS[m] for m in own), name]) for own, name in zip(marks, record["class_names"], strict=True)]


def lost_and_dead(record: DiagnosisRecord) -> list[str]:
    """A sentence for the lost classes and one for the dead ones, if there are any."""
    names, told = record["class_names"], []
    lost = (record.get("standings") or {}).get("lost", [])
    if lost:
        why = listed([_why(c, names) for c in lost], _MOST_NAMES)
        told.append(f"Lost, with none of their samples recognised: {why}.")
    dead = record.get("dead") or []
    if dead:
        shared = listed([names[k] for k in dead], _MOST_NAMES)
        told.append(f"Dead, with a row of the last layer that coincides with another class's: {shared}.")
    return told


def _why(lost: LostRecord, names: Sequence[str]) -> str:
    name, rival = names[lost["index"]], names[lost["rival"]]
    if lost["reason"] != "outvoted":
        return f"{name} ({lost['reason']}, taken for {rival})"
    by = f" by {number_text(lost['nats'], 2)} nats" if (lost["nats"] or 0) > 0 else ""
    return f"{name} (outvoted by {rival}{by})"


def shown_classes(record: Shown, most: int = _MOST_CLASSES) -> list[int]:
    """The classes that are drawn and listed: all; if very many, those in trouble first, then some of each size."""
    states, K = record["separation"]["states"], len(record["class_names"])
    if most >= K:
        return list(range(K))
    marks = class_marks(record)
    told = [k for k in range(K) if states[k] != "separated" or marks[k]][: round(_TOLD * most)]
    others = sorted(set(range(K)) - set(told), key=lambda k: (-record["class_counts"][k], k))
    places = np.linspace(0, len(others) - 1, min(most - len(told), len(others))).round().astype(int)
    return sorted({*told, *(others[i] for i in places)})


def part_of(record: DiagnosisRecord, classes: Sequence[int]) -> DiagnosisRecord:
    """The parts of a diagnosis for pictures and tables of single classes, only for these; matrices stay whole."""
    if len(classes) == len(record["class_names"]):
        return record

    def some(part: Any) -> Any:
        return {
            key: some(value) if isinstance(value, dict) else [value[k] for k in classes] if key in _BY_CLASS else value
            for key, value in part.items()
        }

    place = {k: i for i, k in enumerate(classes)}
    lost: list[LostRecord] = (record.get("standings") or {}).get("lost", [])
    lost = [{**c, "index": place[c["index"]]} for c in lost if c["index"] in place]
    dead = [place[k] for k in record.get("dead") or () if k in place]
    part = {**record, **some({key: record[key] for key in _DRAWN})}
    return DiagnosisRecord(**{**part, "dead": dead, "standings": {"lost": lost, "carried": []}})
