"""The comparison table of a page: a row per quantity, a column per run, a reason for every number that is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from collapsar.report.record import Record, defined
from collapsar.report.words import ABSENT, cluster_names, number_text, sentence, share_text, summary_of_states

__all__ = ["Cell", "Group", "Row", "Table", "comparison"]

Reason = Callable[[Record], str]


@dataclass(frozen=True)
class Cell:
    """What stands in one cell.

    Attributes:
        text: The number or word; "–" where undefined.
        state: Key of ``style.STATES`` where the cell names one state, else the phrase or "".
        mark: "hit" or "miss" beside a measured state, else "".
        note: Number of the footnote; 0 for none.
    """

    text: str
    state: str = ""
    mark: str = ""
    note: int = 0


@dataclass(frozen=True)
class Row:
    """A quantity: its name, the id of its definition (or ""), a cell per run."""

    name: str
    definition: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Groups of rows, and the footnotes, number 1 first."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Quantity:
    """Where a number lies in a run (``part`` "": in the run itself), how it is written, why it may be missing."""

    name: str
    definition: str
    part: str
    key: str
    text: Callable[[float | None], str]
    missing: str | Reason
    caution: Reason | None = None


def _no_distance(name: str, key: str, run: Record) -> str:
    values = run["predicted"][key]
    flat = [x for row in values for x in row] if key == "Z" else values
    if all(x == 0 for x in flat):
        return f"Theory predicts zero for the {name} at this penalty; a distance relative to zero is undefined."
    return f"The distance of the {name} was not recorded."


def _vanished(run: Record) -> str:
    if "vanished" not in run["measured"]["states"]:
        return ""
    return (
        "Classes have vanished in this run: differences between their means are noise, and NC1 divides by them. "
        "It says nothing here."
    )


_SCORES, _BIAS = partial(_no_distance, "mean scores", "Z"), partial(_no_distance, "bias", "b")
_FOREIGN = "The signed model predicts zero at this penalty, or its distance was not recorded."
_NO_IMAGES = "There are no such images, or their share was not recorded."
_NO_MEANS = "NC1 compares with the differences between class means, and there were none."
_two_digits = partial(number_text, digits=2)

_QUANTITIES: tuple[tuple[str, tuple[_Quantity, ...]], ...] = (
    (
        "Distance from network to theory",
        (
            _Quantity("Mean scores Z̄", "def-distance", "distance", "Z", share_text, _SCORES),
            _Quantity("Mean scores Z̄, largest entry", "def-distance", "distance", "Z_max", share_text, _SCORES),
            _Quantity("Bias b", "def-distance", "distance", "b", share_text, _BIAS),
            _Quantity("Mean scores Z̄, signed model", "def-models", "distance", "Z_signed", share_text, _FOREIGN),
            _Quantity("Bias b, signed model", "def-models", "distance", "b_signed", share_text, _FOREIGN),
        ),
    ),
    (
        "Training images recognised",
        (
            _Quantity("Minority", "", "accuracy", "train_minority", share_text, _NO_IMAGES),
            _Quantity("Majority", "", "accuracy", "train_majority", share_text, _NO_IMAGES),
        ),
    ),
    (
        "Unseen (test) images recognised",
        (
            _Quantity("Minority", "", "accuracy", "test_minority", share_text, _NO_IMAGES),
            _Quantity("Majority", "", "accuracy", "test_majority", share_text, _NO_IMAGES),
            _Quantity("Mean over all classes", "", "accuracy", "test_balanced", share_text, _NO_IMAGES),
        ),
    ),
    (
        "Spread within classes",
        (
            _Quantity("NC1, uniform", "def-nc1", "measured", "nc1_uniform", number_text, _NO_MEANS, _vanished),
            _Quantity("NC1, weighted", "def-nc1", "measured", "nc1_weighted", number_text, _NO_MEANS, _vanished),
        ),
    ),
    (
        "How far to trust the numbers",
        (
            _Quantity("Certificate gap", "def-gap", "predicted", "gap", _two_digits, "The solver gave no certificate."),
            _Quantity(
                "Imbalance of forces",
                "def-rest",
                "",
                "stationarity",
                _two_digits,
                "Not recorded, or the penalties exert no force to compare with.",
            ),
            _Quantity("Epochs trained", "", "", "epochs", number_text, "Not recorded."),
            _Quantity("Seconds", "", "", "seconds", number_text, "Not recorded."),
        ),
    ),
)


def comparison(record: Record) -> Table:
    """The table of a demonstration whose record has passed ``checked_demo``."""
    notes: list[str] = []
    groups = [Group("State of the classes", _state_rows(record))]
    for heading, quantities in _QUANTITIES:
        rows = (Row(q.name, q.definition, tuple(_cell(q, run, notes) for run in record["runs"])) for q in quantities)
        groups.append(Group(heading, tuple(rows)))
    return Table(tuple(groups), tuple(notes))


def _state_rows(record: Record) -> tuple[Row, ...]:
    """Predicted and measured state of each cluster, the minority first."""
    rows = []
    for name, cluster in reversed(list(zip(cluster_names(record), record["clusters"], strict=True))):
        predicted, measured = [], []
        for run in record["runs"]:
            theory, network = run["predicted"]["states"], run["measured"]["states"]
            said, found = summary_of_states(theory, cluster), summary_of_states(network, cluster)
            hit = all(theory[k] == network[k] for k in cluster)
            predicted.append(Cell(said, state=said))
            measured.append(Cell(found, state=found, mark="hit" if hit else "miss"))
        title = sentence(name) if name.isalpha() else name
        rows.append(Row(f"{title}, predicted", "def-states", tuple(predicted)))
        rows.append(Row(f"{title}, measured", "def-states", tuple(measured)))
    return tuple(rows)


def _cell(quantity: _Quantity, run: Record, notes: list[str]) -> Cell:
    """The number, with a footnote where it is missing or must be read with caution; new footnotes join ``notes``."""
    value = (run[quantity.part] if quantity.part else run).get(quantity.key)
    if not defined(value):
        reason = quantity.missing if isinstance(quantity.missing, str) else quantity.missing(run)
        return Cell(ABSENT, note=_note(reason, notes))
    caution = quantity.caution(run) if quantity.caution else ""
    return Cell(quantity.text(value), note=_note(caution, notes) if caution else 0)


def _note(text: str, notes: list[str]) -> int:
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1
