"""Functions of (parts of a record, an ax): each draws, returns its artists, and computes nothing.

Make the figure inside ``styled()``; nothing here touches pyplot or calls show.

Example:
    >>> from matplotlib.figure import Figure
    >>> from collapsar.report.style import styled
    >>> with styled():
    ...     ax = Figure().subplots()
    ...     artists = heatmap([[1.0, -1.0], [-1.0, 1.0]], ax, clusters=[[0], [1]], class_names=["cat", "dog"])
    >>> len(artists.lines)
    2
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from collapsar.report.penalty_axis import threshold_line
from collapsar.report.record import checked_demo, cluster_of_classes, defined, matrix
from collapsar.report.style import COLOURS, DIVERGING, STATES, diverging_norm, styled
from collapsar.report.words import data_words, number_text, outcome, power_text, sentence, share_text, shortened

MOST_NAMES = 20  # class names beside an axis; more must be small, and twice as many would overlap at column width
_LONGEST_NAME = 12
VANISHED_REMARK = "vanished classes:\nnoise over noise"


class HeatmapArtists(NamedTuple):
    """The image, and the lines between clusters."""

    image: AxesImage
    lines: list[Line2D]


class CurveArtists(NamedTuple):
    """A line per number, and the remark that replaces undefined lines."""

    lines: list[Line2D]
    remark: Text | None


class Chart(NamedTuple):
    """Numbers of a training over its epochs: key in its records, name, colour and dashes of each."""

    title: str
    logarithmic: bool
    lines: tuple[tuple[str, str, str, str], ...]
    definition: str = ""


NC1 = Chart("NC1", True, (("nc1_uniform", "uniform", "blue", "-"), ("nc1_weighted", "weighted", "muted", ":")),
            "def-nc1")  # fmt: skip
CURVES = (
    Chart("Test images recognised", False, (
        ("test_majority_accuracy", "largest classes", "blue", "-"),
        ("test_minority_accuracy", "smallest", "vermilion", "-"),
        ("test_minority", "smallest", "vermilion", "-"),
    )),
    NC1,
    Chart("CDNV", True, (("cdnv", "mean", "blue", "-"), ("cdnv_max", "worst pair", "vermilion", ":")), "def-cdnv"),
    Chart("NC2 and NC3", False, (
        ("nc2_etf", "NC2, simplex", "blue", "-"),
        ("nc3_self_duality", "NC3, self-duality", "green", "--"),
    ), "def-nc23"),
    Chart("Imbalance of forces", True, (("stationarity", "at the last layer", "ink", "-"),), "def-rest"),
)  # fmt: skip


# --- what several pictures have in common


def name_classes(ax: Axes, names: Sequence[str], order: str = "class") -> None:
    """Class names below an axis with a place per class; for very many classes only their ``order``."""
    ax.set_xlim(-0.7, len(names) - 0.3)
    if len(names) <= 2 * MOST_NAMES:
        _class_ticks(ax, names)
    else:
        ax.set_xlabel(order)


def _class_ticks(ax: Axes, names: Sequence[str]) -> list[str]:
    """The names below the axis, shortened, upright if they are long."""
    shown = [shortened(name, _LONGEST_NAME) for name in names]
    if len(names) > MOST_NAMES:
        ax.tick_params(axis="x", labelsize="x-small")
    ax.set_xticks(range(len(names)), shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
    return shown


def state_markers(ax: Axes, values: Sequence[float | None], states: Sequence[str]) -> list[Line2D]:
    """A marker per class with a value; one line per state, in its style."""
    found = []
    for state in dict.fromkeys(states):
        points = [(k, v) for k, (v, s) in enumerate(zip(values, states, strict=True)) if s == state and defined(v)]
        if points:
            style = STATES[state]
            found += ax.plot(
                *zip(*points, strict=True), style.marker, color=COLOURS[style.colour], markersize=5, linestyle="none",
                label=state,
            )  # fmt: skip
    return found


def legend_above(ax: Axes, ncols: int = 2, **more: Any) -> Legend:
    """The legend above the axes, out of the way of everything drawn."""
    return ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, borderaxespad=0.2, **more)


def log_ticks(axis: Axis, subs: Sequence[float] = (1.0,)) -> None:
    """Plain numbers at these multiples of the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    axis.set_minor_formatter(NullFormatter())


