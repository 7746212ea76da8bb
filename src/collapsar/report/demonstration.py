"""The page of a demonstration: what collapses, and that theory said so, for a reader who is new to all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from collapsar.report.advice_page import advice_view
from collapsar.report.demonstration_standard import standard_view
from collapsar.report.diagnosis import checked_diagnosis, price_readings
from collapsar.report.network_page import network_planes
from collapsar.report.page import colour_bar, drawn, page, score_map
from collapsar.report.plots import (
    VANISHED_REMARK,
    curve_legend,
    demo_scale,
    nc1_curve,
    nc1_limits,
    threshold_line,
)
from collapsar.report.record import Record, checked_demo, defined, matrix
from collapsar.report.style import PAGE_INCHES
from collapsar.report.words import (
    ABSENT,
    cluster_counts,
    cluster_names,
    consequence,
    data_words,
    finding,
    lambda_text,
    meaning,
    number_text,
    outcome,
    sentence,
    share_text,
    summary_of_states,
    verdict,
)

__all__ = ["demo_page"]


def demo_page(record: Mapping[str, Any]) -> str:
    """The record of a demonstration as one self-contained page, for a reader who is new to all of it.

    Args:
        record: As ``plots.demo_figure`` takes it. Undefined numbers (None, NaN) appear as "–" with the reason.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked_demo(record)
    scale = demo_scale(data)
    return page(
        "demo.html",
        data,
        title=f"Collapsar: {data_words(data)}",
        finding=finding(data),
        verdict=verdict(data),
        meaning=meaning(data),
        consequence=consequence(data),
        names=cluster_names(data),
        data_words=data_words(data),
        threshold_svg=_threshold_svg(data),
        scale=scale,
        colour_bar=colour_bar(scale),
        runs=[_run_view(data, i, scale) for i in range(len(data["runs"]))],
        curves=_curves(data),
        table=comparison(data),
        order=[k for cluster in data["clusters"] for k in cluster],
        sizes=[cluster_counts(data, cluster) for cluster in data["clusters"]],
        same_state=[run["predicted"]["states"] == run["measured"]["states"] for run in data["runs"]],
        any_vanished=any("vanished" in run["measured"]["states"] for run in data["runs"]),
        relative_norms=[
            run["measured"].get("relative_norm") or [None] * len(data["class_names"]) for run in data["runs"]
        ],
        diagnoses=[_diagnosis_view(run, i) for i, run in enumerate(data["runs"])],
        planes=[_planes(data, i) for i in range(len(data["runs"]))],
        advice=_advice(data),
        standard=standard_view(data),
    )


def _planes(data: Record, index: int) -> list[Record]:
    """The class means of one run and of theory; none where the record has no diagnosis of it."""
    run = data["runs"][index]
    if run.get("diagnosis") is None:
        return []
    return network_planes(run.get("geometry"), checked_diagnosis(run["diagnosis"]), f"run-{index}")


def _advice(data: Record) -> Record | None:
    """Advice at the smallest penalty at which classes are lost, and that penalty; None where none was recorded."""
    found = [run for run in data["runs"] if run.get("advice") is not None]
    if not found:
        return None
    return {"level": lambda_text(found[0]["lambda_z"]), "view": advice_view(found[0]["advice"], "advice")}


# --- heat maps


def _run_view(data: Record, index: int, scale: float) -> Record:
    """What the template draws of one run: a heading and two maps."""
    run = data["runs"][index]
    level = lambda_text(run["lambda_z"])
    maps = []
    for side, heading in (("measured", "The network, measured"), ("predicted", "The theory, predicted")):
        states = outcome(data, run[side]["states"])
        label = (
            f"{heading}, at penalty {level}: {states}. "
            "Mean scores as colours, a column per class of images, a row per score; the values are in the table below."
        )
        view: Record = {"side": side, "heading": heading, "states": states, "remark": ""}
        if side == "predicted" and defined(run["distance"]["Z"]):
            view["remark"] = f"the network is {share_text(run['distance']['Z'])} away"
        maps.append(
            view
            | score_map(matrix(run[side]["Z"]), data, scale, f"map-{index}-{side}", label, f"runs.{index}.{side}.Z")
        )
    seeds = len({run["seed"] for run in data["runs"]}) > 1
    return {"index": index, "level": level, "seed": run["seed"] if seeds else None, "maps": maps, "run": run}


# --- the diagnosis of a network


def _diagnosis_view(run: Record, index: int) -> Record | None:
    """What the page of a demonstration shows of one network's diagnosis; None where there is none."""
    if run.get("diagnosis") is None:
        return None
    data = checked_diagnosis(run["diagnosis"])
    view = {key: data[key] for key in ("headline", "words", "notes")}
    readings = data["effective"] is not None and any(map(defined, data["effective"]["by_class"]))
    return {**view, "svg": _readings_svg(data, f"readings-{index}") if readings else None}


def _readings_svg(data: Record, name: str) -> Markup:
    label = "The penalty implied by each class's predictions, beside the one implied by the norms."
    return drawn(lambda ax: price_readings(data, ax), (PAGE_INCHES, 2.2), name, label)


# --- drawings by matplotlib


def _threshold_svg(data: Record) -> Markup:
    places = [
        f"at penalty {lambda_text(run['lambda_z'])} theory predicts {outcome(data, run['predicted']['states'])}, "
        f"measured is {outcome(data, run['measured']['states'])}"
        for run in data["runs"]
    ]
    height = 0.6 + 0.55 * len(data["clusters"])
    label = f"The penalty axis with the thresholds of the theory and the runs: {'; '.join(places)}."
    return drawn(lambda ax: threshold_line(data, ax), (PAGE_INCHES, height), "threshold", label)


def _curves(data: Record) -> list[Record]:
    """A small NC1 chart per run, all on one scale."""
    limits = nc1_limits([run["history"] for run in data["runs"]])
    views = []
    for index, run in enumerate(data["runs"]):
        vanished = "vanished" in run["measured"]["states"]

        def draw(ax: Axes, run: Record = run, vanished: bool = vanished) -> None:
            curves = nc1_curve(run["history"], ax, remark=VANISHED_REMARK if vanished else "")
            if curves.lines and limits is not None:
                ax.set_ylim(limits)
                curve_legend(ax)

        level = lambda_text(run["lambda_z"])
        last = run["measured"]["nc1_uniform"]
        label = f"NC1 over the epochs at penalty {level}, ending at {number_text(last)} (uniform weighting)."
        svg = drawn(draw, (PAGE_INCHES * 0.7, 1.75), f"curve-{index}", label)
        views.append({"level": level, "svg": svg, "outcome": outcome(data, run["measured"]["states"])})
    return views


# --- the table: a row per quantity, a column per run, a reason for every number that is missing

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
