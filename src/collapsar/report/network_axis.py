"""Networks and optima among the thresholds of theory, as a page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from collapsar.core.record_types import LevelsRecord, PredictionRecord, RunRecord
from collapsar.report.class_marks import Shown, shown_classes
from collapsar.report.diagnosis import class_thresholds
from collapsar.report.network_words import first_thresholds, price_of, unit_of
from collapsar.report.page import drawn, drawn_by_class
from collapsar.report.penalty_axis import PenaltyAxis, penalty_axis
from collapsar.report.record import same_counts
from collapsar.report.style import PAGE_INCHES
from collapsar.report.words import Clustered, number_text

# More lanes than this on the axis of penalties cannot be read: then thresholds are shown class by class.
_MOST_LANES = 8


def threshold_view(data: Shown, ident: str, label: str) -> Markup | None:
    """Where a network or an optimum stands among the thresholds of theory; None if there are none."""
    theory = data["prediction"]
    if theory is None or not np.isfinite(first_thresholds(theory)).any():
        return None
    if len(set(data["class_counts"])) > _MOST_LANES:
        shown = shown_classes(data)
        size = (PAGE_INCHES, 2.4)
        name = f"{ident}-threshold"
        return drawn_by_class(lambda ax: class_thresholds(data, ax, shown), size, name, label, len(shown))
    return axis_svg(_axis(theory, [data]), f"{ident}-threshold", label)


def axis_svg(axis: PenaltyAxis, name: str, label: str) -> Markup:
    """The axis of penalties, with a lane for each cluster."""
    size = (PAGE_INCHES, 0.6 + 0.55 * len(axis.classes["clusters"]))
    return drawn(lambda ax: penalty_axis(axis, ax), size, name, label)


def _axis(theory: PredictionRecord, found: Sequence[Shown]) -> PenaltyAxis:
    """Diagnoses of networks with the same theory, in the form for the axis of penalties."""
    counts = found[0]["class_counts"]
    classes: Clustered = {
        "class_names": found[0]["class_names"], "class_counts": counts, "clusters": same_counts(counts)
    }  # fmt: skip
    levels: LevelsRecord = {"merge": _merging(theory), "vanish": theory["vanish"], "complete": theory["complete"]}
    both = [(own, data["separation"]["states"]) for data in found if (own := data["prediction"]) is not None]
    runs = [(price_of(own), own["states"], states) for own, states in both]
    return PenaltyAxis(classes, theory["features"], levels, runs, gradual(theory), unit_of(theory))


def gradual(theory: PredictionRecord) -> list[int]:
    """Classes alone in their size that become indistinguishable from others without a transition."""
    sharp = np.fmin.reduce(np.array([theory["merge"], theory["vanish"]], dtype=float))
    return np.flatnonzero(first_thresholds(theory) < sharp).tolist()


def _merging(theory: PredictionRecord) -> list[float | None]:
    """Where each class merges, or becomes indistinguishable from others without a transition; None if neither."""
    return [
        None if level >= (vanish or math.inf) else float(level)
        for level, vanish in zip(first_thresholds(theory), theory["vanish"], strict=True)
    ]


def joint_axis(runs: Sequence[RunRecord]) -> Markup | None:
    """All networks on one axis of penalties; None if theory differs between them or is missing."""
    found = [run["diagnosis"] for run in runs]
    theories = [theory for data in found if (theory := data["prediction"]) is not None]
    if len(theories) < len(found) or len(set(found[0]["class_counts"])) > _MOST_LANES:
        return None
    same = {
        (tuple(d["class_counts"]), t["features"], t.get("unit"), str(t["lambda_b"]), str(d["known"]["loss"]))
        for d, t in zip(found, theories, strict=True)
    }
    if len(same) > 1:
        return None
    places = "; ".join(f"{run['name']} at {number_text(price_of(t))}" for run, t in zip(runs, theories, strict=True))
    label = f"The penalties of all networks among the thresholds of theory: {places}."
    return axis_svg(_axis(theories[0], found), "joint", label)
