"""The rows of tables of classes, the same on a page and in a terminal. Needs neither matplotlib nor torch.

Example:
    >>> bee = {"index": 1, "name": "bee", "samples": None, "length": 0.0}
    >>> audited = {"dead_classes": [bee], "groups": [], "shrunk": [1], "at_initialisation": [], "unreachable": None}
    >>> dead_rows(audited)
    [('bee', '–', '0.000', '–', 'shrunk to the mean')]
"""

from __future__ import annotations

from typing import NamedTuple

from collapsar.core.record_types import AuditRecord, DiagnosisRecord
from collapsar.report.class_marks import class_marks
from collapsar.report.record import defined
from collapsar.report.words import ABSENT, fixed_text, number_text, share_text

DEAD_COLUMNS = ("class", "samples", "length", "group", "why")


class ClassRow(NamedTuple):
    """What a diagnosis says about a class, as text; ``marks`` for what its state does not say."""

    name: str
    samples: str
    recognised: str
    state: str
    marks: list[str]
    theory: str
    length: str
    nearest: str
    distance: str
    price: str


def class_rows(data: DiagnosisRecord, every: list[str]) -> list[ClassRow]:
    """A row for each class of (a part of) a diagnosis; ``every`` names all classes, including those without a row."""
    separation, effective, theory = data["separation"], data["effective"], data["prediction"]
    marks, rows = class_marks(data), []
    for k, name in enumerate(data["class_names"]):
        price, tells = (None, True) if effective is None else (effective["by_class"][k], effective["tells"][k])
        bound = "≥ " if defined(price) and not tells else ""
        nearest = separation["nearest"][k]
        rows.append(
            ClassRow(
                name=name,
                samples=str(data["class_counts"][k]),
                recognised=share_text(data["accuracies"][k]),
                state=separation["states"][k],
                marks=marks[k],
                theory=ABSENT if theory is None else theory["seen"][k],
                length=fixed_text(separation["relative_norms"][k]),
                nearest=every[nearest] if nearest >= 0 else ABSENT,
                distance=fixed_text(separation["nearest_separation"][k]),
                price=bound + number_text(price, 4),
            )
        )
    return rows


def causes_of_death(record: AuditRecord) -> dict[str, set[int]]:
    """The dead classes of an audit by cause of death; a class may have several."""
    return {
        "shares a row": {k for group in record["groups"] for k in group["classes"]},
        "shrunk to the mean": set(record["shrunk"]),
        "as initialised": set(record["at_initialisation"]),
        "never the answer": set(record["unreachable"] or ()),
    }


def dead_rows(record: AuditRecord) -> list[tuple[str, ...]]:
    """A row for each dead class of an audit, as ``DEAD_COLUMNS``."""
    causes = causes_of_death(record)
    group = {k: str(g) for g, members in enumerate(record["groups"], 1) for k in members["classes"]}
    return [
        (
            dead["name"],
            ABSENT if dead["samples"] is None else str(dead["samples"]),
            fixed_text(dead["length"]),
            group.get(dead["index"], ABSENT),
            ", ".join(cause for cause, members in causes.items() if dead["index"] in members),
        )
        for dead in record["dead_classes"]
    ]
