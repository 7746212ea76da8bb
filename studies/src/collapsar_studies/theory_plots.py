"""Pictures of the theory: each a function of one record that returns a figure and computes nothing but places.

The records come from ``collapsar figures theory``; a number that is undefined is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from collapsar.core.types import Record
from collapsar.report import styled
from collapsar.report.style import COLOURS

# The two feature models look alike everywhere: colour, marker and word.
MODEL_STYLE = {
    "signed": ("blue", "o", "signed features"),
    "nonnegative": ("vermilion", "X", "nonnegative features"),
}
SEQUENCE = ("blue", "vermilion", "green", "purple", "orange")
SMALL = "x-small"


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """None becomes NaN, "inf" infinity."""
    return np.array([np.nan if v is None else float(v) for v in values])


def _label(ax: Axes, x: float, y: float, words: str, colour: str = "ink", **how: Any) -> None:
    settings = {"size": SMALL, "ha": "left", "va": "center", "color": COLOURS[colour], **how}
    ax.text(x, y, words, **settings)


def _threshold(ax: Axes, x: float, words: str, *, left: bool = False) -> None:
    """A vertical line with its name at the upper end, upright beside it."""
    ax.axvline(x, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    ax.annotate(
        words,
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if left else 3, -2),
        textcoords="offset points",
        size=SMALL,
        ha="right" if left else "left",
        va="top",
        rotation=90,
        color=COLOURS["muted"],
    )


def table_figure(record: Record) -> Figure:
    """Observed brackets of Figs. 5-8 as bars, both models as markers."""
    with styled():
        figure = Figure(figsize=(7.0, 2.5), layout="constrained")
        panels = figure.subplots(1, 2)
        for ax, varied, low in ((panels[0], "lambda_z", 0.003), (panels[1], "n_a", 230)):
            rows = [row for row in record["rows"] if row["varied"] == varied]
            places = [(row, event) for row in rows for event in ("minority", "complete")]
            for i, (row, event) in enumerate(places):
                y = len(places) - 1 - i
                begin, end = row["observed"][event]
                ax.plot(
                    [low if begin is None else begin, end],
                    [y, y],
                    color=COLOURS["rule"],
                    linewidth=9,
                    solid_capstyle="butt",
                )
                if begin is None:
                    ax.plot(low, y, "<", color=COLOURS["rule"], markersize=8, clip_on=False)
                for model, (colour, marker, _) in MODEL_STYLE.items():
                    ax.plot(
                        row[model][event],
                        y,
                        marker,
                        color=COLOURS[colour],
                        markersize=6,
                        markeredgecolor="white",
                        markeredgewidth=0.5,
                    )
            words = {"minority": "small classes\ncollapse", "complete": "everything\ncollapses"}
            names = [f"Fig. {row['figure']}: {words[event]}" for row, event in places]
            ax.set_yticks(range(len(places) - 1, -1, -1), names, size=SMALL)
            ax.set_ylim(-0.6, len(places) - 0.4)
            ax.set_xscale("log")
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
        _ticks(panels[0], (0.003, 0.004, 0.005, 0.007, 0.01))
        _ticks(panels[1], (250, 500, 1000, 2000, 4000))
        panels[0].set_xlabel(r"penalty $\lambda_Z$, at n = (500, 100)")
        panels[1].set_xlabel(r"majority samples $n_A$, at $\lambda_Z$ = 0.005")
        handles = [panels[0].plot([], [], m, color=COLOURS[c], label=w)[0] for c, m, w in MODEL_STYLE.values()]
        handles += panels[0].plot(
            [], [], color=COLOURS["rule"], linewidth=6, label="network, bracket read from the figure"
        )
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _ticks(ax: Axes, values: Sequence[float]) -> None:
    """Plain numbers at chosen places of a logarithmic axis."""
    ax.xaxis.set_major_locator(FixedLocator(list(values)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(list(values), [f"{v:g}" for v in values])


def walk_figure(record: Record) -> Figure:
    """The entries of the two-cluster optimum over lambda_z."""
    x = np.array(record["lambda_z"])
    curves = {name: _numbers(record[name]) for name in ("b", "c", "d", "alpha_a", "alpha_b")}
    t = record["thresholds"]
    look = {
        "alpha_a": ("contrast inside A, α_A", "blue", 0.0050, (0.0, 0.4)),
        "alpha_b": ("inside B, α_B", "vermilion", 0.0015, (-0.00022, -1.0)),
        "b": ("b (across)", "purple", 0.0019, (0.0, 0.22)),
        "c": ("c", "green", 0.00355, (0.0, -0.62)),
        "d": ("d", "ink", 0.0023, (0.0, -0.22)),
    }
    with styled():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        ax = figure.subplots()
        ax.axhline(0, color=COLOURS["rule"], linewidth=0.8, zorder=0)
        for name, (words, colour, at, (dx, dy)) in look.items():
            ax.plot(x, curves[name], color=COLOURS[colour], linestyle="--" if name == "d" else "-")
            _label(ax, at + dx, float(np.interp(at, x, curves[name])) + dy, words, colour)
        lowest = int(np.nanargmin(curves["d"]))
        line: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.6, "color": COLOURS["muted"]}
        for words, name, i, place in (
            ("d < 0", "d", lowest, (x[lowest] - 0.0007, -0.75)),
            ("", "c", int(np.searchsorted(x, 0.0035)), (0.00358, -0.42)),
        ):
            ax.annotate(words, (x[i], curves[name][i]), xytext=place, size=SMALL, ha="center", arrowprops=line)
        _threshold(ax, t["merge"], "B merges")
        _threshold(ax, t["vanish"], "B vanishes")
        _threshold(ax, t["complete"], "all collapses", left=True)
        ax.set_ylim(-1.0, None)
        ax.set_xlim(x[0], x[-1])
        ax.set_xlabel(rf"penalty $\lambda_Z$   (k = 5, 5; n = 500, 100; $\lambda_b$ = {record['lambda_b']:g})")
        ax.set_ylabel("logits (nats)")
    return figure


def vanish_figure(record: Record) -> Figure:
    """The maps lambda*(lambda_b) of both models, and the sample of problems."""
    with styled():
        figure = Figure(figsize=(7.0, 5.6), layout="constrained")
        panels = figure.subplots(2, 2)
        for ax, model in zip(panels[0], MODEL_STYLE, strict=True):
            _maps(ax, record, model)
        _sample(figure, panels[1], record["samples"]["signed"])
    return figure


# Where the label of each map begins (log10 lambda_b), and how far above its curve: clear of the other curves.
_MAP_LABELS = {
    "signed": [(-5.7, 0.965), (-5.7, 1.04), (-5.7, 0.965), (-5.7, 1.04), (-5.7, 1.04)],
    "nonnegative": [(-5.7, 1.007), (-5.7, 0.99), (-5.7, 1.007), (-5.7, 1.007), (-0.3, 1.007)],
}


def _maps(ax: Axes, record: Record, model: str) -> None:
    prices = _numbers(record["lambda_b"])
    inner = np.log10(prices[1:-1])
    left, right = inner[0] - 1.0, inner[-1] + 1.0
    x = np.concatenate([[left], inner, [right]])
    for colour, curve in zip(SEQUENCE, record["curves"], strict=True):
        y = np.array(curve[model]["lambda_z"]) / curve["merge"]
        exact = np.array(curve[model]["exact"], dtype=bool)
        open_until = int(np.argmax(exact)) if exact.any() else exact.size - 1
        style: dict[str, Any] = {"color": COLOURS[colour], "zorder": 3}
        ax.plot(x[max(open_until, 1) : -1], y[max(open_until, 1) : -1], **style)
        ax.plot(x[1 : open_until + 1], y[1 : open_until + 1], linestyle=(0, (3, 1.5)), **style)
        for ends in (slice(0, 2), slice(-2, None)):
            ax.plot(x[ends], y[ends], linestyle=":", linewidth=1.0, **style)
        ax.plot(x[[0, -1]], y[[0, -1]], "o", markersize=3.5, clip_on=False, **style)
        if model == "signed":
            low = curve["lowest"]
            ax.plot(np.log10(low["lambda_b"]), low["lambda_z"] / curve["merge"], "v", markersize=5, **style)
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())
    values = (1, 1.2, 1.5, 2, 3) if model == "signed" else (0.9, 0.95, 1.0, 1.05, 1.1)
    ax.set_yticks(values, [f"{v:g}" for v in values])
    ax.set_ylim(values[0], values[-1])
    for i, curve in enumerate(record["curves"]):
        at, lift = _MAP_LABELS[model][i % len(SEQUENCE)]
        y = float(np.interp(at, x, curve[model]["lambda_z"])) / curve["merge"] * lift
        _label(ax, at, y, "({}, {}, {}, {})".format(*curve["setting"]), SEQUENCE[i % len(SEQUENCE)])
    decades = [-4, -2, 0, 2]
    ax.set_xticks([left, *decades, right], ["0", *(f"$10^{{{d}}}$" for d in decades), "∞"])
    ax.set_xlim(left, right)
    ax.set_xlabel(r"price of the bias, $\lambda_b$")
    ax.set_ylabel(r"$\lambda^*$ over $\sqrt{n_B}/N$")
    ax.set_title(f"{MODEL_STYLE[model][2]}: small classes vanish at λ*\n", loc="left")
    notes = {
        "signed": "curves: ($k_A$, $k_B$, $n_A$, $n_B$); ▾ lowest",
        "nonnegative": "dashed: classes would share directions and live longer",
    }
    ax.annotate(
        notes[model], (0.0, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", size=SMALL
    )


def _sample(figure: Figure, axes: Sequence[Axes], sample: Record) -> None:
    r, total = np.array(sample["r"]), np.array(sample["k_a"]) + np.array(sample["k_b"])
    part = np.array(sample["k_b"]) / total
    common: dict[str, Any] = {
        "c": part,
        "cmap": "cividis",
        "vmin": 0,
        "vmax": 1,
        "s": 5,
        "linewidths": 0,
        "rasterized": True,
    }
    dots = axes[0].scatter(r, sample["ends_ratio"], **common)
    axes[0].axhline(1, color=COLOURS["muted"], linewidth=0.8)
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].set_xlabel("imbalance $n_A / n_B$")
    axes[0].set_ylabel("λ*(∞) / λ*(0)")
    turns = sample["turning_points"].get("1", 0)
    axes[0].set_title(
        f"signed, random problems: {turns} of {sample['num_problems']}\nfall, turn once, and rise", loc="left"
    )
    axes[1].scatter(r, sample["dip"], **common)
    axes[1].set_xscale("log")
    axes[1].set_xlabel("imbalance $n_A / n_B$")
    axes[1].set_ylabel("lowest λ* / lower end")
    axes[1].set_title("how deep the map dips\nbelow both of its ends", loc="left")
    bar = figure.colorbar(dots, ax=list(axes), aspect=25, pad=0.01)
    bar.set_label(r"share of small classes, $k_B / K$")
    bar.outline.set_visible(False)


def large_samples_figure(record: Record) -> Figure:
    """Left: what the columns' cosines do at first order in 1/log N. Right: the ETF for Z, SELI for W."""
    runs = record["runs"]
    log_n = np.array([run["log10_N"] for run in runs]) * np.log(10)
    words = {"A": "two columns of A", "B": "two columns of B", "across": "one of each"}
    with styled():
        figure = Figure(figsize=(7.0, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (pair, name), colour in zip(words.items(), ("blue", "vermilion", "green"), strict=True):
            scaled = {
                key: (_numbers([run.get(key, {}).get(pair) for run in runs]) - record["etf_cosine"]) * log_n
                for key in ("cosines", "self_consistent", "solver")
            }
            limit = record["slope"][pair]
            x = 1 / log_n
            left.plot([*x, 0], [*scaled["self_consistent"], limit], color=COLOURS[colour], linewidth=1.0)
            left.plot(x, scaled["cosines"], "o", color=COLOURS[colour], markersize=3)
            left.plot(
                x,
                scaled["solver"],
                "o",
                color=COLOURS[colour],
                markersize=6,
                markerfacecolor="none",
                markeredgewidth=0.7,
            )
            left.plot(0, limit, "D", color=COLOURS[colour], markersize=5, clip_on=False, zorder=4)
            _label(left, 0.085, float(np.interp(0.085, x[::-1], scaled["cosines"][::-1])) + 0.1, name, colour)
        left.set_xticks(
            [0, *(1 / (e * np.log(10)) for e in (40, 12, 6, 4, 3))],
            ["∞", *(f"$10^{{{e}}}$" for e in (40, 12, 6, 4, 3))],
        )
        left.set_xlim(0, 0.152)
        left.set_ylim(-0.95, 1.1)
        left.set_xlabel("samples N (linear in 1/log N)")
        left.set_ylabel("(cosine + 1/9) · log N")
        left.axhline(0, color=COLOURS["rule"], linewidth=0.8, zorder=0)
        left.set_title("◆ constant  ● closed form  ○ solver  — self-consistent", loc="left", size=SMALL)
        exponents = [run["log10_N"] for run in runs]
        for key, name, colour, style, at, dy in (
            ("W_to_etf", "W'W to the ETF", "vermilion", "-", 12, 0.011),
            ("W_to_seli", "W'W to SELI", "blue", "-", 3.1, -0.016),
            ("Z_to_etf", "Z to the ETF", "green", "--", 7, 0.011),
        ):
            y = np.array([run[key] for run in runs])
            right.plot(exponents, y, style, color=COLOURS[colour])
            _label(right, at, float(np.interp(at, exponents, y)) + dy, name, colour)
        right.set_xscale("log")
        right.set_xticks([3, 6, 12, 40, 150], [f"$10^{{{e}}}$" for e in (3, 6, 12, 40, 150)])
        right.xaxis.set_minor_locator(NullLocator())
        right.set_ylim(0, 0.21)
        right.set_xlabel("samples N")
        right.set_ylabel("distance of unit matrices")
    return figure


def oversampling_figure(record: Record) -> Figure:
    """Thresholds over the oversampling factor, penalty repeated and held."""
    s = np.array(record["factor"])
    with styled():
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for ax, penalty in zip(panels, ("repeated", "held"), strict=True):
            for key, name, colour, style, at, dy in (
                ("merge_a", "A merges", "blue", "-", 1.15, 1.1),
                ("merge_b", "B merges (signed)", "vermilion", "-", 150, 1.12),
                ("vanish_b", "B vanishes\n(nonnegative)", "purple", "--", 1.6, 0.72),
            ):
                y = _numbers(record[penalty][key])
                ax.plot(s, y, style, color=COLOURS[colour])
                _label(ax, at, float(np.exp(np.interp(np.log(at), np.log(s), np.log(y)))) * dy, name, colour)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel("every sample of B drawn s times")
            ax.set_title(f"feature penalty {penalty}", loc="left")
            ax.axvline(record["best"], color=COLOURS["rule"], linewidth=0.8, zorder=0)
            _label(ax, record["best"] * 0.93, 0.00108, "loss balanced", "muted", ha="right", va="bottom")
        ax = panels[0]
        ax.axhline(record["lambda_z"], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 2)))
        ax.plot(record["least"], record["lambda_z"], "o", color=COLOURS["ink"], markersize=5, zorder=4)
        _label(ax, record["least"] * 1.07, record["lambda_z"] * 0.93, f"least s = {record['least']:.2f}", va="top")
        panels[0].set_ylim(0.001, 0.0105)
        panels[0].yaxis.set_minor_locator(NullLocator())
        panels[0].set_yticks([0.001, 0.002, 0.004, 0.007, 0.01], ["0.001", "0.002", "0.004", "0.007", "0.01"])
        panels[0].set_ylabel(r"threshold of $\lambda_Z$")
    return figure


