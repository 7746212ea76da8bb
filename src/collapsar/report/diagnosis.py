"""Pictures of a diagnosis: what became of each class, and the penalty that each one shows. Draws, computes nothing.

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

from collapsar.core.records import to_json
from collapsar.report.class_marks import class_marks, marked_names, part_of, shown_classes
from collapsar.report.plots import heatmap
from collapsar.report.record import Record, defined
from collapsar.report.style import COLOURS, STATES, styled
from collapsar.report.words import lambda_text, share_text

__all__ = [
    "LengthArtists",
    "ReadingArtists",
    "checked_diagnosis",
    "class_lengths",
    "diagnosis_figure",
    "model_distance",
    "name_classes",
    "price_readings",
    "same_counts",
]

_MOST_NAMES = 20
_KEYS = (
    *("headline", "words", "source", "class_names", "class_counts", "accuracies", "Z", "b", "separation", "metrics"),
    *("known", "forces", "at_rest", "effective", "fit", "prediction", "notes"),
)


class LengthArtists(NamedTuple):
    """Markers of the classes as measured, one line per state, and rings of all as predicted."""

    measured: list[Line2D]
    predicted: list[Line2D]


class ReadingArtists(NamedTuple):
    """Markers of the classes with a reading, one line per state, and the lines for the readings of the whole."""

    classes: list[Line2D]
    lines: list[Artist]


def checked_diagnosis(record: Mapping[str, Any]) -> Record:
    """The record of a diagnosis as plain JSON values.

    Raises:
        ValueError: It is another kind of record, or a field is missing.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if kind != "diagnosis":
        raise ValueError(f'`record` must be the record of a diagnosis (kind "diagnosis"), got kind {kind!r}')
    data: Record = to_json(record)
    missing = [key for key in _KEYS if key not in data]
    if missing:
        raise ValueError(f"`record` must hold {', '.join(_KEYS)}; missing: {', '.join(missing)}")
    return data


def class_lengths(record: Mapping[str, Any], ax: Axes) -> LengthArtists:
    """How long the mean prediction of each class is, relative to the longest, with its state; rings: theory.

    Args:
        record: Of a diagnosis, or the part of it that this reads: class names, separation, prediction.
        ax: Where to draw.
    """
    separation = record["separation"]
    states = separation["states"]
    measured = _markers(ax, separation["relative_norms"], states)
    lost = [k for k, marks in enumerate(class_marks(record)) if "lost" in marks]
    if lost:
        heights = [(separation["relative_norms"][k] or 0.0) + 0.09 for k in lost]
        ax.plot(
            lost,
            heights,
            "v",
            color=COLOURS["ink"],
            markerfacecolor="none",
            markersize=4,
            linestyle="none",
            label="lost",
        )
    predicted: list[Line2D] = []
    theory = record["prediction"]
    if theory is not None and theory.get("lengths") is not None:  # records of earlier versions have none
        lengths = theory["lengths"]
        predicted = ax.plot(
            np.arange(len(lengths)), lengths, "o", markersize=10, markerfacecolor="none",
            markeredgecolor=COLOURS["muted"], markeredgewidth=0.8, label="theory",
        )  # fmt: skip
    ax.axhline(separation["vanish_threshold"], color=COLOURS["muted"], linewidth=0.7, linestyle=":")
    ax.set_ylim(-0.06, 1.18)
    ax.set_ylabel("length of mean scores")
    name_classes(ax, marked_names(record))
    _legend(ax, dict.fromkeys(states), bool(lost), bool(predicted))
    return LengthArtists(measured, predicted)


def price_readings(record: Mapping[str, Any], ax: Axes) -> ReadingArtists:
    """The penalty that each class shows, beside the one that the norms show, the one of training, the threshold.

    Args:
        record: Of a diagnosis.
        ax: Where to draw.
    """
    effective, prediction = record["effective"], record["prediction"]
    if effective is None:
        ax.text(0.5, 0.5, "all classes collapsed:\nnothing to read", transform=ax.transAxes, ha="center", va="center")
        ax.set_xticks([])
        ax.set_yticks([])
        return ReadingArtists([], [])
    normalised = (record.get("model") or {}).get("problem") is not None  # its thresholds are no lambda_z of the norms
    classes = _markers(ax, effective["by_class"], record["separation"]["states"])
    levels = [
        ("norms", effective["lambda_z"], "ink", "-"),
        ("as trained", record["known"]["lambda_z"], "muted", "--"),
        ("first threshold", None if normalised else _first(prediction), "vermilion", ":"),
    ]
    lines: list[Artist] = [
        ax.axhline(value, color=COLOURS[colour], linestyle=dashes, linewidth=1.0, label=f"{name} {lambda_text(value)}")
        for name, value, colour, dashes in levels
        if defined(value)
    ]
    heights = [value for value in (*effective["by_class"], *(level[1] for level in levels)) if defined(value)]
    ax.set_ylim(0, 1.1 * max(heights, default=1.0))
    ax.set_ylabel("penalty λ$_Z$ by class")
    name_classes(ax, record["class_names"])
    if lines:
        ax.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return ReadingArtists(classes, lines)