def largest_score(matrices: Sequence[Any]) -> float:
    """The magnitude that gets the full colour in all maps of these mean predictions, in nats."""
    return max((float(np.nanmax(np.abs(matrix(Z)), initial=0.0)) for Z in matrices), default=0.0) or 1.0


# --- maps and curves


def heatmap(
    Z: Any,
    ax: Axes,
    *,
    clusters: Sequence[Sequence[int]] = (),
    class_names: Sequence[str] | None = None,
    vmax: float | None = None,
    title: str = "",
) -> HeatmapArtists:
    """Mean predictions as colours: blue for, orange against, classes in the order of their clusters.

    Args:
        Z: Shape (K, K), [logit, class], in nats; columns of None or NaN are classes without images.
        ax: Where to draw.
        clusters: Class indices of each cluster; lines are drawn between them. Empty: one cluster.
        class_names: K names; None leaves the axes without labels.
        vmax: The magnitude that gets the full colour; default the largest in Z.
        title: Above the map.

    Raises:
        ValueError: ``Z`` is not square, lengths disagree or ``vmax`` is not positive.
    """
    Z = matrix(Z)
    num_classes = len(Z)
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"`class_names` must hold a name for each of the {num_classes} classes, got {len(class_names)}"
        )
    if vmax is None:
        vmax = largest_score([Z])
    if not vmax > 0:
        raise ValueError(f"`vmax` must be positive, got {vmax}; leave it out for the largest entry")
    parts = cluster_of_classes(clusters, num_classes)
    order = [k for part in parts for k in part]
    image = ax.imshow(Z[np.ix_(order, order)], cmap=DIVERGING, norm=diverging_norm(vmax), aspect="equal")
    edges = np.cumsum([len(part) for part in parts])[:-1] - 0.5
    style: dict[str, Any] = {"color": COLOURS["ink"], "linewidth": 0.8}
    lines = [draw(edge, **style) for edge in edges for draw in (ax.axvline, ax.axhline)]
    ax.spines[:].set_visible(True)
    ax.tick_params(length=0)
    ax.set_title(title, parse_math=False)
    if class_names is None or num_classes > 2 * MOST_NAMES:
        ax.set_xticks([])
        ax.set_yticks([])
    else:
        if num_classes > MOST_NAMES:
            ax.tick_params(axis="y", labelsize="x-small")
        ax.set_yticks(range(num_classes), _class_ticks(ax, [class_names[k] for k in order]), parse_math=False)
    return HeatmapArtists(image, lines)


def curves_over_epochs(
    history: Sequence[Mapping[str, Any]], chart: Chart, ax: Axes, *, remark: str = ""
) -> CurveArtists:
    """A chart of a training; undefined points are gaps, and a remark says so if a history has no numbers at all.

    Args:
        history: Records with ``epoch`` and the keys of the chart.
        chart: Which numbers.
        ax: Where to draw.
        remark: A word of caution, written into the axes.
    """
    epochs, lines = [entry["epoch"] for entry in history], []
    for key, label, colour, dashes in chart.lines:
        values = [entry.get(key) for entry in history]
        # The logarithm of 0 is as undefined as None.
        heights = [float(v) if defined(v) and (v > 0 or not chart.logarithmic) else math.nan for v in values]
        if np.isfinite(heights).any():
            lines += ax.plot(epochs, heights, dashes, color=COLOURS[colour], label=label)
    ax.set_xlabel("epoch")
    if not lines:
        remark = f"{chart.title} is undefined\nin this run" if history else "no history recorded"
        ax.set(xticks=[], yticks=[])
    elif chart.logarithmic:
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _: power_text(value))
    else:
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    if lines:
        ax.grid(axis="y", linewidth=0.5)
    place: dict[str, Any] = {"x": 0.97, "y": 0.06, "ha": "right"} if lines else {"x": 0.5, "y": 0.5, "ha": "center"}
    written = ax.text(s=remark, transform=ax.transAxes, size="small", va="bottom", **place) if remark else None
    return CurveArtists(lines, written)


