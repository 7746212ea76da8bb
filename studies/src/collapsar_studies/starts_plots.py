"""The picture of what a network remembers of its start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from collapsar.report.style import COLOURS


def starts_figure(record: Mapping[str, Any]) -> Figure:
    """Contrast inside the small classes, relative to the large ones': networks (dots) and the optimum (bars).

    Args:
        record: As ``collapsar reproduce starts`` writes it.
    """
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    ax = figure.subplots()
    places = list(dict.fromkeys(map(_place, record["runs"])))
    for name, marker, colour, words in (
        ("contrasts", "o", "blue", "networks"),
        ("predicted_contrasts", "_", "ink", "the optimum"),
    ):
        seen = [(places.index(_place(run)), run[name][1] / run[name][0]) for run in record["runs"]]
        ax.plot(*zip(*seen, strict=True), marker, color=COLOURS[colour], markersize=6, linestyle="none", label=words)
    ax.xaxis.set_major_locator(FixedLocator(range(len(places))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "{}\n{}\n{:g}, {}".format(*places[round(x)])))
    ax.set_ylabel("contrast of small classes,\nof that of large ones")
    ax.legend(fontsize="x-small")
    return figure


def _place(run: Mapping[str, Any]) -> tuple[str, str, float, str]:
    return run["norm"], run["network"], run["factor"], run["way"]
