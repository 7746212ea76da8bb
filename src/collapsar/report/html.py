"""Pages: one HTML file each, which opens from disk, asks the network for nothing and holds its whole record.

Everything that comes from a record passes through jinja's escaping or stands in a JSON block that cannot end
early; the page's content policy lets no script run but the one whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from collapsar.report.diagnosis import checked_diagnosis, class_lengths, price_readings, same_counts
from collapsar.report.plots import (
    VANISHED_REMARK,
    curve_legend,
    demo_scale,
    heatmap,
    nc1_curve,
    nc1_limits,
    threshold_line,
)
from collapsar.report.record import Record, checked_demo, defined, matrix
from collapsar.report.style import COLUMN_INCHES, STATES, strength, styled, svg_string
from collapsar.report.tables import comparison
from collapsar.report.words import (
    ABSENT,
    cluster_counts,
    cluster_names,
    consequence,
    data_words,
    finding,
    lambda_text,
    number_text,
    outcome,
    share_text,
    verdict,
)

__all__ = ["demo_page", "diagnosis_page"]

_TEMPLATES = Path(__file__).parent / "templates"
# A cell of a hover map is some 100 bytes of page, and a cell narrower than two pixels cannot be pointed at: larger
# maps become a picture.
_MOST_CELLS = 40
_CELL, _LONGEST_NAME = 10.0, 14


def demo_page(record: Mapping[str, Any]) -> str:
    """The record of a demonstration as one self-contained page, for a reader who is new to all of it.

    Args:
        record: As ``plots.demo_figure`` takes it. Undefined numbers (None, NaN) appear as "–" with the reason.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked_demo(record)
    scale = demo_scale(data)
    return _page(
        "demo.html",
        data,
        title=f"Collapsar: {data_words(data)}",
        finding=finding(data),
        verdict=verdict(data),
        consequence=consequence(data),
        names=cluster_names(data),
        data_words=data_words(data),
        threshold_svg=_threshold_svg(data),
        scale=scale,
        colour_bar=_colour_bar(scale),
        runs=[_run_view(data, i, scale) for i in range(len(data["runs"]))],
        curves=_curves(data),
        table=comparison(data),
        order=[k for cluster in data["clusters"] for k in cluster],
        sizes=[cluster_counts(data, cluster) for cluster in data["clusters"]],
        same_state=[run["predicted"]["states"] == run["measured"]["states"] for run in data["runs"]],
        any_vanished=any("vanished" in run["measured"]["states"] for run in data["runs"]),
        relative_norms=[
            run["measured"].get("relative_norm") or [None] * len(data["class_names"]) for run in data["runs"]
        ],
        diagnoses=[_diagnosis_view(run, i) for i, run in enumerate(data["runs"])],
    )


def diagnosis_page(record: Mapping[str, Any]) -> str:
    """The record of a diagnosis as one self-contained page.

    Args:
        record: As ``Diagnosis.to_dict`` gives it.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked_diagnosis(record)
    clusters = same_counts(data["class_counts"])
    return _page(
        "diagnosis.html",
        data,
        title=f"Collapsar: {data['headline']}",
        order=[k for cluster in clusters for k in cluster],
        rows=_class_rows(data),
        maps=_diagnosis_maps({**data, "clusters": clusters}),
        lengths_svg=_lengths_svg(data, "lengths"),
        readings_svg=_readings_svg(data, "readings"),
    )


def _page(template: str, data: Record, **values: Any) -> str:
    """A template filled in, with the style, the script and the record that every page holds."""
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            record=data,
            state_styles=STATES,
            style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            record_json=_json_block(data),
            **values,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "lambda": lambda_text,
        "number": number_text,
        "share": share_text,
        "entry": lambda value: f"{value:.3f}".replace("-", "−") if defined(value) else ABSENT,
    }
    environment.tests["number"] = lambda value: not isinstance(value, str) and defined(value)
    return environment


def _json_block(data: Record) -> Markup:
    """The record as JSON in which no character can end the element it stands in; it parses to the same values."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # in JSON they occur inside strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- heat maps