def nc1_curve(history: Sequence[Mapping[str, Any]], ax: Axes, *, remark: str = "") -> CurveArtists:
    """NC1 over epochs, both weightings: ``curves_over_epochs`` of the chart ``NC1``, its axis named."""
    ax.set_ylabel("NC1")
    return curves_over_epochs(history, NC1, ax, remark=remark)


def nc1_limits(histories: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[float, float] | None:
    """Limits of the NC1 axis that show all the histories on one scale; None if nothing is defined."""
    keys = ("nc1_uniform", "nc1_weighted")
    found = [value for history in histories for entry in history for value in map(entry.get, keys)]
    positive = [value for value in found if defined(value) and value > 0]
    return (min(positive) / 2, max(positive) * 2) if positive else None


def demo_figure(record: Mapping[str, Any]) -> Figure:
    """The whole demonstration in one picture: a column per penalty, the threshold line below.

    Rows: measured mean predictions, the optimum, NC1 over epochs. Of several seeds the first is shown.

    Args:
        record: Of a demonstration.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked_demo(record)
    runs = list({run["lambda_z"]: run for run in reversed(data["runs"])}.values())[::-1]
    vmax, columns = (
        largest_score([run[side]["Z"] for run in data["runs"] for side in ("measured", "predicted")]),
        len(runs),
    )
    with styled():
        figure = Figure(figsize=(max(1.0 + 2.05 * columns, 4.5), 7.4), layout="constrained")
        grid = figure.add_gridspec(4, columns, height_ratios=[1.9, 1.9, 0.95, 1.2])
        figure.suptitle(f"{sentence(data_words(data))}: a trained network beside the theory", parse_math=False)
        maps, curves = [], []
        for c, run in enumerate(runs):
            level = number_text(run["lambda_z"])
            measured, theory, curve = (figure.add_subplot(grid[r, c]) for r in range(3))
            common: dict[str, Any] = {"clusters": data["clusters"], "class_names": data["class_names"], "vmax": vmax}
            for ax, side, words in ((measured, "measured", "network"), (theory, "predicted", "theory")):
                title = textwrap.fill(f"{words}: {outcome(data, run[side]['states'])}", 30)
                maps.append((ax, heatmap(run[side]["Z"], ax, **common, title=title)))
                if c:
                    ax.set_yticks([])
                else:
                    ax.set_ylabel("score for class")
            measured.set_title(f"penalty {level}\n{measured.get_title()}", parse_math=False)
            away = run["distance"]["Z"]
            measured.set_xticks([])
            measured.set_xlabel(f"distance to theory {share_text(away)}" if defined(away) else "")
            measured.xaxis.label.set_color(COLOURS["muted"])
            theory.set_xlabel("images of class")
            vanished = "vanished" in run["measured"]["states"]
            curves.append((curve, nc1_curve(run["history"], curve, remark=VANISHED_REMARK if vanished else "")))
            if c:
                curve.set_ylabel("")
        limits = nc1_limits([run["history"] for run in runs])
        for ax, artists in curves:
            if limits is not None and artists.lines:
                ax.set_ylim(limits)
        _colour_bar(figure, maps, vmax)
        if curves[0][1].lines:
            legend_above(curves[0][0])
        line = figure.add_subplot(grid[3, :])
        threshold_line(data, line)
        line.set_title("bands: predicted by theory · markers: the trained network", loc="left", color=COLOURS["muted"])
    return figure


def _colour_bar(figure: Figure, maps: Sequence[tuple[Axes, HeatmapArtists]], vmax: float) -> Colorbar:
    bar = figure.colorbar(maps[0][1].image, ax=[ax for ax, _ in maps], shrink=0.6, aspect=30, pad=0.02)
    ticks = [share * vmax for share in (-1, -0.1, 0, 0.1, 1)]
    bar.set_ticks(ticks, labels=[number_text(x, 2) for x in ticks])
    bar.set_label("mean prediction (nats)")
    bar.outline.set_visible(False)
    return bar
