"""What a page shows of an optimum: states, scores, geometry, and its path over the penalty. Computes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from collapsar.core.record_types import Number, OptimumRecord, PathRecord
from collapsar.report.advice import class_words
from collapsar.report.class_marks import Placed
from collapsar.report.network_axis import gradual, threshold_view
from collapsar.report.network_words import first_thresholds, price_of, solution_headline, unit_of
from collapsar.report.page import View, colour_bar, drawn, plane_views, score_map
from collapsar.report.penalty_axis import latest
from collapsar.report.plots import largest_score, legend_above, log_ticks
from collapsar.report.record import defined, same_counts
from collapsar.report.style import CLUSTER_COLOURS, COLOURS, PAGE_INCHES
from collapsar.report.words import Clustered, number_text

_SIDES = (("features", "The class means"), ("heads", "The rows of the head"))
_COLUMNS = ("classes", "samples each", "state", "merge from", "vanish from", "own score", "of a like class", "bias",
            "mean predictions", "class mean", "row of the head")  # fmt: skip
_COSINE = "cosine of “{column}” and “{row}”"


def solution_view(record: OptimumRecord, ident: str, source: str) -> View:
    """What the templates show of an optimum.

    Args:
        record: Of an optimum, in plain JSON values.
        ident: Prefix of every id.
        source: Its place in the page's record, keys joined by points.
    """
    names, counts, own = record["class_names"], record["class_counts"], record["prediction"]
    classes: Clustered = {"class_names": names, "class_counts": counts, "clusters": same_counts(counts)}
    states = record["class_states"]
    placed: Placed = {
        "class_names": names, "class_counts": counts, "prediction": own, "separation": {"states": states}
    }  # fmt: skip
    scale, scores = _scores(record, classes, ident, source)
    unit = "head decay λ<sub>W</sub>" if unit_of(own) == "lambda_w" else "penalty λ<sub>Z</sub>"
    why = record.get("reason", "")  # records of earlier versions have none
    return {
        "id": ident,
        "name": record["name"],
        "headline": solution_headline(states),
        "setting": record["setting"],
        "reason": why,
        "unit": unit,
        "threshold_svg": threshold_view(placed, ident, f"Thresholds of theory and this optimum among them. {why}"),
        "gradual": gradual(own),
        "features": own["features"],
        "columns": _COLUMNS,
        "rows": _rows(record),
        "class_counts": counts,
        "scale": colour_bar(scale) if scores else [],
        "scores": scores,
        "unit_scale": colour_bar(1.0),
        "cosines": _cosines(record, classes, ident, source),
        "planes": _planes(record, ident),
        "path_svgs": _path(record, ident),
        "certificate": _certificate(record),
    }


def _certificate(record: OptimumRecord) -> str:
    length = "" if record["norm"] is None else f" The features have length {number_text(record['norm'], 4)}."
    return (
        f"Objective {record['primal']:.9g} nats, proved to be at most {number_text(record['gap'], 2)} above the "
        f"optimum ({record['status']}, {record['num_steps']} steps). Mean predictions of rank {record['rank']}.{length}"
    )


def _rows(record: OptimumRecord) -> list[tuple[Any, ...]]:
    """A row for each group of classes that are alike."""
    theory, rows = record["prediction"], []
    first, alone = first_thresholds(theory).tolist(), gradual(theory)
    for group in record["groups"]:
        k = group["classes"][0]
        merge = f"≈ {number_text(first[k])}" if k in alone else number_text(theory["merge"][k])
        vanish = f"{latest(theory['features']) if k in alone else ''}{number_text(theory['vanish'][k])}"
        numbers = (number_text(group[name], 4) for name in ("own", "sibling", "bias", "length"))
        lengths = (number_text(record[side]["lengths"][k], 3) for side, _ in _SIDES)
        who, size, state = class_words(group["classes"], record["class_names"]), str(group["samples"]), group["state"]
        rows.append((who, size, {"state": state}, merge, vanish, *numbers, *lengths))
    return rows


def _scores(data: OptimumRecord, classes: Clustered, ident: str, source: str) -> tuple[float, list[View]]:
    """The map of mean predictions, with the magnitude of its full colour; none for very many classes."""
    if data["Z"] is None:
        return 1.0, []
    label = "Mean predictions at the optimum as colours, a column per class of samples, a row per score."
    scale = largest_score([data["Z"]])
    own = score_map(
        data["Z"], classes, scale, f"{ident}-map", side="optimum", heading="Mean predictions", source=f"{source}Z",
        label=label,
    )  # fmt: skip
    return scale, [own]


def _cosines(data: OptimumRecord, classes: Clustered, ident: str, source: str) -> list[View]:
    if any(data[side]["cosines"] is None for side, _ in _SIDES):
        return []
    return [
        score_map(
            data[side]["cosines"], classes, 1.0, f"{ident}-cosines", _COSINE, side=heading[4:], heading=heading,
            source=f"{source}{side}.cosines", label=f"{heading}: cosines between classes as colours.",
        )
        for side, heading in _SIDES
    ]  # fmt: skip


def _planes(data: OptimumRecord, ident: str) -> list[View]:
    if data["geometry"] is None or set(data["class_states"]) == {"vanished"}:
        return []
    common = {"what": "vectors", "states": data["class_states"], "groups": data["prediction"].get("groups", ())}
    sides = [{"key": key, "heading": heading, "vectors": data["geometry"][key], **common} for key, heading in _SIDES]
    return [view for side in sides for view in plane_views([side], data["class_names"], ident)]  # each on its own scale


def _path(record: OptimumRecord, ident: str) -> list[View]:
    """Two charts over the penalty."""
    path, views = record["path"], []
    if path is None:
        return []
    charts = (
        ("apart", "Distance between two classes of one size", path["apart"]),
        ("length", "Length of the mean predictions", path["length"]),
    )
    for key, heading, heights in charts:
        if not any(defined(value) for values in heights for value in values):
            continue  # no two classes of one size
        label = f"{heading}, relative to the longest mean predictions, over {unit_of(record['prediction'])}."
        svg = drawn(
            lambda ax, heights=heights: path_lines(record, path, heights, ax),
            (PAGE_INCHES * 0.7, 2.0), f"{ident}-path-{key}", label,
        )  # fmt: skip
        views.append({"heading": heading, "svg": svg})
    return views


def path_lines(record: OptimumRecord, path: PathRecord, heights: list[list[Number]], ax: Axes) -> list[Line2D]:
    """Some numbers along the path of an optimum over the penalty, a line for each group of classes."""
    counts = record["class_counts"]
    shown = [j for j, values in enumerate(heights) if any(map(defined, values))]
    if len(shown) > len(CLUSTER_COLOURS):  # the largest, the smallest and some between
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, len(CLUSTER_COLOURS)).round().astype(int)]
    lines: list[Line2D] = []
    for colour, j in zip(CLUSTER_COLOURS, shown, strict=False):
        values = [value if defined(value) else np.nan for value in heights[j]]
        name = f"n = {counts[path['clusters'][j][0]]}"
        lines += ax.plot(path["prices"], values, color=COLOURS[colour], label=name)
    ax.axvline(price_of(record["prediction"]), color=COLOURS["ink"], linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    log_ticks(ax.xaxis, (1.0, 3.0) if path["prices"][-1] < 100 * path["prices"][0] else (1.0,))
    ax.set_ylim(-0.04, None)
    ax.set_xlabel("head decay λ$_W$" if unit_of(record["prediction"]) == "lambda_w" else "penalty λ$_Z$")
    if lines:
        legend_above(ax, 3)
    return lines
