"""Pictures of the reproduced Figs. 1 to 9: each a function of one record, in the paper's axes and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from collapsar.core.types import Record
from collapsar.report import styled
from collapsar.report.style import COLOURS

# colour, line and word: the same two models in every picture
MODEL_LOOK: Mapping[str, tuple[str, Any, str]] = {
    "nonnegative": ("vermilion", "-", "nonnegative features"),
    "signed": ("blue", (0, (4, 2)), "signed features"),
}
SEQUENCE = ("blue", "vermilion", "green", "purple", "orange")
SMALL = "x-small"
LINEAR = 0.03  # below this the grey scale of Figs. 5 to 8 is linear


def paper_figure(record: Record) -> Figure:
    """The picture of a reproduced figure.

    Args:
        record: As ``collapsar reproduce`` writes it, with "number" 1 to 9.

    Raises:
        ValueError: The record is not of one of these figures.
    """
    number = record.get("number")
    if number not in _DRAW:
        raise ValueError(f"`record` must be of one of the figures 1 to 9, got number {number!r}")
    with styled():
        return _DRAW[number](record)


def _array(values: Any) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _first_seed(record: Record) -> int:
    return record["seeds"][0]


def plain_log_ticks(ax: Axes, values: Sequence[float], which: str = "x") -> None:
    """Plain numbers at chosen places of a logarithmic axis."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    getattr(ax, f"set_{which}scale")("log")
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def heatmap_row(axes: Sequence[Axes], matrices: Sequence[Any], norm: Normalize) -> list[AxesImage]:
    """Square grey maps, dark for large, no ticks."""
    images = []
    for ax, Z in zip(axes, matrices, strict=True):
        images.append(ax.imshow(_array(Z), cmap="Greys", norm=norm))
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(True)
            spine.set_linewidth(0.4)
    return images


# --- Fig. 1


def _fig_1(record: Record) -> Figure:
    """Ln NC1 over epochs, one panel for each profile of counts."""
    profiles = list(dict.fromkeys(run["counts"] for run in record["runs"]))
    networks = list(dict.fromkeys(run["network"] for run in record["runs"]))
    figure = Figure(figsize=(6.6, 2.6), layout="constrained")
    panels = figure.subplots(1, len(profiles), sharey=True, squeeze=False)[0]
    for ax, profile in zip(panels, profiles, strict=True):
        for network, colour in zip(networks, SEQUENCE, strict=False):
            mine = [run for run in record["runs"] if (run["counts"], run["network"]) == (profile, network)]
            for i, run in enumerate(mine):
                label = network if i == 0 else None
                ax.plot(run["epoch"], np.log(_array(run["nc1_uniform"])), color=COLOURS[colour], label=label, alpha=0.8)
        ax.set_title(f"{record['data']}, {profile}", loc="left")
        ax.set_xlabel("epoch")
    panels[0].set_ylabel("ln NC1")
    panels[0].legend()
    return figure


# --- Figs. 2 and 4


def _fig_2(record: Record) -> Figure:
    """Z of every network and of both optima, one linear grey scale from the smallest to the largest entry of all."""
    runs = [run for run in record["runs"] if "Z" in run]
    profiles = list(dict.fromkeys(run["counts"] for run in runs))
    columns = list(dict.fromkeys(run["network"] for run in runs))
    everything = [_array(run["Z"]) for run in runs] + [_array(o["Z"]) for run in runs for o in run["optimum"].values()]
    norm = Normalize(min(Z.min() for Z in everything), max(Z.max() for Z in everything))
    figure = Figure(figsize=(1.35 * (len(columns) + 2) + 0.6, 1.5 * len(profiles) + 0.4), layout="constrained")
    panels = figure.subplots(len(profiles), len(columns) + 2, squeeze=False)
    for row, profile in zip(panels, profiles, strict=True):
        mine = {run["network"]: run for run in runs if run["counts"] == profile}
        any_run = next(iter(mine.values()))
        blank = np.full(_array(any_run["Z"]).shape, np.nan)  # a run that has not ended
        matrices = [mine[name]["Z"] if name in mine else blank for name in columns]
        matrices += [any_run["optimum"][m]["Z"] for m in MODEL_LOOK]
        heatmap_row(row, matrices, norm)
        row[0].set_ylabel(profile)
        for ax, name in zip(row, columns, strict=False):
            if name not in mine:
                continue
            off = {m: mine[name]["distance"][m]["Z"] for m in MODEL_LOOK}
            ax.set_xlabel(f"off by {off['nonnegative']:.3f} | {off['signed']:.3f}", size=SMALL)
    for ax, title in zip(panels[0], [*columns, *(f"optimum,\n{look[2]}" for look in MODEL_LOOK.values())], strict=True):
        ax.set_title(title, size=SMALL)
    bar = figure.colorbar(panels[0][0].images[0], ax=list(panels.ravel()), aspect=30, pad=0.01)
    bar.set_label("mean prediction [logit, class], nats")
    figure.supxlabel("relative Frobenius distance: nonnegative | signed model", size=SMALL)
    return figure


