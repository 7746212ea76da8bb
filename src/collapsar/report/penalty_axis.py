"""The axis of penalties: thresholds of the theory, and the runs among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from collapsar.core.record_types import DemoRecord, Features, LevelsRecord
from collapsar.report.record import checked_demo, defined
from collapsar.report.style import COLOURS, STATES
from collapsar.report.words import Clustered, cluster_names, number_text

_LETTER_INCHES = 0.049  # mean width of a letter of a label
_LANE = 0.36  # height of a cluster's band; below it the words of the bands
_BELOW_LANES = 0.3  # room under the lowest lane for the words of its bands


@dataclass(frozen=True)
class PenaltyAxis:
    """What is drawn: thresholds of one feature model, and of each network its penalty, predicted and measured states.

    Classes in ``gradual`` merge without a sharp threshold: theirs is marked as approximate, and that at which they
    vanish as in ``latest``. ``unit`` is of the thresholds, None in a demonstration.
    """

    classes: Clustered
    features: Features
    levels: LevelsRecord
    runs: Sequence[tuple[float, Sequence[str], Sequence[str]]]
    gradual: Sequence[int] = ()
    unit: str | None = None


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

    Raises:
        ValueError: The record is not that of a demonstration, or incomplete.
    """
    return penalty_axis(demo_axis(checked_demo(record)), ax)


def demo_axis(data: DemoRecord) -> PenaltyAxis:
    """The runs of a demonstration among the thresholds of its own feature model."""
    runs = [(run["lambda_z"], run["predicted"]["states"], run["measured"]["states"]) for run in data["runs"]]
    return PenaltyAxis(data, data["features"], data["thresholds"][data["features"]], runs)


def penalty_axis(axis: PenaltyAxis, ax: Axes) -> ThresholdArtists:
    """``threshold_line`` of values that have been checked."""
    clusters, places = axis.classes["clusters"], sorted({place for place, *_ in axis.runs})
    shown = [*places, *(x for x in _numbers(axis.levels) if x > 0)]
    left, right = min(shown) / 1.6, max(shown) * 2.2
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    names, num_lanes = cluster_names(axis.classes), len(clusters)
    ax.set_ylim(-0.5 - _BELOW_LANES, num_lanes - 0.7)
    artists = ThresholdArtists([], [], [], [])
    for j, cluster in enumerate(clusters):
        lane = num_lanes - 1 - j
        regimes = _regimes(axis, cluster, left, right)
        for state, begin, end in regimes:
            colour = COLOURS[STATES[state].colour]
            band = Rectangle((begin, lane - _LANE / 2), end - begin, _LANE, color=colour, alpha=0.22, lw=0)
            ax.add_patch(band)
            artists.bands.append(band)
            if begin > left:
                ends = [lane - _LANE / 2, lane + _LANE / 2]
                artists.thresholds.extend(ax.plot([begin] * 2, ends, color=COLOURS["ink"], linewidth=0.9))
        gradual = cluster[0] in axis.gradual
        signs = {"merged": "≈ " if gradual else "", "vanished": latest(axis.features) if gradual else ""}
        artists.labels.extend(_band_words(ax, regimes, lane, signs))
        for place in places:
            artists.markers.extend(_markers(axis, ax, place, cluster, lane))
    ax.set_yticks(range(num_lanes - 1, -1, -1), names, parse_math=False)
    _run_ticks(ax, places)
    what = r"head decay $\lambda_W$" if axis.unit == "lambda_w" else r"penalty $\lambda_Z$"
    ax.set_xlabel(f"{what} (logarithmic)" if axis.unit else f"{what} of the runs (logarithmic)")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return artists


def latest(features: Features) -> str:
    """The sign before the penalty at which a class vanishes that has already lost its own direction.

    Signed classes vanish exactly there; nonnegative ones, which share a direction by then, at the latest there.
    """
    return "≤ " if features == "nonnegative" else ""


def _numbers(levels: LevelsRecord) -> list[float]:
    """All thresholds of a feature model that are defined."""
    values = [levels["complete"], *levels["vanish"], *levels.get("merge", ())]
    return [float(value) for value in values if defined(value)]


def _regimes(axis: PenaltyAxis, cluster: Sequence[int], left: float, right: float) -> list[tuple[str, float, float]]:
    """State, begin and end of the bands of a cluster.

    A class whose column is zero at every penalty has no threshold to vanish, and several of one size behind a
    normalisation never do; if the predicted states show neither, the threshold is missing, and nothing is drawn.
    """
    levels, k = axis.levels, cluster[0]
    vanish, merge = levels["vanish"][k], levels["merge"][k] if "merge" in levels else None
    if not defined(vanish):
        if all(predicted[k] == "vanished" for _, predicted, _ in axis.runs):
            vanish = left
        elif axis.unit == "lambda_w" and len(cluster) > 1:
            vanish = right
        else:
            return []
    merge = min(merge, vanish) if defined(merge) else vanish
    spans = (("separated", left, merge), ("merged", merge, vanish), ("vanished", vanish, right))
    inside = [(state, max(begin, left), min(end, right)) for state, begin, end in spans]
    return [(state, begin, end) for state, begin, end in inside if end > begin * (1 + 1e-9)]


def _markers(axis: PenaltyAxis, ax: Axes, place: float, cluster: Sequence[int], lane: float) -> list[Line2D]:
    """A marker for every state that classes of a cluster have at this penalty, side by side if several."""
    here = [measured for at, _, measured in axis.runs if at == place]
    found = [state for state in STATES if any(states[k] == state for states in here for k in cluster)]
    drawn = []
    for i, state in enumerate(found):
        style = STATES[state]
        height = lane + 0.2 * (i - (len(found) - 1) / 2)
        drawn += ax.plot(
            place, height, style.marker, color=COLOURS[style.colour], markersize=7, markeredgecolor="white",
            markeredgewidth=0.7, zorder=4, clip_on=False, label=f"measured: {state}",
        )  # fmt: skip
    return drawn


def _band_words(
    ax: Axes, regimes: Sequence[tuple[str, float, float]], lane: float, signs: Mapping[str, str]
) -> list[Text]:
    """Under each band its state and where it begins; from the right, words without room turn left or are left out."""
    left, right = ax.get_xlim()
    letter = _LETTER_INCHES * ax.figure.dpi / ax.get_window_extent().width
    texts: list[Text] = []
    free = 1.0  # share of the axis that is still free, from the left
    for state, begin, _ in reversed(regimes):
        words = state if begin == left else f"{state}\nfrom {signs.get(state, '')}{number_text(begin)}"
        width = letter * (max(map(len, words.split("\n"))) + 1)
        place = math.log(begin / left) / math.log(right / left)
        side = "left" if place + width <= free else "right"
        if side == "right" and (place > free or place - width < 0):
            continue
        offset = {"xytext": (1 if side == "left" else -1, -2), "textcoords": "offset points", "size": "small"}
        texts.append(ax.annotate(words, (begin, lane - _LANE / 2), ha=side, va="top", **offset))
        free = place if side == "left" else place - width
    return texts[::-1]


def _run_ticks(ax: Axes, places: Sequence[float]) -> None:
    """The penalties of the runs as ticks; a label that would touch its neighbour goes one line down."""
    left, right = ax.get_xlim()
    letter = _LETTER_INCHES * ax.figure.dpi / ax.get_window_extent().width
    texts, low = [], False
    for i, place in enumerate(places):
        text = number_text(place)
        near = i > 0 and math.log(place / places[i - 1]) / math.log(right / left) < letter * (len(text) + 1)
        low = near and not low
        texts.append(f"\n{text}" if low else text)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(places, texts)