def _run_view(data: Record, index: int, scale: float) -> Record:
    """What the template draws of one run: a heading and two maps."""
    run = data["runs"][index]
    level = lambda_text(run["lambda_z"])
    maps = []
    for side, heading in (("measured", "The network, measured"), ("predicted", "The theory, predicted")):
        states = outcome(data, run[side]["states"])
        label = (
            f"{heading}, at penalty {level}: {states}. "
            "Mean scores as colours, a column per class of images, a row per score; the values are in the table below."
        )
        view: Record = {"side": side, "heading": heading, "states": states, "label": label}
        Z = matrix(run[side]["Z"])
        if len(Z) > _MOST_CELLS:
            view["svg"] = _picture(data, Z, scale, f"map-{index}-{side}", label)
        else:
            view["cells"] = _cells(data, Z, scale)
        maps.append(view)
    seeds = len({run["seed"] for run in data["runs"]}) > 1
    return {"index": index, "level": level, "seed": run["seed"] if seeds else None, "maps": maps, "run": run}


def _cells(data: Record, Z: np.ndarray, scale: float) -> Record:
    """Geometry of a hover map, in the units of its view box: cells, names, lines between clusters."""
    order = [k for cluster in data["clusters"] for k in cluster]
    names = [_shortened(data["class_names"][k]) for k in order]
    size, longest = _CELL * len(order), max(map(len, names))
    font = min(0.5 * _CELL, 0.05 * size + 1.5)
    margin = 0.56 * font * longest + 3
    upright = 0.56 * font * longest > _CELL
    top = (margin if upright else font + 2.5) + font + 3
    weights = strength(Z[np.ix_(order, order)], scale)
    cells = [
        {
            "x": _CELL * column,
            "y": _CELL * row,
            "kind": "none" if np.isnan(weight) else "for" if weight > 0 else "against",
            "weight": "1" if np.isnan(weight) else f"{abs(weight):.3f}".rstrip("0").rstrip("."),
            "title": f"images of “{data['class_names'][k]}”, score for “{data['class_names'][l]}”: "
            f"{number_text(float(Z[l, k]))}",
        }
        for column, k in enumerate(order)
        for row, l in enumerate(order)
        for weight in [weights[row, column]]
    ]
    ends = np.cumsum([len(cluster) for cluster in data["clusters"]])
    middles = _CELL * (ends - np.array([len(cluster) for cluster in data["clusters"]]) / 2)
    return {
        "cells": cells,
        "cell": _CELL,
        "size": size,
        "font": font,
        "left": margin,
        "top": top,
        "upright": upright,
        "names": [(name, _CELL * (i + 0.5)) for i, name in enumerate(names)],
        "groups": list(zip(cluster_names(data), middles.tolist(), strict=True)),
        "edges": (_CELL * ends[:-1]).tolist(),
    }


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _picture(data: Record, Z: np.ndarray, scale: float, name: str, label: str) -> Markup:
    def draw(ax: Axes) -> None:
        heatmap(Z, ax, clusters=data["clusters"], vmax=scale)
        ax.set_xlabel("images of class")
        ax.set_ylabel("score for class")

    return _drawn(draw, (COLUMN_INCHES, COLUMN_INCHES), name, label)


def _colour_bar(scale: float) -> list[Record]:
    """Samples of the colour scale, from -scale to scale."""
    values = [share * scale for share in (-1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1)]
    return [
        {
            "kind": "for" if value > 0 else "against",
            "weight": f"{abs(float(strength(value, scale))):.3f}",
            "text": number_text(value, 2),
        }
        for value in values
    ]


# --- the diagnosis of a network


def _diagnosis_view(run: Record, index: int) -> Record | None:
    """What the page of a demonstration shows of one network's diagnosis; None where there is none."""
    if run.get("diagnosis") is None:
        return None
    data = checked_diagnosis(run["diagnosis"])
    view = {key: data[key] for key in ("headline", "words", "notes")}
    return {**view, "svg": _readings_svg(data, f"readings-{index}")}