# --- Fig. 3


def _fig_3(record: Record) -> Figure:
    """Relative distance of Z and of b to both optima over epochs, and where the paper's networks end."""
    profiles = list(dict.fromkeys(run["counts"] for run in record["runs"]))
    figure = Figure(figsize=(6.8, 4.6), layout="constrained")
    panels = figure.subplots(2, len(profiles), sharey="row", sharex="col", squeeze=False)
    for column, profile in zip(panels.T, profiles, strict=True):
        mine = [run for run in record["runs"] if run["counts"] == profile]
        for ax, first, names in zip(column, (0, 2), (("Z", "Z_max"), ("b", "b_max")), strict=True):
            _distance_curves(ax, mine, names)
            printed = record["printed"][profile][first : first + 2]
            for value, fill in zip(printed, (COLOURS["ink"], "white"), strict=True):
                ax.plot(1.015, value, "<", transform=ax.get_yaxis_transform(), clip_on=False, color=COLOURS["ink"],
                        markerfacecolor=fill, markersize=4.5)  # fmt: skip
            ax.axhline(record["between_models"][profile][first], color=COLOURS["muted"], linewidth=0.8, linestyle=":")
            ax.set_yscale("log")
        column[0].set_title(f"{record['data']}, {profile}", loc="left")
        column[-1].set_xlabel("epoch")
    for ax, word in zip(panels[:, 0], ("Z", "b"), strict=True):
        ax.set_ylabel(f"relative distance of {word}")
    handles = [
        Line2D([], [], color=COLOURS[colour], linestyle=style, label=f"network to optimum, {word}")
        for colour, style, word in MODEL_LOOK.values()
    ]
    handles.append(Line2D([], [], color=COLOURS["muted"], linewidth=0.8, linestyle=":", label="between both optima"))
    handles += [
        Line2D([], [], color=COLOURS["ink"], linewidth=width, alpha=alpha, marker="<", markerfacecolor=fill,
               markersize=4.5, label=word)
        for width, alpha, fill, word in (
            (1.3, 1.0, COLOURS["ink"], "Euclidean norm; triangle: the paper's end"),
            (0.7, 0.55, "white", "largest entry; triangle: the paper's end"),
        )
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _distance_curves(ax: Axes, runs: Sequence[Record], names: tuple[str, str]) -> None:
    """A strong line for the norm and a faint one for the largest entry, to both models, for every seed."""
    for name, width, alpha in ((names[1], 0.7, 0.55), (names[0], 1.3, 1.0)):
        for model, (colour, style, _) in MODEL_LOOK.items():
            for run in runs:
                curve = _array(run["curves"][model][name])
                ax.plot(run["epoch"], curve, color=COLOURS[colour], linestyle=style, linewidth=width, alpha=alpha)


# --- Figs. 5 to 8


def _fig_5_to_8(record: Record) -> Figure:
    """Grey maps of Z over the axis, network above both optima; below, contrasts over the axis with the transitions."""
    seed = _first_seed(record)
    runs = [run for run in record["runs"] if run["seed"] == seed]
    # One scale for all maps: symmetric logarithmic, linear below LINEAR, as in the paper.
    top = max(float(np.abs(_array(o["Z"])).max()) for run in runs for o in run["optimum"].values())
    norm = SymLogNorm(LINEAR, vmin=-top, vmax=top)
    figure = Figure(figsize=(7.4, 4.9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
    panels = upper.subplots(3, len(runs), squeeze=False)
    rows = {"network": [run["Z"] for run in runs]}
    rows |= {look[2]: [run["optimum"][model]["Z"] for run in runs] for model, look in MODEL_LOOK.items()}
    for row, (name, matrices) in zip(panels, rows.items(), strict=True):
        heatmap_row(row, matrices, norm)
        row[0].set_ylabel(name.replace(" ", "\n"), size=SMALL)
    for ax, run in zip(panels[0], runs, strict=True):
        ax.set_title(f"{run['value']:g}", size=SMALL)
    bar = upper.colorbar(panels[0][0].images[0], ax=list(panels.ravel()), aspect=25, pad=0.01)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(
        [-top, -0.3, -LINEAR, LINEAR, 0.3, top], labels=[f"{-top:.1f}", "-.3", "-.03", ".03", ".3", f"{top:.1f}"]
    )
    _contrasts(lower.subplots(), record)
    return figure


def _contrasts(ax: Axes, record: Record) -> None:
    """Contrast inside A and inside B: dots for every seed, curves for both models, bars for the observed brackets."""
    theory = record["theory"]
    clusters = {"A": ("green", "o", 0), "B": ("purple", "s", 1)}
    for cluster, (colour, marker, place) in clusters.items():
        for model, (_, style, word) in MODEL_LOOK.items():
            ax.plot(
                theory["value"], theory[model][cluster], color=COLOURS[colour], linestyle=style, linewidth=1.1,
                label=f"inside {cluster}, {word}",
            )  # fmt: skip
        points = [(run["value"], run["contrasts"][place]) for run in record["runs"]]
        ax.plot(*zip(*points, strict=True), marker, color=COLOURS[colour], markersize=4, markerfacecolor="none",
                label=f"inside {cluster}, networks", linestyle="none")  # fmt: skip
    top = ax.get_ylim()[1]
    lowest, highest = record["values"][0], record["values"][-1]
    plain_log_ticks(ax, record["values"])
    ax.tick_params(axis="x", labelsize=6, labelrotation=45)
    ax.set_ylim(-0.05 * top, top * 1.2)
    ax.set_xlim(lowest * 0.97, highest * 1.03)
    for i, event in enumerate(("minority", "complete")):
        _transition(ax, record, event, top * (1.03 + 0.09 * i))
    ax.set_xlabel(
        r"penalty $\lambda_Z$" if record["varied"] == "lambda_z" else r"majority images $n_A$, at $\lambda_Z$ = 0.005"
    )
    ax.set_ylabel("contrast, nats")
    handles = [*ax.get_legend_handles_labels()[0], *transition_handles()]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))


def transition_handles() -> list[Any]:
    """Legend entries for observed and predicted transitions."""
    look: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 9, "markeredgewidth": 2}
    handles: list[Any] = [Patch(color=COLOURS["muted"], alpha=0.35, label="transition, networks")]
    return handles + [
        Line2D([], [], color=COLOURS[colour], label=f"transition, {word}", **look)
        for colour, _, word in MODEL_LOOK.values()
    ]


