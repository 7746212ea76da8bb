"""The axis of penalties: thresholds of the theory, and the runs among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from collapsar.report.record import Record, checked_demo, defined
from collapsar.report.style import COLOURS, STATES
from collapsar.report.words import STATE_WORDS, cluster_names, lambda_text

__all__ = ["ThresholdArtists", "penalty_axis", "threshold_line"]

_LETTER_INCHES = 0.049  # mean width of a letter of a threshold's label
_LABEL_INCHES = 0.3  # height of a threshold's label
_BELOW_LANES = 0.12  # room under the lowest lane for the words of its bands
_LANE = 0.46  # height of a cluster's band on the threshold line


class ThresholdArtists(NamedTuple):
    """Bands: what theory predicts; markers: what was measured; thresholds: their lines and labels."""

    bands: list[Rectangle]
    markers: list[Line2D]
    thresholds: list[Line2D]
    labels: list[Text]


def threshold_line(record: Mapping[str, Any], ax: Axes) -> ThresholdArtists:
    """The axis of penalties: a lane per cluster, its bands predicted by theory, its markers measured.

    Thresholds are those of the record's own feature model. A marker on a band of its own colour is a
    prediction that came true.

    Args:
        record: Of a demonstration.
        ax: Where to draw.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    return penalty_axis(checked_demo(record), ax)


def penalty_axis(data: Record, ax: Axes) -> ThresholdArtists:
    """``threshold_line`` of a record that has been checked.

    Args:
        data: ``class_counts``, ``features``, ``clusters``, ``thresholds`` and ``runs``; of each run only ``lambda_z``
            and the predicted and measured ``states`` are read.
        ax: Where to draw.
    """
    levels = data["thresholds"][data["features"]]
    places = sorted({run["lambda_z"] for run in data["runs"]})
    shown = [*places, *(x for x in _numbers(levels) if x > 0)]
    left, right = min(shown) / 1.6, max(shown) * 1.6
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    names, num_lanes = cluster_names(data), len(data["clusters"])
    bands: list[Rectangle] = []
    labels: list[Text] = []
    markers: list[Line2D] = []
    for j, cluster in enumerate(data["clusters"]):
        lane = num_lanes - 1 - j
        for state, begin, end in _regimes(data, cluster[0], left, right):
            colour = COLOURS[STATES[state].colour]
            band = Rectangle((begin, lane - _LANE / 2), end - begin, _LANE, color=colour, alpha=0.22, lw=0)
            ax.add_patch(band)
            bands.append(band)
            if math.log(end / begin) > 0.13 * math.log(right / left):
                below = {"xytext": (1, -2), "textcoords": "offset points", "va": "top", "size": "small"}
                word = ax.annotate(STATE_WORDS[state], (begin, lane - _LANE / 2), **below)
                labels.append(word)
        for place in places:
            markers += _markers(data, ax, place, j, lane)
    ticks, texts = _threshold_marks(ax, data, names)
    ax.set_yticks(range(num_lanes - 1, -1, -1), names, parse_math=False)
    _run_ticks(ax, places)
    ax.set_xlabel(r"penalty $\lambda_Z$ of the runs (logarithmic)")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ThresholdArtists(bands, markers, ticks, labels + texts)


def _numbers(levels: Mapping[str, Any]) -> list[float]:
    """All thresholds of a feature model that are defined."""
    values = [levels.get("complete"), *levels["vanish"], *levels.get("merge", ())]
    return [float(value) for value in values if defined(value)]


def _regimes(data: Record, k: int, left: float, right: float) -> list[tuple[str, float, float]]:
    """State, begin and end of the bands of class k.

    A class whose column is zero at every penalty has no threshold to vanish; where the predicted states do not say
    so, the threshold is missing and there is nothing to draw.
    """
    levels = data["thresholds"][data["features"]]
    vanish, merge = levels["vanish"][k], levels["merge"][k] if "merge" in levels else None
    if not defined(vanish):
        if any(run["predicted"]["states"][k] != "vanished" for run in data["runs"]):
            return []
        vanish = left
    merge = min(merge, vanish) if defined(merge) else vanish
    spans = (("separated", left, merge), ("merged", merge, vanish), ("vanished", vanish, right))
    inside = [(state, max(begin, left), min(end, right)) for state, begin, end in spans]
    return [(state, begin, end) for state, begin, end in inside if end > begin * (1 + 1e-9)]


