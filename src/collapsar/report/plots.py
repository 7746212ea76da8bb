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
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from collapsar.report.penalty_axis import ThresholdArtists, threshold_line
from collapsar.report.record import Record, checked_demo, cluster_of_classes, defined, matrix
from collapsar.report.style import COLOURS, DIVERGING, diverging_norm, styled
from collapsar.report.words import data_words, lambda_text, outcome, power_text, sentence, share_text

__all__ = [
    "VANISHED_REMARK",
    "CurveArtists",
    "HeatmapArtists",
    "ThresholdArtists",
    "curve_legend",
    "demo_figure",
    "demo_scale",
    "heatmap",
    "nc1_curve",
    "nc1_limits",
    "threshold_line",
]

_MOST_NAMES = 20  # class names beside a heat map; more would overlap at column width
VANISHED_REMARK = "vanished classes:\nnoise over noise"


class HeatmapArtists(NamedTuple):
    """The image, and the lines between clusters."""

    image: AxesImage
    lines: list[Line2D]


class CurveArtists(NamedTuple):
    """One line per weighting, and the remark written in place of lines that are undefined."""

    lines: list[Line2D]
    remark: Text | None


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
        vmax = float(np.nanmax(np.abs(Z), initial=0.0)) or 1.0
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
    if class_names is None or num_classes > _MOST_NAMES:
        ax.set_xticks([])
        ax.set_yticks([])
    else:
        names = [_shortened(class_names[k]) for k in order]
        upright = 90 if max(map(len, names)) > 2 else 0
        ax.set_xticks(range(num_classes), names, rotation=upright, parse_math=False)
        ax.set_yticks(range(num_classes), names, parse_math=False)
    return HeatmapArtists(image, lines)


def _shortened(name: str, longest: int = 12) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def nc1_curve(history: Sequence[Mapping[str, Any]], ax: Axes, *, remark: str = "") -> CurveArtists:
    """NC1 over epochs on a logarithmic axis, both weightings; undefined points are gaps.

    Args:
        history: Records with ``epoch``, ``nc1_uniform`` and ``nc1_weighted``.
        ax: Where to draw.
        remark: A word of caution, written into the axes.
    """
    epochs = [entry["epoch"] for entry in history]
    lines = []
    for key, label, dashes in (("nc1_uniform", "uniform", "-"), ("nc1_weighted", "weighted", ":")):
        values = [entry.get(key) for entry in history]
        # The logarithm of 0 is as undefined as None.
        heights = [float(v) if defined(v) and v > 0 else math.nan for v in values]
        colour = COLOURS["blue"] if key == "nc1_uniform" else COLOURS["muted"]
        lines += ax.plot(epochs, heights, dashes, color=colour, label=label)
    if not any(np.isfinite(line.get_ydata()).any() for line in lines):
        for line in lines:
            line.remove()
        lines, remark = [], "NC1 is undefined\nin this run" if history else "no history recorded"
        ax.set_yticks([])
        ax.set_xticks([])
    else:
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(lambda value, _: power_text(value))
        ax.grid(axis="y", linewidth=0.5)
    ax.set_xlabel("epoch")
    ax.set_ylabel("NC1")
    text = None
    if remark:
        at = (0.97, 0.06) if lines else (0.5, 0.5)
        text = ax.text(
            *at, remark, transform=ax.transAxes, ha="right" if lines else "center", size="small", va="bottom"
        )
    return CurveArtists(lines, text)


def curve_legend(ax: Axes) -> Legend:
    """Names of the weightings above an NC1 curve, where no curve can run into them."""
    return ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def nc1_limits(histories: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[float, float] | None:
    """Limits of the NC1 axis that show all the histories on one scale; None where nothing is defined."""
    keys = ("nc1_uniform", "nc1_weighted")
    found = [value for history in histories for entry in history for value in map(entry.get, keys)]
    positive = [value for value in found if defined(value) and value > 0]
    return (min(positive) / 2, max(positive) * 2) if positive else None


def demo_scale(record: Record) -> float:
    """The magnitude that gets the full colour in every map of the record, in nats."""
    entries = [np.abs(matrix(run[side]["Z"])) for run in record["runs"] for side in ("measured", "predicted")]
    return max(float(np.nanmax(Z, initial=0.0)) for Z in entries) or 1.0


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
    vmax, columns = demo_scale(data), len(runs)
    with styled():
        figure = Figure(figsize=(max(1.0 + 2.05 * columns, 4.5), 7.4), layout="constrained")
        grid = figure.add_gridspec(4, columns, height_ratios=[1.9, 1.9, 0.95, 1.2])
        figure.suptitle(f"{sentence(data_words(data))}: a trained network beside the theory", parse_math=False)
        maps, curves = [], []
        for c, run in enumerate(runs):
            level = lambda_text(run["lambda_z"])
            measured, theory, curve = (figure.add_subplot(grid[r, c]) for r in range(3))
            common: dict[str, Any] = {"clusters": data["clusters"], "class_names": data["class_names"], "vmax": vmax}
            for ax, side, words in (
                (measured, "measured", "network"),
                (theory, "predicted", "theory"),
            ):
                title = _wrapped(f"{words}: {outcome(data, run[side]['states'])}")
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
            curve_legend(curves[0][0])
        line = figure.add_subplot(grid[3, :])
        threshold_line(data, line)
        line.set_title("bands: predicted by theory · markers: the trained network", loc="left", color=COLOURS["muted"])
    return figure


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 30)


def _colour_bar(figure: Figure, maps: Sequence[tuple[Axes, HeatmapArtists]], vmax: float) -> Colorbar:
    bar = figure.colorbar(maps[0][1].image, ax=[ax for ax, _ in maps], shrink=0.6, aspect=30, pad=0.02)
    bar.set_ticks([-vmax, -vmax / 10, 0, vmax / 10, vmax])
    bar.ax.set_yticklabels([lambda_text(float(f"{x:.2g}")) for x in (-vmax, -vmax / 10, 0, vmax / 10, vmax)])
    bar.set_label("mean score (nats)")
    bar.outline.set_visible(False)
    return bar
