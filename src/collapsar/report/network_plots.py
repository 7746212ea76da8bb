"""Pictures of one network in a report: sizes, thresholds and curves. Each draws, returns its artists, computes nothing.

Example:
    >>> from matplotlib.figure import Figure
    >>> from collapsar.report.style import styled
    >>> record = {"class_names": ["a", "b"], "class_counts": [90, 9], "separation": {"states": ["separated", "merged"]}}
    >>> with styled():
    ...     bars = class_sizes(record, Figure().subplots())
    >>> [int(bar.get_height()) for bar in bars]
    [90, 9]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from collapsar.report.class_marks import class_marks, marked_names
from collapsar.report.diagnosis import name_classes
from collapsar.report.network_words import first_thresholds, price_of
from collapsar.report.record import Record, defined
from collapsar.report.style import COLOURS, STATES
from collapsar.report.words import lambda_text

__all__ = ["CURVES", "class_recalls", "class_sizes", "class_thresholds", "curves_over_epochs"]

# Title of a chart, whether its axis is logarithmic, and its lines: key in a record of training, name, colour, dashes.
CURVES: tuple[tuple[str, bool, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "Test images recognised",
        False,
        (
            ("test_majority_accuracy", "largest classes", "blue", "-"),
            ("test_minority_accuracy", "smallest", "vermilion", "-"),
            ("test_minority", "smallest", "vermilion", "-"),
        ),
    ),
    ("NC1", True, (("nc1_uniform", "uniform", "blue", "-"), ("nc1_weighted", "weighted", "muted", ":"))),
    ("CDNV", True, (("cdnv", "mean", "blue", "-"), ("cdnv_max", "worst pair", "vermilion", ":"))),
    (
        "NC2 and NC3",
        False,
        (("nc2_etf", "NC2, simplex", "blue", "-"), ("nc3_self_duality", "NC3, self-duality", "green", "--")),
    ),
    ("Imbalance of forces", True, (("stationarity", "at the last layer", "ink", "-"),)),
)
_MOST_BARS = 60


def class_sizes(record: Mapping[str, Any], ax: Axes) -> list[Rectangle]:
    """Samples per class as bars, coloured by the state of the class, its symbol on top.

    Args:
        record: ``class_names``, ``class_counts`` and ``separation.states``.
        ax: Where to draw.
    """
    counts, states = record["class_counts"], record["separation"]["states"]
    bars = []
    for k, (count, state) in enumerate(zip(counts, states, strict=True)):
        style = STATES[state]
        bars += ax.bar([k], [count], color=COLOURS[style.colour], width=0.8).patches
        if len(counts) <= _MOST_BARS:
            ax.plot([k], [count + 0.06 * max(counts)], style.marker, color=COLOURS[style.colour], markersize=4)
    if len(counts) <= _MOST_BARS // 3:
        for k, count in enumerate(counts):
            ax.annotate(
                str(count),
                (k, count),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                va="bottom",
                size="small",
            )
    ax.set_ylim(0, 1.25 * max(counts))
    ax.set_ylabel("samples")
    name_classes(ax, marked_names(record))
    return bars


def class_recalls(record: Mapping[str, Any], ax: Axes) -> list[Rectangle]:
    """The share of its samples that each class is given, as bars; a hollow triangle where that is none: lost.

    Args:
        record: Of a diagnosis.
        ax: Where to draw.
    """
    shares, states = record["accuracies"], record["separation"]["states"]
    bars = []
    for k, (share, state) in enumerate(zip(shares, states, strict=True)):
        if defined(share):
            bars += ax.bar([k], [share], color=COLOURS[STATES[state].colour], width=0.8).patches
    for k, marks in enumerate(class_marks(record)):
        if "lost" in marks:
            ax.plot([k], [0.08], "v", color=COLOURS["ink"], markerfacecolor="none", markersize=6)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("recognised")
    name_classes(ax, marked_names(record))
    return bars


def class_thresholds(record: Record, ax: Axes) -> list[Line2D]:
    """The penalty from which each class is given up, beside the penalty of the network: for many sizes of classes.

    Args:
        record: Of a diagnosis with a prediction.
        ax: Where to draw.
    """
    theory, states = record["prediction"], record["separation"]["states"]
    lines = []
    for k, level in enumerate(first_thresholds(theory)):
        if math.isfinite(level):
            style = STATES[states[k]]
            lines += ax.plot([k], [level], style.marker, color=COLOURS[style.colour], markersize=5)
    here = price_of(theory)
    ax.axhline(here, color=COLOURS["ink"], linewidth=1.0)
    ax.annotate(
        f"you are here: {lambda_text(here)}", (1, here), xycoords=("axes fraction", "data"), xytext=(0, 2),
        textcoords="offset points", ha="right", va="bottom", size="small",
    )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylabel("threshold λ$_W$" if theory.get("unit") == "lambda_w" else "threshold λ$_Z$")
    name_classes(ax, marked_names(record))
    return lines


def curves_over_epochs(history: Sequence[Mapping[str, Any]], chart: int, ax: Axes) -> list[Line2D]:
    """One of the charts of ``CURVES``; empty where the records hold none of its numbers.

    Args:
        history: Records with ``epoch``.
        chart: Index into ``CURVES``.
        ax: Where to draw.
    """
    _, logarithmic, wanted = CURVES[chart]
    lines = []
    for key, name, colour, dashes in wanted:
        points = [(r["epoch"], r[key]) for r in history if defined(r.get(key)) and (r[key] > 0 or not logarithmic)]
        if points:
            lines += ax.plot(*zip(*points, strict=True), dashes, color=COLOURS[colour], label=name)
    if lines and logarithmic:
        ax.set_yscale("log")
    elif lines:
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.set_xlabel("epoch")
    ax.grid(axis="y", linewidth=0.5)
    if lines:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return lines
