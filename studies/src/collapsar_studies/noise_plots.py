"""The picture of the steps' noise: switches of ordinary training by learning rate and batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from collapsar.report.style import COLOURS


def noise_figure(record: Mapping[str, Any]) -> Figure:
    """A panel per number of layers: between which decays the small classes were lost, for every way to train.

    Args:
        record: As ``collapsar reproduce noise`` writes it.
    """
    layers = sorted({row["layers"] for row in record["table"]})
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    for ax, number in zip(panels, layers, strict=True):
        rows = [row for row in record["table"] if row["layers"] == number]
        ends = [wd for run in record["runs"] if run["layers"] == number for wd in (run["decay"],)]
        for place, row in enumerate(rows):
            for low, high in row["measured"]:
                span = [low or min(ends), high or max(ends)]
                ax.plot([place, place], span, color=COLOURS["blue"], linewidth=5, alpha=0.6)
        names = [f"{row['rate']:g}\n{row['batch']}" for row in rows]
        ax.xaxis.set_major_locator(FixedLocator(range(len(rows))))
        ax.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _, names=names: names[round(x)] if 0 <= round(x) < len(names) else "")
        )
        ax.set_title(f"L = {number}", loc="left")
        ax.set_xlabel("learning rate, images in a batch")
    panels[0].set_ylabel("decay at the switch")
    return figure