def _class_rows(data: Record) -> list[Record]:
    separation, effective, theory = data["separation"], data["effective"], data["prediction"]
    names = data["class_names"]
    return [
        {
            "name": names[k],
            "count": data["class_counts"][k],
            "right": data["accuracies"][k],
            "state": separation["states"][k],
            "theory": None if theory is None else theory["seen"][k],
            "length": separation["relative_norms"][k],
            "nearest": names[separation["nearest"][k]] if separation["nearest"][k] >= 0 else ABSENT,
            "apart": separation["nearest_separation"][k],
            "price": None if effective is None else effective["by_class"][k],
            "tells": effective is not None and effective["tells"][k],
        }
        for k in range(len(names))
    ]


def _diagnosis_maps(data: Record) -> list[Record]:
    """Mean scores of the network, and of theory where it predicts; none for many classes."""
    theory = None if data["prediction"] is None else data["prediction"]["Z"]
    sides = [
        (data["Z"], "The network, measured", "measured"),
        (theory, "The theory, predicted", "predicted"),
    ]
    found = [(matrix(Z), heading, name) for Z, heading, name in sides if Z is not None]
    scale = max((float(np.nanmax(np.abs(Z), initial=0.0)) for Z, _, _ in found), default=0.0) or 1.0
    views = []
    for Z, heading, name in found:
        label = f"{heading}: mean scores as colours, a column per class of samples, a row per score."
        view: Record = {"heading": heading, "label": label}
        if len(Z) > _MOST_CELLS:
            view["svg"] = _picture(data, Z, scale, f"map-{name}", label)
        else:
            view["cells"] = _cells(data, Z, scale)
        views.append(view)
    return views


def _lengths_svg(data: Record, name: str) -> Markup:
    label = f"Length of the mean scores of each class, with its state. {data['headline']}"
    return _drawn(lambda ax: class_lengths(data, ax), (COLUMN_INCHES * 1.5, 2.2), name, label)


def _readings_svg(data: Record, name: str) -> Markup:
    label = "The penalty that each class shows by its predictions, beside the one that the norms show."
    return _drawn(lambda ax: price_readings(data, ax), (COLUMN_INCHES * 1.5, 2.2), name, label)


# --- drawings by matplotlib


def _drawn(draw: Callable[[Axes], object], size: tuple[float, float], name: str, label: str) -> Markup:
    with styled():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
    return Markup(svg_string(figure, name, label, adaptive=True))


def _threshold_svg(data: Record) -> Markup:
    places = [
        f"at penalty {lambda_text(run['lambda_z'])} theory predicts {outcome(data, run['predicted']['states'])}, "
        f"measured is {outcome(data, run['measured']['states'])}"
        for run in data["runs"]
    ]
    height = 0.85 + 0.5 * len(data["clusters"])
    label = f"The penalty axis with the thresholds of the theory and the runs: {'; '.join(places)}."
    return _drawn(lambda ax: threshold_line(data, ax), (COLUMN_INCHES, height), "threshold", label)


def _curves(data: Record) -> list[Record]:
    """A small NC1 chart per run, all on one scale."""
    limits = nc1_limits([run["history"] for run in data["runs"]])
    views = []
    for index, run in enumerate(data["runs"]):
        vanished = "vanished" in run["measured"]["states"]

        def draw(ax: Axes, run: Record = run, vanished: bool = vanished) -> None:
            drawn = nc1_curve(run["history"], ax, remark=VANISHED_REMARK if vanished else "")
            if drawn.lines and limits is not None:
                ax.set_ylim(limits)
                curve_legend(ax)

        level = lambda_text(run["lambda_z"])
        last = run["measured"]["nc1_uniform"]
        label = f"NC1 over the epochs at penalty {level}, ending at {number_text(last)} (uniform weighting)."
        svg = _drawn(draw, (COLUMN_INCHES * 0.85, 1.75), f"curve-{index}", label)
        views.append({"level": level, "svg": svg, "outcome": outcome(data, run["measured"]["states"])})
    return views
