"""Pictures with one row per mitigation or model: thresholds and margins on shared axes."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from collapsar.core.types import Record
from collapsar.report import styled
from collapsar.report.style import COLOURS

SMALL = "x-small"


def _rows(ax: Axes, names: list[str]) -> None:
    """Names from top to bottom, a hairline under each."""
    places = range(len(names) - 1, -1, -1)
    ax.set_yticks(list(places), names)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    for y in places:
        ax.axhline(y, color=COLOURS["rule"], linewidth=0.4, zorder=0)


def _logarithmic(ax: Axes, most: int) -> None:
    """A logarithmic axis with at most ``most`` round numbers on it, the finest that fit."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 1.5, 2.5, 4, 6), (1, 1.5, 2.5, 5), (1, 2, 5), (1, 3), (1,)):
        values = [float(f"{step}e{d}") for d in decades for step in steps if low <= float(f"{step}e{d}") <= high]
        if len(values) <= most:
            break
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(values, [f"{v:g}" for v in values])


def _mark(ax: Axes, x: float | None, y: float, marker: str, colour: str, *, hollow: bool = False, **how: Any) -> None:
    if x is None:
        return
    face = "white" if hollow else COLOURS[colour]
    edge = COLOURS[colour] if hollow else "white"
    settings = {"markersize": 6, "markeredgewidth": 0.9 if hollow else 0.5, **how}
    ax.plot(x, y, marker, color=COLOURS[colour], markerfacecolor=face, markeredgecolor=edge, **settings)


def remedies_figure(record: Record) -> Figure:
    """One row per mitigation: where the small classes collapse, the margins, the heads."""
    remedies = record["remedies"]
    large, small = 0, len(record["groups"]) - 1
    lambda_z = record["problem"]["lambda_z"]
    with styled():
        figure = Figure(figsize=(7.0, 0.9 + 0.26 * len(remedies)), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True, width_ratios=[1.25, 1, 1])
        for i, remedy in enumerate(remedies):
            y = len(remedies) - 1 - i
            signed, nonnegative = remedy["signed"], remedy["nonnegative"]
            _mark(panels[0], nonnegative["thresholds"]["vanish"][large], y, "o", "blue", hollow=True)
            _mark(panels[0], signed["thresholds"]["merge"][small], y, "s", "orange")
            open_certificate = not nonnegative["thresholds"]["exact"][small]
            _mark(panels[0], nonnegative["thresholds"]["vanish"][small], y, "X", "vermilion", hollow=open_certificate)
            for ax, key in ((panels[1], "margins"), (panels[2], "contrasts")):
                _mark(ax, nonnegative[key][large], y, "o", "blue", hollow=True)
                _mark(ax, nonnegative[key][small], y, "X", "vermilion")
        words = [
            remedy["words"].replace(" + ", "\n  + ") if len(remedy["words"]) > 28 else remedy["words"]
            for remedy in remedies
        ]
        _rows(panels[0], words)
        for ax in panels[1:]:
            _rows(ax, words)
            ax.tick_params(axis="y", labelleft=False)
            ax.axvline(0, color=COLOURS["muted"], linewidth=0.8, zorder=0)
        _logarithmic(panels[0], 4)
        panels[0].axvline(lambda_z, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 2)), zorder=0)
        panels[0].annotate(
            r"$\lambda_Z$ here", (lambda_z, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", size=SMALL
        )
        panels[0].set_xlabel(r"threshold of $\lambda_Z$ (more is better)")
        panels[1].set_xlabel(r"margin at $\lambda_Z$ (nats)")
        panels[2].set_xlabel("contrast within kind (nats)")
        kinds = (
            ("s", "orange", "small classes merge (signed)", False),
            ("X", "vermilion", "small classes, nonnegative: vanish", False),
            ("o", "blue", "large classes, nonnegative: vanish", True),
            ("X", "vermilion", "column form only: classes would share directions", True),
        )
        handles = [
            panels[0].plot([], [], m, color=COLOURS[c], markerfacecolor="none" if hollow else COLOURS[c], label=w)[0]
            for m, c, w, hollow in kinds
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def models_figure(record: Record) -> Figure:
    """One row per model: merge, vanish, spinodal, complete on the axis of one penalty."""
    rows = record["rows"]
    kinds = {
        "merge": ("s", "orange", "small classes merge", False),
        "vanish": ("X", "vermilion", "small classes vanish", False),
        "spinodal": ("d", "purple", "their last local minimum (spinodal)", True),
        "complete": ("o", "blue", "everything collapses", False),
    }
    with styled():
        figure = Figure(figsize=(7.0, 0.9 + 0.26 * len(rows)), layout="constrained")
        ax = figure.subplots()
        for i, row in enumerate(rows):
            y = len(rows) - 1 - i
            values = [row[kind] for kind in ("merge", "vanish", "complete") if row[kind] is not None]
            ax.plot(
                [min(values), max(values)], [y, y], color=COLOURS["rule"], linewidth=3, solid_capstyle="butt", zorder=1
            )
            for kind, (marker, colour, _, hollow) in kinds.items():
                _mark(ax, row[kind], y, marker, colour, hollow=hollow, zorder=3)
        names = [row["words"] for row in rows]
        _rows(ax, names)
        groups = [row["group"] for row in rows]
        for group in dict.fromkeys(groups):
            first = len(rows) - 1 - groups.index(group)
            ax.annotate(
                group,
                (1.0, first),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                size=SMALL,
                color=COLOURS["muted"],
            )
        split = len(rows) - groups.count(groups[0]) - 0.5
        ax.axhline(split, color=COLOURS["muted"], linewidth=0.6)
        _logarithmic(ax, 8)
        k_a, k_b, n_a, n_b = record["setting"]
        ax.set_xlabel(f"penalty of every factor, λ   ({k_a} classes of {n_a}, {k_b} of {n_b})")
        handles = [
            ax.plot([], [], m, color=COLOURS[c], markerfacecolor="none" if hollow else COLOURS[c], label=w)[0]
            for m, c, w, hollow in kinds.values()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure
