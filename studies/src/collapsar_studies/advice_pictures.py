"""The study of advice as a table and as a picture: the advice beside every other method."""

from __future__ import annotations

import math
from typing import TypeGuard

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from collapsar.core.types import Record
from collapsar.report import styled
from collapsar.report.style import COLOURS

METHOD_WORDS = {
    "nothing": "nothing",
    "advice": "least advice",
    "advice-weights": "advised weights",
    "advice-oversampling": "advised oversampling",
    "advice-double": "advice, twice the room",
    "inverse-weights": "weights 1/n",
    "effective-number": "effective-number weights",
    "logit-adjustment": "logit adjustment",
    "balanced-sampling": "balanced sampling",
    "decoupled": "decoupled head",
    "sweep": "best of the penalty sweep",
}
REGIME_WORDS = {
    "merging": "penalised, classes merge",
    "safe": "penalised, far below",
    "ordinary": "ordinary, decay 5e-4",
    "ordinary-strong": "ordinary, decay 1e-2",
    "standard": "AdamW and LayerNorm, decay .05",
    "acting": "AdamW and LayerNorm, decay 4",
    "outvoting": "the same, decay 60 on the head",
}


def study_rows(regime: Record) -> list[tuple[str, ...]]:
    """One row per method of a regime of the study: accuracies and calibration in per cent, means over its settings.

    "raw / corrected": as trained, and with the prior correction; ± standard deviation over seeds.
    """
    rows = []
    for name, words in METHOD_WORDS.items():
        method = regime["methods"].get(name)
        if method is None:
            continue
        cells = [
            " / ".join(_percent(method[f"{measure}_{reading}"]) for reading in ("raw", "corrected"))
            for measure in ("balanced", "minority", "calibration_error")
        ]
        merged, seen, seconds = (method[key] for key in ("merged_classes", "samples_seen", "cpu_seconds"))
        rows.append((words, *cells, f"{merged:.1f}", f"{seen / 1000:.0f}k", f"{seconds:.1f}"))
    return rows


def _defined(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _percent(spread: Record) -> str:
    mean, sd = spread["mean"], spread["sd"]
    return f"{100 * mean:.1f}" + (f"±{100 * sd:.1f}" if _defined(sd) else "")


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
            if d is None or not _defined(d["mean"]):
                continue
            colour = COLOURS["blue" if advice == "advice" else "vermilion"]
            y = place + 0.17 * (i - 1.5)
            if _defined(d["low"]):
                lines += ax.plot([100 * d["low"], 100 * d["high"]], [y, y], color=colour, linewidth=0.8)
            marker = "o" if advice == "advice" else "s"
            face = colour if reading == "raw" else "w"
            lines += ax.plot([100 * d["mean"]], [y], marker, color=colour, markersize=3, mfc=face)
    ax.set_yticks(range(len(names)), [METHOD_WORDS[name] for name in names])
    ax.invert_yaxis()
    ax.set_title(f"{REGIME_WORDS.get(regime['regime'], regime['regime'])} ({len(regime['seeds'])} seeds)", loc="left")
    return lines
