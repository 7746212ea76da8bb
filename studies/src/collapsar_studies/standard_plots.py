"""The picture of standard training: one network, three models."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from collapsar.core.types import Record
from collapsar.report.style import COLOURS

PANELS = {"layernorm": "LayerNorm before the head", "batchnorm": "BatchNorm before the head", "none": "no norm"}
LOOK = {  # colour, marker, words
    "sample": ("blue", "o", "features of one length (per sample)"),
    "batch": ("vermilion", "s", "mean square length given (per batch)"),
    "penalised": ("muted", "^", "features penalised, as the norms imply"),
}
GOAL = 0.05


def standard_figure(record: Record) -> Figure:
    """Relative distance of Z over the decay of the head: a panel per network, a curve per model.

    Args:
        record: As ``collapsar reproduce standard`` writes it. Lines join the medians over seeds.
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (norm, words) in zip(panels, PANELS.items(), strict=True):
        _panel(ax, [run for run in record["runs"] if run["norm"] == norm])
        ax.set_title(words, loc="left")
    panels[0].set_ylabel("relative distance of Z")
    panels[1].set_xlabel("decay of the head, as a multiple of the predicted merge threshold")
    handles = [
        Line2D([], [], marker=marker, color=COLOURS[colour], label=words, markersize=4, linewidth=1)
        for colour, marker, words in LOOK.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="x-small")
    return figure


def _panel(ax: Axes, runs: list[Record]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    factors = sorted({run["factor"] for run in runs})
    for model, (colour, marker, _) in LOOK.items():
        values = [(run["factor"], run["distance"][model]["Z"]) for run in runs]
        known = [(x, y) for x, y in values if y is not None and np.isfinite(y)]
        if known:
            ax.plot(*zip(*known, strict=True), marker, color=COLOURS[colour], markersize=3, alpha=0.6)
        middles = [(f, float(np.median([y for x, y in known if x == f]))) for f in factors if f in dict(known)]
        if middles:
            ax.plot(*zip(*middles, strict=True), "-", color=COLOURS[colour], linewidth=1)
    ax.axvline(1.0, color=COLOURS["ink"], linewidth=0.8, linestyle=":")
    ax.axhline(GOAL, color=COLOURS["rule"], linewidth=0.8)
    ax.set_ylim(1e-3, 2)
    ax.xaxis.set_major_locator(FixedLocator(factors))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.grid(axis="y", linewidth=0.4)
