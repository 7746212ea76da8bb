"""Pictures of a diagnosis: what became of each class, and the penalty that it implies. They compute nothing.

Example:
    >>> from matplotlib.figure import Figure
    >>> from collapsar.report.style import styled
    >>> record = {"class_names": ["a", "b"], "prediction": None, "separation": {
    ...     "states": ["separated", "vanished"], "relative_norms": [1.0, 0.0], "vanish_threshold": 0.05}}
    >>> with styled():
    ...     ax = Figure().subplots()
    ...     marks = class_lengths(record, ax)
    >>> len(marks.measured)
    2
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from collapsar.core.record_types import DiagnosisRecord
from collapsar.report.class_marks import Shown, class_marks, marked_names, part_of, shown_classes
from collapsar.report.network_words import first_thresholds, model_distance, price_of, unit_of
from collapsar.report.plots import heatmap, largest_score, legend_above, log_ticks, name_classes, state_markers
from collapsar.report.record import checked, defined, same_counts
from collapsar.report.style import COLOURS, STATES, styled
from collapsar.report.words import number_text, share_text

_MOST_BARS = 60
_MARK = 0.8  # inches for a mark and its word in a legend
_ROOM_BELOW = 0.15  # share of the axis that the name of a line needs


class LengthArtists(NamedTuple):
    """Markers of the classes as measured, one line per state, and rings of all as predicted."""

    measured: list[Line2D]
    predicted: list[Line2D]


class ReadingArtists(NamedTuple):
    """Markers of the classes with a reading, one line per state, and the lines for the readings of the whole."""

    classes: list[Line2D]
    lines: list[Artist]


def class_sizes(record: DiagnosisRecord, ax: Axes) -> list[Rectangle]:
    """Samples per class as bars, coloured by the state of the class, its symbol on top."""
    counts, states = record["class_counts"], record["separation"]["states"]
    bars = _bars(ax, counts, states)
    tops = [count + 0.06 * max(counts) for count in counts]
    if len(counts) <= _MOST_BARS:
        for line in state_markers(ax, tops, states):
            line.set_markersize(4)
    if len(counts) <= _MOST_BARS // 3:
        for k, (count, top) in enumerate(zip(counts, tops, strict=True)):
            ax.annotate(str(count), (k, top), xytext=(0, 4), textcoords="offset points", ha="center", size="small")
    ax.set_ylim(0, 1.22 * max(counts))
    ax.set_ylabel("samples")
    name_classes(ax, marked_names(record))
    return bars


def class_recalls(record: DiagnosisRecord, ax: Axes) -> list[Rectangle]:
    """The share of each class's samples that is recognised, as bars; a hollow triangle if none is: lost."""
    bars = _bars(ax, record["accuracies"], record["separation"]["states"])
    _lost_marks(record, ax, [0.08] * len(bars))
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("recognised")
    name_classes(ax, marked_names(record))
    return bars


def _bars(ax: Axes, heights: Sequence[float | None], states: Sequence[str]) -> list[Rectangle]:
    """A bar per class with a height, in the colour of its state."""
    shown = [
        (k, height, state) for k, (height, state) in enumerate(zip(heights, states, strict=True)) if defined(height)
    ]
    places, tops, found = zip(*shown, strict=True) if shown else ((), (), ())
    return list(ax.bar(places, tops, color=[COLOURS[STATES[state].colour] for state in found], width=0.8).patches)


def class_lengths(record: DiagnosisRecord, ax: Axes) -> LengthArtists:
    """The length of each class's mean prediction, relative to the longest, with its state; rings: theory."""
    separation = record["separation"]
    lengths, states = separation["relative_norms"], separation["states"]
    measured = state_markers(ax, lengths, states)
    lost = _lost_marks(record, ax, [(length or 0.0) + 0.09 for length in lengths], 4)
    predicted: list[Line2D] = []
    theory = record["prediction"]
    if theory is not None and "lengths" in theory:  # records of earlier versions have none
        predicted = ax.plot(
            np.arange(len(lengths)), theory["lengths"], "o", markersize=10, markerfacecolor="none",
            markeredgecolor=COLOURS["muted"], markeredgewidth=0.8, label="theory",
        )  # fmt: skip
    ax.axhline(separation["vanish_threshold"], color=COLOURS["muted"], linewidth=0.7, linestyle=":")
    ax.set_ylim(-0.06, 1.18)
    ax.set_ylabel("length of mean predictions")
    name_classes(ax, marked_names(record))
    marks = [*measured, *lost, *predicted]
    near = {"columnspacing": 0.8, "handletextpad": 0.1} if len(marks) > 4 else {}
    row = ax.get_figure(root=True).get_figwidth() / _MARK  # type: ignore[union-attr]
    legend_above(ax, len(marks) if len(marks) <= row else 2, handles=marks, **near)
    return LengthArtists(measured, predicted)


def _lost_marks(record: DiagnosisRecord, ax: Axes, heights: Sequence[float], size: float = 6) -> list[Line2D]:
    """A hollow triangle at each lost class."""
    lost = [k for k, marks in enumerate(class_marks(record)) if "lost" in marks]
    if not lost:
        return []
    return ax.plot(
        lost, [heights[k] for k in lost], "v", color=COLOURS["ink"], markerfacecolor="none", markersize=size,
        linestyle="none", label="lost",
    )  # fmt: skip


