"""The page of a demonstration: what collapses, and that theory said so, for a reader who is new to all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from collapsar.report.advice_page import advice_view
from collapsar.report.network_axis import axis_svg
from collapsar.report.network_page import network_planes, readings_view
from collapsar.report.page import SIDES, colour_bar, drawn, page, score_map
from collapsar.report.plots import VANISHED_REMARK, largest_score, legend_above, nc1_curve, nc1_limits
from collapsar.report.record import Record, checked, checked_demo, defined
from collapsar.report.style import PAGE_INCHES
from collapsar.report.words import (
    ABSENT,
    cluster_counts,
    cluster_names,
    consequence,
    data_words,
    finding,
    meaning,
    norm_name,
    number_text,
    outcome,
    sentence,
    share_text,
    standard_finding,
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
    scale, views = _runs(data, data["runs"], "runs", "penalty")
    limits = nc1_limits([run["history"] for run in data["runs"]])
    for i, (run, view) in enumerate(zip(data["runs"], views, strict=True)):
        found = None if run.get("diagnosis") is None else checked(run["diagnosis"], "diagnosis")
        view |= {
            "run": run,
            "diagnosis": found,
            "readings_svg": found and readings_view(found, f"readings-{i}"),
            "planes": [] if found is None else network_planes(run.get("geometry"), found, f"run-{i}"),
            "vanished": "vanished" in run["measured"]["states"],
            "lengths": run["measured"].get("relative_norm") or [None] * len(data["class_names"]),
        }
    advised = [(view, view["run"]["advice"]) for view in views if view["run"].get("advice") is not None]
    return page(
        "demo.html",
        data,
        title=f"Collapsar: {data_words(data)}",
        finding=finding(data),
        leads=[text for text in (meaning(data), consequence(data), verdict(data)) if text],
        names=cluster_names(data),
        data_words=data_words(data),
        threshold_svg=_threshold_svg(data),
        colour_bar=scale,
        views=views,
        curves=[
            {"heading": view["title"], "beside": view["measured"], "svg": _curve(view["run"], limits, f"curve-{i}")}
            for i, view in enumerate(views)
        ],
        table=comparison(data, data["runs"], _QUANTITIES),
        order=[k for cluster in data["clusters"] for k in cluster],
        sizes=[cluster_counts(data, cluster) for cluster in data["clusters"]],
        advice={"level": advised[0][0]["level"], "view": advice_view(advised[0][1], "advice")} if advised else None,
        standard=_standard(data),
        settings=[
            ("data", data["data"]),
            ("bias penalty lambda_b", number_text(data["lambda_b"])),
            ("theory for", f"{data['features']} features"),
            *data["environment"].items(),
        ],
    )


def _standard(data: Record) -> Record | None:
    """The networks trained the usual way; None where the record has none."""
    standard = data.get("standard")
    if standard is None:
        return None
    scale, views = _runs(data, standard["runs"], "standard.runs", "weight decay")
    return {
        "norm": norm_name(standard["norm"]),
        "finding": standard_finding(data),
        "colour_bar": scale,
        "views": views,
        "table": comparison(data, standard["runs"], _STANDARD),
    }


def _runs(data: Record, runs: Sequence[Record], source: str, penalty: str) -> tuple[list[Record], list[Record]]:
    """The colour scale of several networks, and of each its penalty, what became of it, and two maps."""
    scale, views = largest_score([run[side]["Z"] for run in runs for side, _ in SIDES]), []
    seeds, place = len({run.get("seed") for run in runs}) > 1, source.replace(".", "-")
    for i, run in enumerate(runs):
        level = number_text(run["lambda_z" if source == "runs" else "lambda_w"])
        level, away = f"{level}, seed {run['seed']}" if seeds else level, run["distance"]["Z"]
        states = {side: outcome(data, run[side]["states"]) for side, _ in SIDES}
        same = run["predicted"]["states"] == run["measured"]["states"]
        maps = [
            score_map(
                run[side]["Z"], data, scale, f"{place}-map-{i}", side=side, heading=heading,
                label=f"{heading}, at {penalty} {level}: {states[side]}. Mean scores as colours, a column per class of "
                "images, a row per score.",
                source=f"{source}.{i}.{side}.Z",
                remark=f"the network is {share_text(away)} away" if side == "predicted" and defined(away) else "",
            )
            for side, heading in SIDES
        ]  # fmt: skip
        found = states["measured"] + (", as predicted" if same else f"; predicted: {states['predicted']}")
        title = f"{sentence(penalty)} {level}"
        views.append({"id": f"{place}-{i}", "level": level, "title": title, "states": found, "maps": maps, **states})
    return colour_bar(scale), views


# --- drawings by matplotlib


def _threshold_svg(data: Record) -> Markup:
    places = [
        f"at penalty {number_text(run['lambda_z'])} theory predicts {outcome(data, run['predicted']['states'])}, "
        f"measured is {outcome(data, run['measured']['states'])}"
        for run in data["runs"]
    ]
    label = f"The penalty axis with the thresholds of the theory and the runs: {'; '.join(places)}."
    return axis_svg(data, "threshold", label)


def _curve(run: Record, limits: tuple[float, float] | None, ident: str) -> Markup:
    """A small NC1 chart; ``limits`` are those of all runs."""

    def draw(ax: Axes) -> None:
        curves = nc1_curve(run["history"], ax, remark=_vanished(run) and VANISHED_REMARK)
        if curves.lines and limits is not None:
            ax.set_ylim(limits)
            legend_above(ax)

    last = number_text(run["measured"]["nc1_uniform"])
    label = f"NC1 over the epochs at penalty {number_text(run['lambda_z'])}, ending at {last} (uniform weighting)."
    return drawn(draw, (PAGE_INCHES * 0.7, 1.75), ident, label)


# --- the tables: a row per quantity, a column per run, a reason for every number that is missing

Reason = Callable[[Record], str]


class _Quantity(NamedTuple):
    """Where a number lies in a run (keys joined by points), why it may be missing, how it is written."""

    name: str
    definition: str
    place: str
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
_FORCES = _Quantity("Imbalance of forces", "def-rest", "stationarity", _NO_FORCE, _two_digits)
_GAP = _Quantity("Certificate gap", "def-gap", "predicted.gap", "The solver gave no certificate.", _two_digits)

Table = Mapping[str, tuple[_Quantity, ...]]
_QUANTITIES: Table = {
    "Distance from network to theory": (
        _Quantity("Mean scores Z̄", "def-distance", "distance.Z", _SCORES),
        _Quantity("Mean scores Z̄, largest entry", "def-distance", "distance.Z_max", _SCORES),
        _Quantity("Bias b", "def-distance", "distance.b", _BIAS),
        _Quantity("Mean scores Z̄, signed model", "def-models", "distance.Z_signed", _FOREIGN),
        _Quantity("Bias b, signed model", "def-models", "distance.b_signed", _FOREIGN),
    ),
    "Training images recognised": (
        _Quantity("Minority", "", "accuracy.train_minority", _NO_IMAGES),
        _Quantity("Majority", "", "accuracy.train_majority", _NO_IMAGES),
    ),
    "Unseen (test) images recognised": (
        _Quantity("Minority", "", "accuracy.test_minority", _NO_IMAGES),
        _Quantity("Majority", "", "accuracy.test_majority", _NO_IMAGES),
        _Quantity("Mean over all classes", "", "accuracy.test_balanced", _NO_IMAGES),
    ),
    "Spread within classes": (
        _Quantity("NC1, uniform", "def-nc1", "measured.nc1_uniform", _NO_MEANS, number_text, _vanished),
        _Quantity("NC1, weighted", "def-nc1", "measured.nc1_weighted", _NO_MEANS, number_text, _vanished),
    ),
    "How far to trust the numbers": (
        _GAP,
        _FORCES,
        _Quantity("Epochs trained", "", "epochs", "Not recorded.", number_text),
        _Quantity("Seconds", "", "seconds", "Not recorded.", number_text),
    ),
}
_STANDARD: Table = {
    "Mean cosine of two small classes": tuple(
        _Quantity(f"Class means, {side}", "", f"{side}.cosines.minority", "Not recorded.", number_text)
        for side, _ in reversed(SIDES)
    ),
    "Distance from network to theory": (
        _Quantity("Mean scores Z̄", "def-distance", "distance.Z", _SCORES),
        _Quantity("Bias b", "def-distance", "distance.b", _BIAS),
    ),
    "Minority images recognised": (
        _Quantity("Training images", "", "accuracy.train_minority", _NO_IMAGES),
        _Quantity("Unseen (test) images", "", "accuracy.test_minority", _NO_IMAGES),
    ),
    "How far to trust the numbers": (_GAP, _FORCES),
}


def comparison(data: Record, runs: Sequence[Record], quantities: Table) -> Record:
    """A table of some runs of a demonstration: groups of rows, and footnotes.

    A cell has its ``text``, the ``state`` that it names, a ``mark`` ("hit" or "miss") beside a measured state, and the
    number of its ``note``, 0 for none.
    """
    notes: list[str] = []
    groups = [{"heading": "State of the classes", "rows": _state_rows(data, runs)}]
    for heading, wanted in quantities.items():
        rows = [
            {"name": q.name, "definition": q.definition, "cells": [_cell(q, run, notes) for run in runs]}
            for q in wanted
        ]
        groups.append({"heading": heading, "rows": rows})
    return {"groups": groups, "notes": notes}


def _state_rows(data: Record, runs: Sequence[Record]) -> list[Record]:
    """Predicted and measured state of each cluster, the minority first."""
    rows = []
    for name, cluster in reversed(list(zip(cluster_names(data), data["clusters"], strict=True))):
        for side, _ in reversed(SIDES):
            cells = []
            for run in runs:
                theory, here = run["predicted"]["states"], run[side]["states"]
                found = summary_of_states(here, cluster)
                hit = "hit" if all(theory[k] == here[k] for k in cluster) else "miss"
                cells.append({"text": found, "state": found, "mark": hit if side == "measured" else "", "note": 0})
            title = sentence(name) if name.isalpha() else name
            rows.append({"name": f"{title}, {side}", "definition": "def-states", "cells": cells})
    return rows


def _cell(quantity: _Quantity, run: Record, notes: list[str]) -> Record:
    """The number, with a footnote where it is missing or must be read with caution; new footnotes join ``notes``."""
    value: Any = run
    for key in quantity.place.split("."):
        value = (value or {}).get(key)
    missing, caution = quantity.missing, quantity.caution
    if defined(value):
        text, note = quantity.text(value), caution(run) if caution else ""
    else:
        text, note = ABSENT, missing if isinstance(missing, str) else missing(run)
    if note and note not in notes:
        notes.append(note)
    return {"text": text, "state": "", "mark": "", "note": notes.index(note) + 1 if note else 0}
