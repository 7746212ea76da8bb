"""The picture of a phase diagram: both feature models side by side, states as colours, thresholds as curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerPatch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from collapsar.core.record_types import CurveRecord, ModelPhaseRecord, PhaseConfigRecord, PhaseRecord, is_a
from collapsar.core.types import Array
from collapsar.report.style import COLOURS, COLUMN_INCHES, raster_canvas, styled
from collapsar.report.words import number_text

# From light to dark, so that the order separated, merged, vanished, zero survives without colour.
FILLS = ("#d9e9f4", "#f3c562", "#d7702a", "#4d4652")
WORDS = ("separated", "merged", "vanished")
ZERO = 3
HATCHES = {"B": "", "A": "//////", "A and B": "xxxxxx"}

AXIS_WORDS = {
    "lambda_z": r"penalty $\lambda_Z$",
    "lambda_b": r"bias penalty $\lambda_b$",
    "r": r"imbalance $r = n_A / n_B$",
    "n_a": r"samples per large class $n_A$",
    "n_b": r"samples per small class $n_B$",
    "share_a": r"share of large classes $k_A / K$",
    "oversampling": r"oversampling of B, $s$",
    "lambda_w": r"head decay $\lambda_W$",
    "norm": r"length of the features $\rho$",
}
_DASHES: Mapping[str, Any] = {"merge": "-", "vanish": (0, (4, 1.5)), "complete": (0, (1, 1))}
PANEL_WORDS = {"signed": "signed features", "nonnegative": "nonnegative features"}
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_LETTER = 0.047  # width of a letter of a curve's label, inches
_LABEL_SIZE = 6.0
_LINE = 75  # characters of a line above the panels, some of which are markup
_STEP = 0.01  # between the points of a curve along which its label is placed, inches
_BESIDE = 0.07  # from a curve to a label beside it, inches: half a letter and a gap
_CLEAR = 0.045  # half the height of a label, inches


def phase_figure(record: Mapping[str, Any]) -> Figure:
    """Both feature models of a phase diagram side by side, at the width of a column of text.

    Args:
        record: as :meth:`collapsar.phase.diagram.PhaseDiagram.to_dict` writes it.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    try:
        if not is_a(record, PhaseRecord):
            raise ValueError(f"`record` must be a phase diagram, got one of kind {record['kind']!r}")
        models, config = record["models"], record["config"]
        with styled():
            figure = Figure(figsize=(COLUMN_INCHES, 2.75), layout="constrained")
            figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02)  # type: ignore[union-attr]
            panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
            kinds = {kind for model in models for kind in np.unique(_kinds(model)).tolist()}
            for ax, model in zip(panels, models, strict=True):
                phase_axes(record, model, ax)
            panels[0].set_ylabel(AXIS_WORDS[config["y"]["name"]])
            # one label for both panels, between them: two would run into each other
            panels[0].set_xlabel(AXIS_WORDS[config["x"]["name"]], x=1.02 if len(models) == 2 else 0.5)
            open_cells = any(np.any(np.array(model["status"]) != "OPTIMAL") for model in models)
            _legend(figure, sorted(kinds), open_cells=open_cells)
            figure.suptitle(_fixed(config), size=6.5, color=COLOURS["muted"])
            layout = figure.get_layout_engine()
            assert layout is not None
            raster_canvas(figure)
            layout.execute(figure)  # labels follow curves, which needs the places of the axes
            figure.set_layout_engine("none")  # so that they stay there
            for ax, model in zip(panels, models, strict=True):
                _label_curves(ax, model["curves"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"`record` must be a complete phase diagram: {error!r}") from None
    return figure


def phase_axes(record: PhaseRecord, model: ModelPhaseRecord, ax: Axes) -> list[Line2D]:
    """One feature model: cells and curves, without the curves' labels."""
    x, y = np.array(record["x_values"]), np.array(record["y_values"])
    config, kinds = record["config"], _kinds(model)
    for axis, name, setting in ((ax.xaxis, "x", config["x"]), (ax.yaxis, "y", config["y"])):
        if setting["scale"] == "log":
            getattr(ax, f"set_{name}scale")("log")
            plain, span = setting["low"] >= 1e-3, setting["high"] / setting["low"]
            marks = (1, 2, 5) if span < 10 else (1, 3) if plain and span < 100 else (1,)  # 10^-5 needs more room
            axis.set_major_locator(LogLocator(subs=marks, numticks=8))
            axis.set_major_formatter(_PLAIN if plain else LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(3 if name == "x" else 6))
            axis.set_major_formatter(_PLAIN)
    mesh = {"shading": "nearest", "rasterized": True, "linewidth": 0}
    ax.pcolormesh(x, y, kinds // 10, cmap=ListedColormap(FILLS), vmin=-0.5, vmax=len(FILLS) - 0.5, **mesh)
    for i, hatch in enumerate(HATCHES.values()):
        if hatch and np.any(kinds % 10 == i):
            inside = (kinds % 10 == i).astype(float)
            ax.contourf(x, y, inside, levels=[0.5, 1.5], colors="none", hatches=[hatch])
    rows, columns = np.nonzero(np.array(model["status"]) != "OPTIMAL")
    ax.plot(x[columns], y[rows], "x", color=COLOURS["ink"], markersize=2.5, markeredgewidth=0.5)
    lines: list[Line2D] = []
    for curve in model["curves"]:
        for line in curve["lines"]:
            xs, ys = np.array(line).T
            ax.plot(xs, ys, color="white", linewidth=2.0, alpha=0.7, solid_capstyle="butt")  # seen on dark cells too
            width = 1.0 if curve["exact"] else 0.5
            lines += ax.plot(xs, ys, color=COLOURS["ink"], linewidth=width, linestyle=_DASHES[curve["transition"]])
    ax.set_title(PANEL_WORDS[model["features"]])
    ax.spines[:].set_visible(True)
    ax.tick_params(length=2.5)
    return lines


def _kinds(model: ModelPhaseRecord) -> NDArray[np.int64]:
    """10 times the worst state (3: both vanished) plus the number of the clusters in it, as in ``HATCHES``."""
    a, b = np.array(model["states"])
    worst = np.maximum(a, b)
    who = np.where(worst == 0, 0, np.where(a == b, 2, np.where(a == worst, 1, 0)))
    return np.where((a == 2) & (b == 2), 10 * ZERO, 10 * worst + who)


def _legend(figure: Figure, kinds: Sequence[int], *, open_cells: bool) -> None:
    handles: list[Any] = []
    for kind in kinds:
        worst, who = divmod(kind, 10)
        name = list(HATCHES)[who]
        words = "all zero" if worst == ZERO else "all separated" if worst == 0 else f"{name} {WORDS[worst]}"
        handles.append(
            Patch(facecolor=FILLS[worst], edgecolor=COLOURS["muted"], hatch=HATCHES[name], label=words, lw=0.5)
        )
    if open_cells:
        handles.append(Line2D([], [], marker="x", ls="", color=COLOURS["ink"], markersize=3, label="gap open"))
    ncols = len(handles) if len(handles) <= 4 else 3
    figure.legend(
        handles=[handles[i] for c in range(ncols) for i in range(c, len(handles), ncols)],  # read row by row
        loc="outside lower center",
        ncols=ncols,
        handler_map={Patch: HandlerPatch()},
        handlelength=1.3,
        columnspacing=1.0,
        handletextpad=0.4,
    )


def _fixed(config: PhaseConfigRecord) -> str:
    """The parameters that are the same in every cell."""
    s, moved = config["settings"], {config["x"]["name"], config["y"]["name"]}
    K, parts = s["num_classes"], []
    parts.append(f"{K} classes" if "share_a" in moved else f"{s['k_a']} large classes (A), {K - s['k_a']} small (B)")
    if not moved & {"n_a", "r"}:
        parts.append(f"$n_A$ = {s['n_a']:g}")
    if "n_b" not in moved and not {"r", "n_a"} <= moved:
        parts.append(f"$n_B$ = {s['n_b']:g}")
    normalized = s.get("over") is not None
    if normalized:
        parts.append(f"normalised per {s['over']}")
    for name, letter in (
        (("lambda_w", r"$\lambda_W$"), ("norm", r"$\rho$")) if normalized else (("lambda_z", r"$\lambda_Z$"),)
    ):
        if name not in moved:
            parts.append(f"{letter} = {number_text(s[name])}")
    if "lambda_b" not in moved:
        price = float(s["lambda_b"])
        words = {0.0: "free bias", float("inf"): "no bias"}
        parts.append(words.get(price, rf"$\lambda_b$ = {number_text(price)}"))
    if s["oversampling"] != 1 and "oversampling" not in moved:
        parts.append(f"$s$ = {s['oversampling']:g}")
    # lines break between the parts, never inside one
    held = ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
    return textwrap.fill(held, _LINE).replace("\N{NO-BREAK SPACE}", " ")


# --- labels on curves


def _label_curves(ax: Axes, curves: Sequence[CurveRecord]) -> list[Text]:
    """Each curve's name along it, far from other curves and names; short curves come first."""
    shown = [(curve, [_in_inches(ax, line) for line in curve["lines"]]) for curve in curves if curve["lines"]]
    size = np.array([ax.bbox.width, ax.bbox.height]) / ax.figure.dpi
    texts: list[Text] = []
    taken: list[Array] = []
    for curve, lines in sorted(shown, key=lambda item: len(item[1][0])):
        words = _curve_words(curve)
        others = [line for other, parts in shown if other is not curve for line in parts]
        places = _places(lines[0], int(len(words) * _LETTER / 2 / _STEP) + 1, size)
        if not places:
            continue
        # far enough from names not to touch them, then as far from other curves as two letters are high
        free = [min(_distance(span, taken), 0.2) + 0.25 * min(_distance(span, others), 0.15) for span in places]
        span = places[int(np.argmax(np.round(free, 3)))]  # on the curve rather than beside it, if it is as good
        taken.append(span)
        rise = float(np.degrees(np.arctan2(*(span[-1] - span[0])[::-1])))
        x, y = (span[len(span) // 2] / size).tolist()
        text = ax.text(
            x, y, words, transform=ax.transAxes, rotation=(rise + 90) % 180 - 90, size=_LABEL_SIZE, ha="center",
            va="center", bbox={"boxstyle": "round,pad=0.02", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
        text.set_in_layout(False)
        texts.append(text)
    return texts


def _places(path: Array, half: int, size: Array) -> list[Array]:
    """Where a label of 2 half + 1 steps may lie inside the axes: on its curve, then straight beside it, in inches."""
    middles = range(half, len(path) - half, 4)
    on = [path[c - half : c + half + 1] for c in middles]
    beside: list[Array] = []
    for span in on:
        along = (span[-1] - span[0]) / np.hypot(*(span[-1] - span[0]))
        straight = span[half] + _STEP * np.arange(-half, half + 1)[:, None] * along
        for normal in (np.array([-along[1], along[0]]), np.array([along[1], -along[0]])):
            moved = straight + _BESIDE * normal
            if _distance(moved, [path]) >= _CLEAR:
                beside.append(moved)
    return [span for span in (*on, *beside) if np.all((span > 0.05) & (span < size - 0.05))]


def _curve_words(curve: CurveRecord) -> str:
    if not curve["exact"]:
        return "column form"
    if curve["transition"] == "complete":
        return "all zero"
    return f"{curve['cluster']} {'merges' if curve['transition'] == 'merge' else 'vanishes'}"


def _in_inches(ax: Axes, line: Sequence[Sequence[float]]) -> Array:
    """Points from the lower left corner of the axes, one every ``_STEP`` inches."""
    points = (ax.transData.transform(np.array(line, dtype=np.float64)) - ax.bbox.min) / ax.figure.dpi
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    fine = np.linspace(0.0, along[-1], max(2, int(along[-1] / _STEP)))
    return np.stack([np.interp(fine, along, points[:, i]) for i in (0, 1)], axis=1)


def _distance(span: Array, others: Sequence[Array]) -> float:
    """From a part of a curve to the nearest point of the others, in inches."""
    return min((float(np.hypot(*(span[::8, None] - other[None]).T).min()) for other in others), default=np.inf)