def price_readings(record: DiagnosisRecord, ax: Axes) -> ReadingArtists:
    """The penalty that each class implies, beside the one implied by the norms, the training's and the threshold."""
    effective, prediction = record["effective"], record["prediction"]
    if effective is None or not any(map(defined, effective["by_class"])):
        why = "all classes collapsed:\nnothing to read" if effective is None else "no class's scores\nimply a penalty"
        ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center")
        ax.set(xticks=[], yticks=[])
        return ReadingArtists([], [])
    normalised = (record.get("model") or {}).get("problem") is not None  # its thresholds are not values of lambda_z
    classes = state_markers(ax, effective["by_class"], record["separation"]["states"])
    first = None if normalised or prediction is None else float(first_thresholds(prediction).min())
    levels = [
        ("norms", effective["lambda_z"], "ink", "-"),
        ("as trained", record["known"]["lambda_z"], "muted", "--"),
        ("first threshold", first, "vermilion", ":"),
    ]
    lines: list[Artist] = [
        ax.axhline(value, color=COLOURS[colour], linestyle=dashes, linewidth=1.0, label=f"{name} {number_text(value)}")
        for name, value, colour, dashes in levels
        if defined(value)
    ]
    heights = [value for value in (*effective["by_class"], *(level[1] for level in levels)) if defined(value)]
    ax.set_ylim(0, 1.1 * max(heights, default=1.0))
    ax.set_ylabel("penalty λ$_Z$ by class")
    name_classes(ax, record["class_names"])
    if lines:
        legend_above(ax, handles=lines)
    return ReadingArtists(classes, lines)


def class_thresholds(record: Shown, ax: Axes, classes: Sequence[int] | None = None) -> list[Line2D]:
    """The penalty above which each class is given up, beside the penalty of the network: for many sizes of classes.

    Args:
        record: of a diagnosis or an optimum, with a prediction.
        ax: where to draw.
        classes: which to draw; all by default. The largest come first.
    """
    theory, states, counts = record["prediction"], record["separation"]["states"], record["class_counts"]
    order = sorted(range(len(counts)) if classes is None else classes, key=lambda k: -counts[k])
    assert theory is not None
    levels, names = first_thresholds(theory), marked_names(record)
    lines = state_markers(ax, levels[order].tolist(), [states[k] for k in order])
    here = price_of(theory)
    ax.axhline(here, color=COLOURS["ink"], linewidth=1.0)
    # Thresholds fall to the right: the name of the line stands on its freer side, below it if there is room.
    drawn = levels[order]
    right = bool(np.mean(drawn < here) > 0.5)
    room = np.log(here / np.nanmin(drawn)) > _ROOM_BELOW * np.log(np.nanmax(drawn) / np.nanmin(drawn))
    below = bool(room) and not right
    ax.annotate(
        f"you are here: {number_text(here)}", (int(right), here), xycoords=("axes fraction", "data"),
        xytext=(-3 if right else 3, -2 if below else 2), textcoords="offset points", ha="right" if right else "left",
        va="top" if below else "bottom", size="small",
    )  # fmt: skip
    ax.set_yscale("log")
    log_ticks(ax.yaxis, (1.0, 2.0, 3.0, 5.0, 7.0))
    ax.set_ylabel("threshold λ$_W$" if unit_of(theory) == "lambda_w" else "threshold λ$_Z$")
    name_classes(ax, [names[k] for k in order], "classes, the largest first")
    return lines


def diagnosis_figure(record: Mapping[str, Any]) -> Figure:
    """The whole diagnosis in one picture: mean predictions measured and predicted, lengths, and penalties by class.

    Args:
        record: Of a diagnosis.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked(record, DiagnosisRecord)
    part = part_of(data, shown_classes(data))
    maps = [(data["Z"], "network"), (None if data["prediction"] is None else data["prediction"]["Z"], "theory")]
    maps = [(Z, name) for Z, name in maps if Z is not None]
    with styled():
        figure = Figure(figsize=(6.9, 5.6 if maps else 2.9), layout="constrained")
        grid = figure.add_gridspec(2 if maps else 1, 2, height_ratios=[1.35, 1] if maps else None)
        figure.suptitle(textwrap.fill(data["headline"], 90), parse_math=False)
        vmax = largest_score([Z for Z, _ in maps])
        for place, (Z, name) in enumerate(maps):
            ax = figure.add_subplot(grid[0, place])
            title = f"{name}, mean predictions"
            away = model_distance(data)
            if name == "theory" and defined(away):
                title += f" (network {share_text(away)} away)"
            clusters = same_counts(data["class_counts"])
            names = marked_names(data) if name == "network" else data["class_names"]
            heatmap(Z, ax, clusters=clusters, class_names=names, vmax=vmax, title=title)
            ax.set_xlabel("samples of class")
            ax.set_ylabel("score for class")
        class_lengths(part, figure.add_subplot(grid[-1, 0]))
        price_readings(part, figure.add_subplot(grid[-1, 1]))
    return figure
