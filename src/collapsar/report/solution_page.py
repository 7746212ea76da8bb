"""What a page shows of an optimum: states, scores, geometry, and its path over the penalty. Computes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from collapsar.core.types import Record
from collapsar.report.advice import class_words
from collapsar.report.network_axis import gradual, threshold_view
from collapsar.report.network_words import first_thresholds, price_of, solution_headline
from collapsar.report.page import colour_bar, drawn, plane_views, score_map
from collapsar.report.penalty_axis import latest
from collapsar.report.plots import largest_score, legend_above, log_ticks
from collapsar.report.record import defined, same_counts
from collapsar.report.style import CLUSTER_COLOURS, COLOURS, PAGE_INCHES
from collapsar.report.words import number_text

_SIDES = (("features", "The class means"), ("heads", "The rows of the head"))
_COLUMNS = ("classes", "samples each", "state", "merge from", "vanish from", "own score", "of a like class", "bias",
            "mean predictions", "class mean", "row of the head")  # fmt: skip
_COSINE = "cosine of “{column}” and “{row}”"


def solution_view(record: Record, ident: str, source: str) -> Record:
    """What the templates show of an optimum.

    Args:
        record: As from ``app.solution_report``, in plain JSON values.
        ident: Prefix of every id.
        source: Its place in the page's record, keys joined by points.
    """
    data = {
        **record,
        "clusters": same_counts(record["class_counts"]),
        "separation": {"states": record["class_states"], "groups": record["prediction"]["groups"]},
    }
    own = record["prediction"]
    scale, scores = _scores(data, ident, source)
    unit = "head decay λ<sub>W</sub>" if own["unit"] == "lambda_w" else "penalty λ<sub>Z</sub>"
    why = record.get("reason", "")  # records of earlier versions have none
    return {
        "id": ident,
        "name": record["name"],
        "headline": solution_headline(record),
        "setting": record["setting"],
        "reason": why,
        "unit": unit,
        "threshold_svg": threshold_view(data, ident, f"Thresholds of theory and this optimum among them. {why}"),
        "gradual": gradual(own),
        "features": own["features"],
        "columns": _COLUMNS,
        "rows": _rows(record),
        "class_counts": record["class_counts"],
        "scale": colour_bar(scale) if scores else [],
        "scores": scores,
        "unit_scale": colour_bar(1.0),
        "cosines": _cosines(data, ident, source),
        "planes": _planes(data, ident),
        "path_svgs": _path(record, ident),
        "certificate": _certificate(record),
    }


def _certificate(record: Record) -> str:
    length = "" if record["norm"] is None else f" The features have length {number_text(record['norm'], 4)}."
    return (
        f"Objective {record['primal']:.9g} nats, proved to be at most {number_text(record['gap'], 2)} above the "
        f"optimum ({record['status']}, {record['num_steps']} steps). Mean predictions of rank {record['rank']}.{length}"
    )


def _rows(record: Record) -> list[tuple[Any, ...]]:
    """A row for each group of classes that are alike."""
    theory, rows = record["prediction"], []
    first, alone = first_thresholds(theory).tolist(), gradual(theory)
    for group in record["groups"]:
        k = group["classes"][0]
        merge = f"≈ {number_text(first[k])}" if k in alone else number_text(theory["merge"][k])
        vanish = f"{latest(theory['features']) if k in alone else ''}{number_text(theory['vanish'][k])}"
        numbers = (number_text(group[name], 4) for name in ("own", "sibling", "bias", "length"))
        lengths = (number_text(record[side]["lengths"][k], 3) for side, _ in _SIDES)
        rows.append(
            (class_words(group, record["class_names"]), str(group["samples"]), {"state": group["state"]}, merge,
             vanish, *numbers, *lengths)
        )  # fmt: skip
    return rows


def _scores(data: Record, ident: str, source: str) -> tuple[float, list[Record]]:
    """The map of mean predictions, with the magnitude of its full colour; none for very many classes."""
    if data["Z"] is None:
        return 1.0, []
    label = "Mean predictions at the optimum as colours, a column per class of samples, a row per score."
    scale = largest_score([data["Z"]])
    shown = {"side": "optimum", "heading": "Mean predictions", "source": f"{source}Z", "label": label}
    return scale, [score_map(data["Z"], data, scale, f"{ident}-map", **shown)]


def _cosines(data: Record, ident: str, source: str) -> list[Record]:
    if any(data[side]["cosines"] is None for side, _ in _SIDES):
        return []
    return [
        score_map(
            data[side]["cosines"], data, 1.0, f"{ident}-cosines", _COSINE, side=heading[4:], heading=heading,
            source=f"{source}{side}.cosines", label=f"{heading}: cosines between classes as colours.",
        )
        for side, heading in _SIDES
    ]  # fmt: skip


def _planes(data: Record, ident: str) -> list[Record]:
    if data["geometry"] is None or set(data["class_states"]) == {"vanished"}:
        return []
    common = {"what": "vectors", "states": data["class_states"], "groups": data["separation"]["groups"]}
    sides = [{"key": key, "heading": heading, "vectors": data["geometry"][key], **common} for key, heading in _SIDES]
    return [view for side in sides for view in plane_views([side], data["class_names"], ident)]  # each on its own scale


def _path(record: Record, ident: str) -> list[Record]:
    """Two charts over the penalty."""
    charts = (
        ("apart", "Distance between two classes of one size"),
        ("length", "Length of the mean predictions"),
    )
    if record["path"] is None:
        return []
    views = []
    for key, heading in charts:
        if not any(defined(value) for values in record["path"][key] for value in values):
            continue  # no two classes of one size
        label = f"{heading}, relative to the longest mean predictions, over {record['prediction']['unit']}."
        svg = drawn(
            lambda ax, key=key: path_lines(record, key, ax), (PAGE_INCHES * 0.7, 2.0), f"{ident}-path-{key}", label
        )
        views.append({"heading": heading, "svg": svg})
    return views


def path_lines(record: Record, key: str, ax: Axes) -> list[Line2D]:
    """``apart`` or ``length`` of the path of an optimum over the penalty, a line for each group of classes."""
    path, counts = record["path"], record["class_counts"]
    shown = [j for j, values in enumerate(path[key]) if any(map(defined, values))]
    if len(shown) > len(CLUSTER_COLOURS):  # the largest, the smallest and some between
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, len(CLUSTER_COLOURS)).round().astype(int)]
    lines: list[Line2D] = []
    for colour, j in zip(CLUSTER_COLOURS, shown, strict=False):
        heights = [value if defined(value) else np.nan for value in path[key][j]]
        name = f"n = {counts[path['clusters'][j][0]]}"
        lines += ax.plot(path["prices"], heights, color=COLOURS[colour], label=name)
    ax.axvline(price_of(record["prediction"]), color=COLOURS["ink"], linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    log_ticks(ax.xaxis, (1.0, 3.0) if path["prices"][-1] < 100 * path["prices"][0] else (1.0,))
    ax.set_ylim(-0.04, None)
    ax.set_xlabel("head decay λ$_W$" if record["prediction"]["unit"] == "lambda_w" else "penalty λ$_Z$")
    if lines:
        legend_above(ax, 3)
    return lines
