"""The page of a demonstration: what collapses, and that theory said so, for a reader who is new to all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from collapsar.report.advice_page import advice_view
from collapsar.report.demonstration_standard import standard_view
from collapsar.report.diagnosis import checked_diagnosis
from collapsar.report.network_page import network_planes, readings_view
from collapsar.report.page import SIDES, colour_bar, drawn, largest_score, map_views, page
from collapsar.report.plots import (
    VANISHED_REMARK,
    curve_legend,
    nc1_curve,
    nc1_limits,
    threshold_line,
)
from collapsar.report.record import Record, checked_demo, defined
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
    scale = largest_score(run[side]["Z"] for run in data["runs"] for side, _ in SIDES)
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


def _run_view(data: Record, index: int, scale: float) -> Record:
    """What the template draws of one run: a heading and two maps."""
    run = data["runs"][index]
    level, away, sides = lambda_text(run["lambda_z"]), run["distance"]["Z"], []
    for side, heading in SIDES:
        states = outcome(data, run[side]["states"])
        label = (
            f"{heading}, at penalty {level}: {states}. "
            "Mean scores as colours, a column per class of images, a row per score; the values are in the table below."
        )
        remark = f"the network is {share_text(away)} away" if side == "predicted" and defined(away) else ""
        shown = {"side": side, "heading": heading, "label": label, "states": states, "remark": remark}
        sides.append({**shown, "Z": run[side]["Z"], "source": f"runs.{index}.{side}.Z"})
    seeds = len({run["seed"] for run in data["runs"]}) > 1
    maps = map_views(sides, data, scale, f"map-{index}")
    return {"index": index, "level": level, "seed": run["seed"] if seeds else None, "maps": maps, "run": run}


def _diagnosis_view(run: Record, index: int) -> Record | None:
    """What the page of a demonstration shows of one network's diagnosis; None where there is none."""
    if run.get("diagnosis") is None:
        return None
    data = checked_diagnosis(run["diagnosis"])
    view = {key: data[key] for key in ("headline", "words", "notes")}
    return {**view, "svg": readings_view(data, f"readings-{index}")}


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


class _Quantity(NamedTuple):
    """Where a number lies in a run (``part`` "": in the run itself), why it may be missing, how it is written."""

    name: str
    definition: str
    part: str
    key: str
    missing: str | Reason
    text: Callable[[float | None], str] = share_text
    caution: Reason | None = None


def _no_distance(name: str, key: str, run: Record) -> str:
    if not np.any(np.array(run["predicted"][key], dtype=float)):
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
_NO_FORCE = "Not recorded, or the penalties exert no force to compare with."
_two_digits = partial(number_text, digits=2)

_QUANTITIES: dict[str, tuple[_Quantity, ...]] = {
    "Distance from network to theory": (
        _Quantity("Mean scores Z̄", "def-distance", "distance", "Z", _SCORES),
        _Quantity("Mean scores Z̄, largest entry", "def-distance", "distance", "Z_max", _SCORES),
        _Quantity("Bias b", "def-distance", "distance", "b", _BIAS),
        _Quantity("Mean scores Z̄, signed model", "def-models", "distance", "Z_signed", _FOREIGN),
        _Quantity("Bias b, signed model", "def-models", "distance", "b_signed", _FOREIGN),
    ),
    "Training images recognised": (
        _Quantity("Minority", "", "accuracy", "train_minority", _NO_IMAGES),
        _Quantity("Majority", "", "accuracy", "train_majority", _NO_IMAGES),
    ),
    "Unseen (test) images recognised": (
        _Quantity("Minority", "", "accuracy", "test_minority", _NO_IMAGES),
        _Quantity("Majority", "", "accuracy", "test_majority", _NO_IMAGES),
        _Quantity("Mean over all classes", "", "accuracy", "test_balanced", _NO_IMAGES),
    ),
    "Spread within classes": (
        _Quantity("NC1, uniform", "def-nc1", "measured", "nc1_uniform", _NO_MEANS, number_text, _vanished),
        _Quantity("NC1, weighted", "def-nc1", "measured", "nc1_weighted", _NO_MEANS, number_text, _vanished),
    ),
    "How far to trust the numbers": (
        _Quantity("Certificate gap", "def-gap", "predicted", "gap", "The solver gave no certificate.", _two_digits),
        _Quantity("Imbalance of forces", "def-rest", "", "stationarity", _NO_FORCE, _two_digits),
        _Quantity("Epochs trained", "", "", "epochs", "Not recorded.", number_text),
        _Quantity("Seconds", "", "", "seconds", "Not recorded.", number_text),
    ),
}


def comparison(record: Record) -> Record:
    """The table of a demonstration whose record has passed ``checked_demo``: groups of rows, and footnotes.

    A cell has its ``text``, the ``state`` that it names, a ``mark`` ("hit" or "miss") beside a measured state, and the
    number of its ``note``, 0 for none.
    """
    notes: list[str] = []
    groups = [{"heading": "State of the classes", "rows": _state_rows(record)}]
    for heading, quantities in _QUANTITIES.items():
        rows = [
            {"name": q.name, "definition": q.definition, "cells": [_cell(q, run, notes) for run in record["runs"]]}
            for q in quantities
        ]
        groups.append({"heading": heading, "rows": rows})
    return {"groups": groups, "notes": notes}


def _state_rows(record: Record) -> list[Record]:
    """Predicted and measured state of each cluster, the minority first."""
    rows = []
    for name, cluster in reversed(list(zip(cluster_names(record), record["clusters"], strict=True))):
        for side, _ in reversed(SIDES):
            cells = []
            for run in record["runs"]:
                theory, here = run["predicted"]["states"], run[side]["states"]
                found = summary_of_states(here, cluster)
                hit = "hit" if all(theory[k] == here[k] for k in cluster) else "miss"
                cells.append({"text": found, "state": found, "mark": hit if side == "measured" else "", "note": 0})
            title = sentence(name) if name.isalpha() else name
            rows.append({"name": f"{title}, {side}", "definition": "def-states", "cells": cells})
    return rows


def _cell(quantity: _Quantity, run: Record, notes: list[str]) -> Record:
    """The number, with a footnote where it is missing or must be read with caution; new footnotes join ``notes``."""
    value = (run[quantity.part] if quantity.part else run).get(quantity.key)
    missing, caution = quantity.missing, quantity.caution
    if defined(value):
        text, note = quantity.text(value), caution(run) if caution else ""
    else:
        text, note = ABSENT, missing if isinstance(missing, str) else missing(run)
    if note and note not in notes:
        notes.append(note)
    return {"text": text, "state": "", "mark": "", "note": notes.index(note) + 1 if note else 0}
