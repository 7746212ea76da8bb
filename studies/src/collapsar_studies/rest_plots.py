"""The picture of AdamW at rest: networks beside the fixed point of their entries, and one penalty per row."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from collapsar.core.types import Record
from collapsar.report.style import COLOURS

LOOK = {  # colour, marker, words
    "rows": ("vermilion", "s", "one penalty per row"),
    "rows_averaged": ("orange", "D", "the same, Z averaged over classes of one size"),
    "entries": ("blue", "o", "entry by entry"),
}


def rest_figure(record: Record) -> Figure:
    """Distances of Z: of networks at rest, left; of fixed points from random starts over the features, right.

    Args:
        record: As ``collapsar reproduce rest`` writes it.
    """
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _networks(left, record)
    _fixed_points(right, record)
    handles, words = left.get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=3, fontsize="x-small")
    return figure


def _networks(ax: Axes, record: Record) -> None:
    places = sorted({(run["width"], run["wd"]) for run in record["runs"]})
    for name, (colour, marker, words) in LOOK.items():
        seen = [(places.index((run["width"], run["wd"])), run["distance"][name]) for run in record["runs"]]
        if seen:
            ax.plot(*zip(*seen, strict=True), marker, color=COLOURS[colour], markersize=4, alpha=0.7, label=words)
    ax.set_yscale("log")
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.xaxis.set_major_locator(FixedLocator(range(len(places))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "d = {}\ndecay {:g}".format(*places[round(x)])))
    ax.set_ylabel("relative distance of Z")
    ax.set_title("networks at rest, to", loc="left")


def _fixed_points(ax: Axes, record: Record) -> None:
    known = [row for row in record["spread"] if row["rows"] is not None]
    widths = [row["width"] for row in known]
    for name in ("rows", "rows_averaged"):
        colour, marker, _ = LOOK[name]
        ax.plot(widths, [row[name] for row in known], f"{marker}-", color=COLOURS[colour], markersize=4, linewidth=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(widths))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("features d, decay in proportion")
    ax.set_title("fixed points from random starts, to", loc="left")