def landscape_figure(record: Record) -> Figure:
    """The objective above the optimum during descent, its computable bound, and the saddles it rests at."""
    trace = record["trace"]
    steps = [row["step"] for row in trace]
    names = {0: "everything zero", 4: "A apart, B zero", 5: "A apart, B merged"}
    with styled():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        ax = figure.subplots()
        ax.plot(steps, [row["gap"] for row in trace], color=COLOURS["orange"], linewidth=3.0, alpha=0.6)
        ax.plot(steps, [max(row["excess"], 1e-14) for row in trace], color=COLOURS["blue"])
        for rest in record["rests"]:
            ax.plot(
                [rest["first_step"], rest["last_step"]], [rest["excess"]] * 2, color=COLOURS["vermilion"], linewidth=4.0
            )
            norm = rest["spectral_norm"] / record["lambda_z"]
            words = f"saddle: {names.get(rest['rank'], '')}\n‖R‖ = {norm:.2f} $\\lambda_Z$"
            _label(ax, rest["last_step"] + 25, rest["excess"] * 1.5, words, "vermilion", va="bottom")
        end = max(row["step"] for row in trace if row["excess"] > 1e-11)
        _label(ax, end + 15, 1e-10, "global", "blue", va="bottom")
        _label(ax, 20, 3e-6, "blue: objective above the optimum\norange: certified gap of that point", "muted")
        ax.set_yscale("log")
        ax.set_ylim(1e-12, 20)
        ax.set_xlabel("steps of gradient descent on (W, H, b)")
        ax.set_ylabel("nats")
    return figure