def _markers(data: Record, ax: Axes, place: float, j: int, lane: float) -> list[Line2D]:
    """A marker for every state that classes of cluster j have at this penalty, side by side if several."""
    cluster = data["clusters"][j]
    here = [run["measured"]["states"] for run in data["runs"] if run["lambda_z"] == place]
    found = [state for state in STATES if any(states[k] == state for states in here for k in cluster)]
    drawn = []
    for i, state in enumerate(found):
        style = STATES[state]
        height = lane + 0.2 * (i - (len(found) - 1) / 2)
        drawn += ax.plot(
            place,
            height,
            style.marker,
            color=COLOURS[style.colour],
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.7,
            zorder=4,
            clip_on=False,
            label=f"measured: {state}",
        )
    return drawn


def _threshold_marks(ax: Axes, data: Record, names: Sequence[str]) -> tuple[list[Line2D], list[Text]]:
    """A line through the lanes that a threshold concerns, and its label above all lanes, clear of the others."""
    marks = _marks(data, names)
    num_lanes, (left, right) = len(names), ax.get_xlim()
    box, dpi = ax.get_window_extent(), ax.figure.dpi
    letter = _LETTER_INCHES * dpi / box.width  # as shares of the axis
    places = [math.log(x / left) / math.log(right / left) for x, _, _ in marks]
    widths = [letter * max(len(text), len(lambda_text(x))) for x, text, _ in marks]
    sides, floors = _arranged(places, widths)
    num_floors = max(floors, default=0) + 1
    floor_share = min(_LABEL_INCHES * dpi / box.height, 0.8 / num_floors)
    span = (num_lanes + _BELOW_LANES) / (1 - num_floors * floor_share)
    ax.set_ylim(-0.5 - _BELOW_LANES, -0.5 - _BELOW_LANES + span)
    lines, labels = [], []
    for (x, text, lane), side, floor in zip(marks, sides, floors, strict=True):
        top = num_lanes - 0.6 + floor * floor_share * span
        lines += ax.plot([x, x], [lane - _LANE / 2, top], color=COLOURS["ink"], linewidth=0.9, clip_on=False)
        words = f"{text}\n{lambda_text(x)}"
        labels.append(ax.text(x, top, words, ha=side, va="bottom", size="small", parse_math=False))
    return lines, labels


def _marks(data: Record, names: Sequence[str]) -> list[tuple[float, str, int]]:
    """Thresholds in ascending order: value, label, lowest lane concerned. Complete collapse stands for those at it."""
    levels, num_lanes = data["thresholds"][data["features"]], len(names)
    marks: list[tuple[float, str, int]] = []
    for j, cluster in enumerate(data["clusters"]):
        for key, verb in (("merge", "merges"), ("vanish", "vanishes")):
            value = levels[key][cluster[0]] if key in levels else None
            if defined(value):
                marks.append((value, f"{names[j]} {verb}", num_lanes - 1 - j))
    complete = levels.get("complete")
    if defined(complete):
        marks = [mark for mark in marks if not math.isclose(mark[0], complete, rel_tol=1e-6)]
        marks.append((complete, "all collapse", 0))
    return sorted(marks)


def _arranged(places: Sequence[float], widths: Sequence[float]) -> tuple[list[str], list[int]]:
    """Alignment and floor of each label: neighbours turn away from each other, and move up where that is not enough."""
    sides = ["center"] * len(places)
    for i in range(1, len(places)):
        if places[i] - places[i - 1] < (widths[i] + widths[i - 1]) / 2:
            sides[i - 1 : i + 1] = ["right" if sides[i - 1] == "center" else sides[i - 1], "left"]
    share = {"right": 1.0, "center": 0.5, "left": 0.0}
    floors: list[int] = []
    begins: list[float] = []  # of the leftmost label on each floor; from the right, so that no line crosses a label
    for place, width, side in reversed(list(zip(places, widths, sides, strict=True))):
        begin = place - share[side] * width
        floor = next((i for i, other in enumerate(begins) if begin + width <= other), len(begins))
        begins[floor : floor + 1] = [begin]
        floors.insert(0, floor)
    return sides, floors


def _run_ticks(ax: Axes, places: Sequence[float]) -> None:
    """The penalties of the runs as ticks; a label that would touch its neighbour goes one line down."""
    left, right = ax.get_xlim()
    letter = _LETTER_INCHES * ax.figure.dpi / ax.get_window_extent().width
    texts, low = [], False
    for i, place in enumerate(places):
        text = lambda_text(place)
        near = i > 0 and math.log(place / places[i - 1]) / math.log(right / left) < letter * (len(text) + 1)
        low = near and not low
        texts.append(f"\n{text}" if low else text)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(places, texts)