def diagnosis_figure(record: Mapping[str, Any]) -> Figure:
    """The whole diagnosis in one picture: mean scores beside theory's, lengths, and penalties by class.

    Args:
        record: Of a diagnosis.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked_diagnosis(record)
    part = part_of(data, shown_classes(data))
    maps = [(data["Z"], "network"), (None if data["prediction"] is None else data["prediction"]["Z"], "theory")]
    maps = [(Z, name) for Z, name in maps if Z is not None]
    with styled():
        figure = Figure(figsize=(6.9, 5.6 if maps else 2.9), layout="constrained")
        grid = figure.add_gridspec(2 if maps else 1, 2, height_ratios=[1.35, 1] if maps else None)
        figure.suptitle(textwrap.fill(data["headline"], 90), parse_math=False)
        vmax = max((float(np.nanmax(np.abs(np.array(Z, dtype=float)), initial=0.0)) for Z, _ in maps), default=0.0)
        for place, (Z, name) in enumerate(maps):
            ax = figure.add_subplot(grid[0, place])
            title = f"{name}, mean scores"
            away = model_distance(data)
            if name == "theory" and defined(away):
                title += f" (network {share_text(away)} away)"
            clusters = same_counts(data["class_counts"])
            names = marked_names(data) if name == "network" else data["class_names"]
            heatmap(Z, ax, clusters=clusters, class_names=names, vmax=vmax or 1.0, title=title)
            ax.set_xlabel("samples of class")
            ax.set_ylabel("score for class")
        class_lengths(part, figure.add_subplot(grid[-1, 0]))
        price_readings(part, figure.add_subplot(grid[-1, 1]))
    return figure


def _markers(ax: Axes, values: Sequence[float | None], states: Sequence[str]) -> list[Line2D]:
    """A marker per class with a value; one line per state, in its style."""
    found = []
    for state in dict.fromkeys(states):
        points = [(k, v) for k, (v, s) in enumerate(zip(values, states, strict=True)) if s == state and defined(v)]
        if points:
            style = STATES[state]
            found += ax.plot(
                *zip(*points, strict=True), style.marker, color=COLOURS[style.colour], markersize=5, linestyle="none"
            )
    return found


def _legend(ax: Axes, states: Mapping[str, None], lost: bool, theory: bool) -> None:
    marks = [Line2D([], [], linestyle="none", marker=STATES[s].marker, color=COLOURS[STATES[s].colour], label=s)
             for s in states]  # fmt: skip
    if lost:
        marks.append(Line2D([], [], linestyle="none", marker="v", markerfacecolor="none", color=COLOURS["ink"],
                            label="lost"))  # fmt: skip
    if theory:
        marks.append(Line2D([], [], linestyle="none", marker="o", markersize=8, markerfacecolor="none",
                            markeredgecolor=COLOURS["muted"], label="theory"))  # fmt: skip
    near = {"columnspacing": 0.8, "handletextpad": 0.1} if len(marks) > 4 else {}
    ax.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(marks), borderaxespad=0.2, **near)


def name_classes(ax: Axes, names: Sequence[str]) -> None:
    """Class names, or for many only their order, below an axis with a place per class."""
    ax.set_xlim(-0.7, len(names) - 0.3)
    if len(names) <= _MOST_NAMES:
        shown = [name if len(name) <= 12 else f"{name[:11]}…" for name in names]
        ax.set_xticks(range(len(names)), shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
    else:
        ax.set_xlabel("class")


def _first(prediction: Mapping[str, Any] | None) -> float | None:
    """Where the first class merges or vanishes."""
    if prediction is None:
        return None
    levels = [x for x in (*prediction["merge"], *prediction["vanish"]) if defined(x)]
    return min(levels, default=None)


def model_distance(data: Record) -> float | None:
    """Distance of the mean scores to the model that predicts."""
    if (own := (data.get("model") or {}).get("distance")) is not None:
        return own["Z"]
    if data["fit"] is None:
        return None
    features = data["prediction"]["features"] if data["prediction"] is not None else "signed"
    return data["fit"]["models"][features]["distance"]["Z"]


def same_counts(counts: Sequence[int]) -> list[list[int]]:
    """Classes of one size together, the largest first; in their own order where nearly all differ."""
    groups: dict[int, list[int]] = {}
    for k in sorted(range(len(counts)), key=lambda k: (-counts[k], k)):
        groups.setdefault(counts[k], []).append(k)
    return list(groups.values()) if len(groups) <= 8 else [[k for group in groups.values() for k in group]]
