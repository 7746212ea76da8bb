"""The picture of the text transformer: its mean predictions beside those of its optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from collapsar.report.style import COLOURS


def text_figure(record: Mapping[str, Any]) -> Figure:
    """Contrasts inside the large and the small classes, of networks (dots) and of their optima (bars).

    Args:
        record: As ``collapsar reproduce text`` writes it.
    """
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    ax, runs = figure.subplots(), record["runs"]
    for block, (colour, words) in enumerate((("blue", "large classes"), ("vermilion", "small classes"))):
        seen = [run["contrasts"][block] for run in runs]
        said = [run["predicted_contrasts"][block] for run in runs]
        ax.plot(range(len(runs)), seen, "o", color=COLOURS[colour], markersize=4, label=f"{words}: network")
        ax.plot(range(len(runs)), said, "_", color=COLOURS[colour], markersize=14, label="its optimum")
    names = [f"{run['optimizer']}\n{run['decay']:.3g}" for run in runs]
    ax.xaxis.set_major_locator(FixedLocator(range(len(runs))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names[round(x)]))
    ax.set_xlabel("decay of the head")
    ax.set_ylabel("contrast inside, nats")
    figure.legend(loc="outside lower center", ncols=4, fontsize="x-small")
    return figure
