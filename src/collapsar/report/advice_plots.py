"""Pictures of advice: functions of a record and an ax; they compute nothing."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from collapsar.core.record_types import AdviceRecord
from collapsar.core.types import Vector
from collapsar.report.advice import class_words
from collapsar.report.plots import log_ticks
from collapsar.report.record import defined
from collapsar.report.style import COLOURS, STATES, styled


def advice_figure(record: AdviceRecord) -> Figure:
    """Before and after the first mitigation: safety factors and decision margins of every kind of class.

    Args:
        record: ``Advice.to_dict()``, undefined numbers as None or NaN.
    """
    with styled():
        rows = len(record["groups"])
        figure = Figure(figsize=(7.0, 1.3 + 0.22 * min(rows, 24)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        safety(record, left)
        margins(record, right)
        figure.suptitle(advice_title(record))
    return figure


def advice_title(record: AdviceRecord) -> str:
    """What the pictures show."""
    if not record["suggestions"]:
        return "at the optimum"
    return f"now, and after: {record['suggestions'][0]['words']}"


def _before_after(record: AdviceRecord, name: str) -> tuple[Vector, Vector | None]:
    """A number for every kind of class now, and after the first mitigation."""
    now = np.array([g[name] for g in record["groups"]], dtype=np.float64)  # None is NaN
    if not record["suggestions"]:
        return now, None
    later = {k: g[name] for g in record["suggestions"][0]["groups"] for k in g["classes"]}
    return now, np.array([later[g["classes"][0]] for g in record["groups"]], dtype=np.float64)


def safety(record: AdviceRecord, ax: Axes) -> list[Line2D]:
    """Threshold over lambda_z of every kind of class, logarithmic; the line at 1 is the threshold."""
    now, later = _before_after(record, "safety")
    ax.axvline(1.0, color=COLOURS["ink"], linewidth=0.8)
    ax.axvline(1 + record["margin"], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 2)))
    lines = _points(record, ax, now, later)
    ax.set_xscale("log")
    log_ticks(ax.xaxis, (1.0, 2.0, 5.0))
    ax.set_xlabel("threshold / penalty (dashed: the target)")
    return lines


def margins(record: AdviceRecord, ax: Axes) -> list[Line2D]:
    """Decision margin at the class mean of every kind of class, nats; below 0 the mean itself is misclassified."""
    now, later = _before_after(record, "margin")
    ax.axvline(0.0, color=COLOURS["ink"], linewidth=0.8)
    lines = _points(record, ax, now, later)
    ax.set_xlabel("decision margin at the mean, nats")
    return lines


def _points(record: AdviceRecord, ax: Axes, now: Vector, later: Vector | None) -> list[Line2D]:
    lines = []
    y = range(len(now))
    names = [
        f"{class_words(g['classes'], record['class_names'])}: {g['samples']}{' each' if len(g['classes']) > 1 else ''}"
        for g in record["groups"]
    ]
    ax.set_yticks(y, names, parse_math=False)
    ax.set_ylim(len(now) - 0.5, -0.5)
    for value, group, place in zip(now, record["groups"], y, strict=True):
        style = STATES[group["state"]]
        lines += ax.plot([value], [place], style.marker, color=COLOURS[style.colour], markersize=4, clip_on=False)
    if later is None:
        return lines
    lines += ax.plot(later, y, linestyle="none", marker=".", markersize=3, color=COLOURS["muted"])
    for before, after, place in zip(now, later, y, strict=True):
        if defined(before) and defined(after):
            ax.annotate("", (after, place), (before, place), arrowprops={"arrowstyle": "->", "color": COLOURS["muted"]})
    return lines
