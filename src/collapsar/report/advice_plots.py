"""Pictures of advice and of its study: functions of a record and an ax; they compute nothing but places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from collapsar.report.advice import METHOD_WORDS, REGIME_WORDS, class_words
from collapsar.report.record import defined
from collapsar.report.style import COLOURS, STATES, png_bytes, styled, svg_string

__all__ = ["advice_figure", "differences", "margins", "picture_bytes", "safety", "study_figure"]

Record = Mapping[str, Any]


def advice_figure(record: Record) -> Figure:
    """Before and after the first remedy: safety factors and decision margins of every kind of class.

    Args:
        record: ``Advice.to_dict()``, undefined numbers as None or NaN.
    """
    with styled():
        rows = len(record["groups"])
        figure = Figure(figsize=(7.0, 1.3 + 0.22 * min(rows, 24)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        safety(record, left)
        margins(record, right)
        right.set_ylabel("")
        figure.suptitle(_title(record))
    return figure


def picture_bytes(record: Record, suffix: str) -> bytes:
    """:func:`advice_figure` as a file.

    Raises:
        ValueError: ``suffix`` is neither ".png" nor ".svg".
    """
    if suffix == ".png":
        return png_bytes(advice_figure(record))
    if suffix == ".svg":
        return svg_string(advice_figure(record), "advice", _title(record)).encode()
    raise ValueError(f"`picture` must end in .png or .svg, got {suffix!r}")


def _title(record: Record) -> str:
    if not record["suggestions"]:
        return "at the optimum"
    return f"now, and after: {record['suggestions'][0]['words']}"


def _before_after(record: Record, name: str) -> tuple[list[float], list[float] | None]:
    """A number of every kind of class now, and after the first remedy."""
    now = [_number(g[name]) for g in record["groups"]]
    if not record["suggestions"]:
        return now, None
    later = {k: _number(g[name]) for g in record["suggestions"][0]["groups"] for k in g["classes"]}
    return now, [later[g["classes"][0]] for g in record["groups"]]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def safety(record: Record, ax: Axes) -> list[Line2D]:
    """Threshold over lambda_z of every kind of class, logarithmic; the line at 1 is the threshold."""
    now, later = _before_after(record, "safety")
    ax.axvline(1.0, color=COLOURS["ink"], linewidth=0.8)
    ax.axvline(1 + record["margin"], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 2)))
    lines = _points(record, ax, now, later)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("threshold / penalty (dashed: the target)")
    return lines


def margins(record: Record, ax: Axes) -> list[Line2D]:
    """Decision margin at the class mean of every kind of class, nats; below 0 the mean itself is misclassified."""
    now, later = _before_after(record, "margin")
    ax.axvline(0.0, color=COLOURS["ink"], linewidth=0.8)
    lines = _points(record, ax, now, later)
    ax.set_xlabel("decision margin at the mean, nats")
    return lines


def _points(record: Record, ax: Axes, now: Sequence[float], later: Sequence[float] | None) -> list[Line2D]:
    lines = []
    y = range(len(now))
    names = [f"{class_words(g, record['class_names'])}: {g['samples']}" for g in record["groups"]]
    ax.set_yticks(y, names, parse_math=False)
    ax.set_ylabel("classes: samples each")
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    for value, group, place in zip(now, record["groups"], y, strict=True):
        style = STATES[group["state"]]
        lines += ax.plot([value], [place], style.marker, color=COLOURS[style.colour], markersize=4, clip_on=False)
    if later is None:
        return lines
    lines += ax.plot(later, y, linestyle="none", marker=".", markersize=3, color=COLOURS["muted"])
    for before, after, place in zip(now, later, y, strict=True):
        if defined(before) and defined(after):
            ax.annotate("", (after, place), (before, place), arrowprops={"arrowstyle": "->", "color": COLOURS["muted"]})
    return lines


def study_figure(record: Record) -> Figure:
    """The study: the advice minus every other method, balanced and minority test accuracy, per regime.

    Args:
        record: as ``collapsar_studies.advice_study.summary`` makes it.
    """
    regimes = record["regimes"]
    with styled():
        figure = Figure(figsize=(7.0, 2.1 * len(regimes) + 0.4), layout="constrained")
        axes = figure.subplots(len(regimes), 2, squeeze=False, sharex="col")
        for row, regime in zip(axes, regimes, strict=True):
            for ax, measure in zip(row, ("balanced", "minority"), strict=True):
                differences(regime, measure, ax)
            row[1].set_yticklabels([])
        axes[-1][0].set_xlabel("balanced test accuracy, points")
        axes[-1][1].set_xlabel("minority test accuracy, points")
        figure.suptitle(
            "Test accuracy of the advice minus each method's, 95% intervals over seeds\n"
            "circles: least advice, squares: twice the room; filled: method as people use it, hollow: prior corrected"
        )
    return figure


def differences(regime: Record, measure: str, ax: Axes) -> list[Line2D]:
    """Paired differences of one regime with their 95% intervals.

    Circles: the least advice; squares: with twice the room. Filled: the other method as people use it; hollow: with the
    prior correction too.
    """
    names = [name for name in METHOD_WORDS if name in regime["methods"] and not name.startswith("advice")]
    ax.axvline(0.0, color=COLOURS["ink"], linewidth=0.8)
    lines: list[Line2D] = []
    series = (("advice", "raw"), ("advice", "corrected"), ("advice-double", "raw"), ("advice-double", "corrected"))
    for place, name in enumerate(names):
        for i, (advice, reading) in enumerate(series):
            d = regime["methods"][name].get(f"{advice}_minus_{measure}_{reading}")
            if d is None or not defined(d["mean"]):
                continue
            colour = COLOURS["blue" if advice == "advice" else "vermilion"]
            y = place + 0.17 * (i - 1.5)
            if defined(d["low"]):
                lines += ax.plot([100 * d["low"], 100 * d["high"]], [y, y], color=colour, linewidth=0.8)
            marker = "o" if advice == "advice" else "s"
            face = colour if reading == "raw" else "w"
            lines += ax.plot([100 * d["mean"]], [y], marker, color=colour, markersize=3, mfc=face)
    ax.set_yticks(range(len(names)), [METHOD_WORDS[name] for name in names])
    ax.invert_yaxis()
    ax.set_title(f"{REGIME_WORDS.get(regime['regime'], regime['regime'])} ({len(regime['seeds'])} seeds)", loc="left")
    return lines
