"""Pictures of the studies: which model networks follow, and when weight decay loses the small classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from collapsar.core.types import Record
from collapsar.report import styled
from collapsar.report.style import CLUSTER_COLOURS, COLOURS
from collapsar_studies.noise_plots import noise_figure
from collapsar_studies.paper_plots import MODEL_LOOK, plain_log_ticks, transition_handles
from collapsar_studies.rest_plots import rest_figure
from collapsar_studies.standard_plots import standard_figure
from collapsar_studies.starts_plots import starts_figure
from collapsar_studies.text_plots import text_figure

SMALL = "x-small"
BRANCHES: Mapping[str, tuple[str, str, float]] = {  # colour, marker, lane in the bars
    "cold": ("ink", "o", 0.0),
    "up": ("vermilion", "^", 0.26),
    "down": ("blue", "v", -0.26),
}
PREDICTORS: Mapping[str, tuple[str, str, str]] = {  # colour, marker, words
    "shallow": ("purple", "X", "shallow model"),
    "deep": ("orange", "s", "deep model"),
    "descent": ("blue", "P", "deep model, lowest descent"),
    "body": ("green", "*", "deep model, all layers paid"),
    "spinodal": ("muted", "D", "the same, B's state ends"),
}
NETWORKS = {0: "no batch norm", 1: "L = 1", 2: "L = 2", 3: "L = 3", 4: "L = 4"}


def study_figure(record: Record) -> Figure:
    """The picture of a study.

    Args:
        record: As ``collapsar reproduce`` writes it.

    Raises:
        ValueError: The record is of none of them.
    """
    draws = {
        "which-model": _which_model,
        "effective": _effective,
        "standard": standard_figure,
        "noise": noise_figure,
        "rest": rest_figure,
        "starts": starts_figure,
        "text": text_figure,
    }
    draw = draws.get(record.get("figure", ""))
    if draw is None:
        raise ValueError(f"`record` must be of {', '.join(draws)}, got {record.get('figure')!r}")
    with styled():
        return draw(record)


def _log_axis(ax: Axes, low: float, high: float, subs: Sequence[float] = (1, 2, 5)) -> None:
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


# --- which model


def _which_model(record: Record) -> Figure:
    """Distance of Z to both optima over lambda_z: a row with and one without the last ReLU, a column per imbalance."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panels = figure.subplots(2, len(record["minorities"]), sharey=True, sharex="col", squeeze=False)
    for row, relu in zip(panels, (True, False), strict=True):
        for ax, n_b in zip(row, record["minorities"], strict=True):
            _distance_panel(ax, record, n_b, relu=relu)
        row[0].set_ylabel(f"{'with' if relu else 'without'} the last ReLU\nrelative distance of Z")
    for ax, n_b in zip(panels[0], record["minorities"], strict=True):
        ax.set_title(f"$n_A$ = {record['n_a']}, $n_B$ = {n_b}", loc="left")
    for ax in panels[-1]:
        ax.set_xlabel(r"penalty $\lambda_Z$")
    handles: list[Any] = [
        Line2D([], [], marker="o", linestyle="none", color=COLOURS[c], label=f"to the optimum with {w}", markersize=4)
        for c, _, w in MODEL_LOOK.values()
    ]
    figure.legend(handles=handles + transition_handles(), loc="outside lower center", ncols=3)
    return figure


def _distance_panel(ax: Axes, record: Record, n_b: int, *, relu: bool) -> None:
    runs = [run for run in record["runs"] if run["n_b"] == n_b and run["relu"] == relu]
    if not runs:  # of a study that has not ended
        return
    for model, (colour, _, _) in MODEL_LOOK.items():
        points = [(run["value"], run["distance"][model]["Z"]) for run in runs]
        x, y = np.array([(a, np.nan if b is None else b) for a, b in points], dtype=float).T
        ax.plot(x, np.minimum(y, 1.5), "o", color=COLOURS[colour], markersize=3, markeredgewidth=0, alpha=0.8)
    ax.set_yscale("log")
    ax.set_ylim(0.002, 9)
    values = [run["value"] for run in runs]
    plain_log_ticks(ax, [v for v in (0.002, 0.003, 0.005, 0.007, 0.01, 0.014) if min(values) <= v <= max(values)])
    ax.set_xlim(0.93 * min(values), 1.07 * max(values))
    for event, height in (("minority", 2.6), ("complete", 5.0)):
        words, place, side = {"minority": ("B collapses", 0.99, "right"), "complete": ("all collapse", 0.01, "left")}[
            event
        ]
        ax.annotate(words, (place, height), xycoords=ax.get_yaxis_transform(), size=SMALL, ha=side, va="center",
                    color=COLOURS["muted"])  # fmt: skip
        for seen in record["transitions"]:
            if seen["n_b"] == n_b and seen["relu"] == relu:
                low, high = (end or other for end, other in zip(seen[event], (min(values), max(values)), strict=True))
                ax.plot([low, high], [height] * 2, color=COLOURS["muted"], alpha=0.25, linewidth=5,
                        solid_capstyle="butt")  # fmt: skip
        for model, (colour, _, _) in MODEL_LOOK.items():
            place = record["predicted"][str(n_b)][model][event]
            ax.plot(place, height, "|", color=COLOURS[colour], markersize=8, markeredgewidth=1.6)


# --- ordinary training


def _effective(record: Record) -> Figure:
    """Above: measured switches as bars, predictions as marks. Below: measured over predicted; what is left of B."""
    places = list(dict.fromkeys((row["rate"], row["n_b"]) for row in record["table"]))
    figure = Figure(figsize=(7.4, 6.2), layout="constrained")
    figure.suptitle(
        f"Weight decay on every parameter: from which decay on are the five small classes (B, of 10) lost?\n"
        f"A: {record['n_a']} images a class. L: linear layers above the batch normalisation",
        fontsize="medium",
    )
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1.0))[:, 0]
    for ax, place in zip(upper.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        _switches(ax, [row for row in record["table"] if (row["rate"], row["n_b"]) == place])
        ax.set_title(f"B: {place[1]} images a class\nlearning rate {place[0]:g}", loc="left")
    words = {"cold": "fresh weights", "up": "decay raised step by step", "down": "decay lowered step by step"}
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[c], linewidth=4, label=f"networks, {words[b]}")
        for b, (c, _, _) in BRANCHES.items()
    ]
    handles += [
        Line2D([], [], linestyle="none", marker=m, color=COLOURS[c], label=w, markersize=6, markeredgewidth=0)
        for c, m, w in PREDICTORS.values()
    ]
    upper.legend(handles=handles, loc="outside lower center", ncols=3)
    left, right = lower.subplots(1, 2, width_ratios=(1.7, 1.0))
    _ratios(left, record["table"])
    networks = [row for row in record["table"] if (row["rate"], row["n_b"]) == places[0] and row["layers"]]
    row = networks[min(1, len(networks) - 1)]
    mine = [r for r in record["runs"] if all(r[name] == row[name] for name in ("rate", "n_b", "layers"))]
    _order(right, row, mine)
    right.set_title(
        f"What is left of B: {NETWORKS[row['layers']]},\n{row['n_b']} images, rate {row['rate']:g}", loc="left"
    )
    return figure


def _switches(ax: Axes, rows: Sequence[Record]) -> None:
    values = [wd for row in rows for wd in row["decays"]]
    low, high = min(values) * 0.8, max(values) * 1.25
    for y, row in enumerate(rows):
        for branch, (colour, _, lane) in BRANCHES.items():
            for begin, end in row["measured"][branch]:
                ax.plot([begin or low, end or high], [y + lane] * 2, color=COLOURS[colour], linewidth=4, alpha=0.4,
                        solid_capstyle="butt")  # fmt: skip
        for name, (colour, marker, _) in PREDICTORS.items():
            if row["predicted"][name] is not None:
                ax.plot(row["predicted"][name], y, marker, color=COLOURS[colour], zorder=3, markeredgewidth=0.5,
                        markersize=9 if marker == "*" else 5, markeredgecolor="white")  # fmt: skip
    ax.set_yticks(range(len(rows)), [NETWORKS[row["layers"]] for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    _log_axis(ax, low, high, (1, 3))
    ax.set_xlabel("weight decay")


def _ratios(ax: Axes, table: Sequence[Record]) -> None:
    """Every bracket of fresh weights over each prediction, a thin bar each; a perfect model has all across 1."""
    names = list(PREDICTORS)
    for row in table:
        for name in names:
            place = row["predicted"][name]
            for low, high in row["measured"]["cold"]:
                if place is not None and low is not None and high is not None:
                    y = names.index(name) + 0.13 * (row["layers"] - 2)
                    colour = "ink" if row["layers"] == 0 else CLUSTER_COLOURS[row["layers"] - 1]
                    ax.plot([low / place, high / place], [y] * 2, color=COLOURS[colour], linewidth=2.5, alpha=0.5,
                            solid_capstyle="butt")  # fmt: skip
    ax.axvline(1.0, color=COLOURS["ink"], linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(names)), [PREDICTORS[name][2] for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    _log_axis(ax, 0.18, 2.2)
    ax.set_xlabel("measured over predicted decay (1: exact), fresh weights")
    seen = sorted({row["layers"] for row in table})
    handles = [
        Line2D([], [], linewidth=2.5, label=NETWORKS[layers],
               color=COLOURS["ink" if layers == 0 else CLUSTER_COLOURS[layers - 1]])
        for layers in seen
    ]  # fmt: skip
    ax.set_title("How far off each prediction is", loc="left")
    ax.legend(handles=handles, loc="lower left", fontsize=SMALL)


def _order(ax: Axes, row: Record, runs: Sequence[Record]) -> None:
    first, last = row["decays"][0], row["decays"][-1]
    begins = {"cold": None, "up": first, "down": last}  # a warm branch begins with a cold run
    for branch, (colour, marker, _) in BRANCHES.items():
        mine = [
            run
            for run in runs
            if run["ratio"] is not None
            and (run["branch"] == branch or (run["branch"] == "cold" and run["decay"] == begins[branch]))
        ]
        axis = sorted({run["decay"] for run in mine})
        means = [np.mean([run["ratio"] for run in mine if run["decay"] == wd]) for wd in axis]
        ax.plot(axis, means, color=COLOURS[colour], linewidth=0.9)
        ax.plot([r["decay"] for r in mine], [r["ratio"] for r in mine], marker, color=COLOURS[colour], markersize=2.5)
    for name, (colour, _, _) in PREDICTORS.items():
        if row["predicted"][name] is not None:
            ax.axvline(row["predicted"][name], color=COLOURS[colour], linewidth=1.0, zorder=0)
    _log_axis(ax, min(row["decays"]) * 0.9, max(row["decays"]) * 1.1)
    ax.set_xlabel("weight decay")
    ax.set_ylabel("contrast inside B / inside A")