def _transition(ax: Axes, record: Record, event: str, height: float) -> None:
    """Bars from the last value before to the first value after; ticks where the models have it, arrows beyond."""
    lowest, highest = record["values"][0], record["values"][-1]
    ends = []
    for seen in record["observed"]:
        low, high = seen[event]
        ends.append((lowest if low is None else low, highest if high is None else high))
        ax.plot(ends[-1], [height] * 2, color=COLOURS["muted"], linewidth=4, alpha=0.35, solid_capstyle="butt")
    marks = {model: record["predicted"][model][event] for model in MODEL_LOOK}
    for model, (colour, _, _) in MODEL_LOOK.items():
        if marks[model] <= highest * 1.03:
            ax.plot(marks[model], height, "|", color=COLOURS[colour], markersize=9, markeredgewidth=2)
        else:
            ax.annotate(f"→ {marks[model]:.4g}", (1.01, height), xycoords=ax.get_yaxis_transform(), size=SMALL,
                        ha="left", va="center", color=COLOURS[colour])  # fmt: skip
    inside = [mark for mark in marks.values() if mark <= highest * 1.03]
    words = {"minority": "B collapses", "complete": "all collapse"}[event]
    left = min([low for low, _ in ends] + inside)
    ax.annotate(words, (left, height), xytext=(-6, 0), textcoords="offset points", size=SMALL, ha="right", va="center",
                color=COLOURS["muted"])  # fmt: skip


# --- Fig. 9


def _fig_9(record: Record) -> Figure:
    """Mean cosine of the columns of Z over n_A, both optima, and the simplex ETF."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    ax = figure.subplots()
    values = sorted({run["value"] for run in record["runs"]})
    words = {"A": "two of A", "B": "two of B", "across": "one of each"}
    for (pair, word), colour, marker in zip(words.items(), SEQUENCE, "os^", strict=False):
        points = [(run["value"], run["cosines"][pair]) for run in record["runs"]]
        ax.plot(*zip(*points, strict=True), marker, color=COLOURS[colour], markersize=4, label=f"{word}, networks",
                markerfacecolor="none", linestyle="none")  # fmt: skip
        for model, (_, style, _) in MODEL_LOOK.items():
            first = {run["value"]: run["optimum_cosines"][model][pair] for run in record["runs"]}
            ax.plot(values, [first[v] for v in values], color=COLOURS[colour], linestyle=style, linewidth=1.1)
    ax.axhline(record["etf"], color=COLOURS["muted"], linewidth=0.8)
    ax.annotate("simplex ETF, -1/9", (0.0, record["etf"]), xycoords=("axes fraction", "data"), size=SMALL, ha="left",
                va="bottom", xytext=(2, 6), textcoords="offset points", color=COLOURS["muted"])  # fmt: skip
    ax.set_xlabel("majority images $n_A$ in the paper's units, $n_B = n_A/2$")
    ax.set_ylabel("mean cosine of columns of Z")
    ax.legend(loc="center", bbox_to_anchor=(0.5, 0.75), title="solid: nonnegative, dashed: signed optimum",
              title_fontsize=SMALL)  # fmt: skip
    return figure


_DRAW = {1: _fig_1, 2: _fig_2, 3: _fig_3, 4: _fig_2, **dict.fromkeys((5, 6, 7, 8), _fig_5_to_8), 9: _fig_9}
