"""The page and the picture of an audit: row length over class frequency, with the dead classes marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from collapsar.core.record_types import AuditRecord
from collapsar.report.class_rows import DEAD_COLUMNS, causes_of_death, dead_rows
from collapsar.report.page import drawn, page
from collapsar.report.plots import legend_above, name_classes
from collapsar.report.record import checked
from collapsar.report.style import COLOURS, PAGE_INCHES, styled

_MOST_ROWS = 400
_FEW = 200  # with more classes than this, markers of living ones are small and faint
# Colour and marker of each cause of death, and of living classes.
_STYLES = (
    ("alive", "muted", "o"),
    ("shares a row", "vermilion", "X"),
    ("shrunk to the mean", "purple", "v"),
    ("as initialised", "orange", "s"),
    ("never the answer", "for", "D"),
)


def audit_page(record: Mapping[str, Any]) -> str:
    """A page on an audit, one HTML file.

    Args:
        record: ``Audit.to_dict()``, with ``source``, ``tensor`` and ``why`` of the file it came from.

    Raises:
        ValueError: the record is of another kind.
    """
    data = _checked(record)
    lengths, counts, rows = data["lengths"], data["class_counts"], dead_rows(data)
    over = "in the order of the classes" if counts is None else "over its number of training samples"
    caption = f"Length of each class's row, relative to the longest, {over}. Dead classes are marked."
    return page(
        "audit.html",
        data,
        title=f"Audit of {data.get('source')}",
        svg=drawn(lambda ax: row_lengths(data, ax), (PAGE_INCHES, 2.6), "lengths", caption)
        if lengths is not None
        else "",
        caption=caption if lengths is not None else "Too many classes for a picture of each.",
        columns=DEAD_COLUMNS,
        rows=rows[:_MOST_ROWS],
        more=max(0, len(rows) - _MOST_ROWS),
    )


def row_lengths(record: AuditRecord, ax: Axes) -> dict[str, int]:
    """Draw row length over class frequency, or over the class number without counts; dead classes are marked.

    Returns:
        How many classes were drawn of each kind.
    """
    lengths, counts = np.array(record["lengths"]), record["class_counts"]
    place = np.arange(len(lengths)) if counts is None else np.maximum(np.array(counts, dtype=float), 0.5)
    first = {k: kind for kind, members in reversed(causes_of_death(record).items()) for k in members}
    drawn_of = {}
    for kind, colour, marker in _STYLES:
        mine = [k for k in range(len(lengths)) if first.get(k, "alive") == kind]
        drawn_of[kind] = len(mine)
        if mine:
            crowd = kind == "alive" and len(lengths) > _FEW
            size: dict[str, Any] = {"markersize": 2.5, "alpha": 0.5} if crowd else {"markersize": 4}
            ax.plot(place[mine], lengths[mine], marker, color=COLOURS[colour], linestyle="none", label=kind, **size)
    if counts is not None:
        ax.set_xscale("log")
        if (found := record["counts"]) and found["dies_below"]:
            ax.axvline(found["dies_below"], color=COLOURS["ink"], linewidth=0.8, linestyle=":")
        ax.set_xlabel("samples of the class (none: at 0.5)")
    else:
        name_classes(ax, record["class_names"] or list(map(str, place)))
    ax.set_ylabel("row length, longest = 1")
    ax.set_ylim(-0.04, None)  # markers at 0 whole
    legend_above(ax, 3)
    return drawn_of


def audit_figure(record: Mapping[str, Any]) -> Figure:
    """The picture of an audit by itself.

    Args:
        record: of an audit of up to 20 000 classes.

    Raises:
        ValueError: the record is of another kind, or has no lengths.
    """
    data = _checked(record)
    if data["lengths"] is None:
        raise ValueError("`record` has no lengths, because it has more than 20 000 classes")
    with styled():
        figure = Figure(figsize=(6.9, 3.2), layout="constrained")
        row_lengths(data, figure.subplots())
    return figure


def _checked(record: Mapping[str, Any]) -> AuditRecord:
    return {"source": "a head", "tensor": "weight", "why": "it was given", **checked(record, AuditRecord)}
