"""What all pages have in common: the template filled in, pictures as SVG, matrices as maps that can be hovered.

A page is one HTML file, which opens from disk, makes no web requests and contains its whole record. Everything that
comes from a record passes through jinja's escaping or is in a JSON block that cannot end early; the page's content
policy allows only the script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave

from collapsar.core.sentences import listed
from collapsar.report.class_marks import MARKS
from collapsar.report.class_plane import class_means_plane, principal_plane
from collapsar.report.plots import MOST_NAMES
from collapsar.report.record import defined, matrix
from collapsar.report.style import STATES, strength, styled, svg_string
from collapsar.report.words import Clustered, cluster_names, fixed_text, number_text, share_text, shortened, told

View = dict[str, Any]  # what a template shows of a record

_TEMPLATES = Path(__file__).parent / "templates"
# A cell of a map takes some 100 bytes: larger maps are pictures, whose values the script finds in the record.
_MOST_CELLS = 40
_CELL, _LONGEST_NAME = 10.0, 14
_LETTER = 0.64  # width of a letter, of the size of its font
# Inches of a picture for a phone: its least width, that of the numbers beside its axis, and that of a name.
_SLIM, _AXIS, _PITCH = 2.9, 0.55, 0.08
_INDEX = {"z": "Z", "w": "W", "h": "H"}  # matrices; the bias is a vector
_FIGURE = re.compile(r"[−+≥≤≈]? ?\d(?!.*[^\W\d_]{4})|[–—]$")  # "0.1", "10 of 12", but not "10 separated"
_LAMBDA = re.compile(r"\blambda_([wzhb])\b")
_POWER = re.compile(r"(?<![\w.-])-?\d(?:\.\d+)?e[+-]\d{2}\b")


def page(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """A template filled in, with the style, the script and the record that every page holds.

    Args:
        template: Name of a file beside this module, in ``templates``.
        data: The record, in plain JSON values; the template knows it as ``record``.
        values: What else the template uses.
    """
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            record=data,
            style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            record_json=_json_block(data),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"state_styles": STATES, "mark_symbols": MARKS, "told": told}
    environment.filters |= {
        "number": number_text,
        "share": share_text,
        "prose": _prose,
        "setting": lambda value: _prose(_setting(value)),
        "plain": lambda text: _LAMBDA.sub("", text).strip(),
        "entry": fixed_text,
    }
    environment.filters["worded"] = _worded
    environment.tests["number"] = lambda value: not isinstance(value, str) and defined(value)
    return environment


def _prose(text: str) -> Markup:
    """A sentence of a record as written on a page: lambda_z is λ with an index, 2e-06 is 2 × 10⁻⁶."""
    text = _POWER.sub(lambda found: number_text(float(found[0]), 4), str(escape(text)))
    return Markup(_LAMBDA.sub(lambda found: f"λ<sub>{_INDEX.get(found[1], found[1])}</sub>", text))


def _setting(value: Any) -> str:
    """A setting of a training, for a reader: no braces, no digits beyond the fourth."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(f"({_setting(item)})" if isinstance(item, list) else _setting(item) for item in value)
    if value is None or isinstance(value, bool):
        return {None: "not recorded", True: "yes", False: "no"}[value]
    return number_text(value, 4) if isinstance(value, float) else str(value) or "none"


def _worded(rows: Sequence[Sequence[Any]]) -> list[bool]:
    """For each column of a table, whether it has words, which are aligned left, rather than numbers."""
    return [
        any(isinstance(cell, dict) or not _FIGURE.match(str(cell)) for cell in column)
        for column in zip(*rows, strict=True)
    ]


def _json_block(data: Mapping[str, Any]) -> Markup:
    """The record as JSON in which no character can end its element; it parses to the same values."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # in JSON they occur inside strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


SIDES = (("measured", "The network, measured"), ("predicted", "The theory, predicted"))
"""A network beside the theory: the key of each side, and its heading."""


def score_map(
    Z: Any, data: Clustered, scale: float, ident: str, cell: str = "images of “{column}”, score for “{row}”",
    names: tuple[Sequence[str], Sequence[str]] | None = None, **shown: Any,
) -> View:  # fmt: skip
    """What the templates draw for one matrix of numbers between classes: cells, or a picture if there are too many.

    Args:
        Z: Shape (K, K), such as mean predictions [logit, class].
        data: The classes.
        scale: The magnitude that gets the full colour, of scores in nats.
        ident: Begins the ids.
        cell: What a cell says before its value, with ``{column}`` and ``{row}``.
        names: Of the classes, as they are written, and those that the margin has room for.
        shown: What else the templates show: ``side`` (whose values they are), ``heading``, ``label`` (text
            alternative), ``source`` (where the page's record has the matrix: keys joined by points) and ``remark``.
    """
    Z = matrix(Z)
    names = names or (data["class_names"], data["class_names"])
    drawn_cells = _cells(data, Z, scale, cell, names) if len(Z) <= _MOST_CELLS else _raster(data, Z, scale)
    return {"name": f"{ident}-{shown['side']}", "cells": drawn_cells, "words": cell, "remark": "", **shown}


def _cells(data: Clustered, Z: np.ndarray, scale: float, words: str, both: tuple[Sequence[str], Sequence[str]]) -> View:
    """Geometry of a hover map, in the units of its view box: cells, names, lines between clusters."""
    order = [k for cluster in data["clusters"] for k in cluster]
    names, room = ([shortened(own[k], _LONGEST_NAME) for k in order] for own in both)
    size, longest = _CELL * len(order), max(map(len, room))  # those of maps side by side, which have one margin
    font = min(0.85 * _CELL, 0.05 * size + 1.5)
    groups = _groups(data, _CELL, font)
    margin = _LETTER * font * longest + 3
    upright, room_upright = (_LETTER * font * max(map(len, own)) > _CELL for own in (names, room))
    top = (margin if room_upright else font + 2.5) + (font + 3 if groups["groups"] else 0)
    weights = strength(Z[np.ix_(order, order)], scale)
    cells = [
        {
            "x": _CELL * column,
            "y": _CELL * row,
            **_coloured(weight),
            "title": f"{words.format(column=data['class_names'][k], row=data['class_names'][l])}: "
            f"{number_text(float(Z[l, k]))}",
        }
        for column, k in enumerate(order)
        for row, l in enumerate(order)
        for weight in [weights[row, column]]
    ]
    return {
        "cells": cells,
        "cell": _CELL,
        "size": size,
        "font": font,
        "left": margin,
        "top": top,
        "upright": upright,
        "names": [(name, _CELL * (i + 0.5)) for i, name in enumerate(names)],
        **groups,
    }


def _raster(data: Clustered, Z: np.ndarray, scale: float) -> View:
    """As ``_cells`` of a map with too many of them: its two colours as pictures of their strength, no class names."""
    order = [k for cluster in data["clusters"] for k in cluster]
    weights = np.nan_to_num(strength(Z[np.ix_(order, order)], scale))
    size, font = _CELL * _MOST_CELLS, 14.0
    return {
        "cells": [],
        "layers": [("for", _png(np.maximum(weights, 0))), ("against", _png(np.maximum(-weights, 0)))],
        "order": json.dumps(order, separators=(",", ":")),
        "cell": size / len(order),
        "size": size,
        "font": font,
        "left": 1.0,
        "top": 1.5 * font,
        "upright": False,
        "names": [],
        **_groups(data, size / len(order), font),
    }


def _png(values: np.ndarray) -> str:
    """Numbers from 0 to 1 as the grey pixels of a picture, in a data URL."""
    buffer = io.BytesIO()
    imsave(buffer, values, cmap="gray", vmin=0, vmax=1, format="png", metadata={"Software": "collapsar"})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _groups(data: Clustered, cell: float, font: float) -> View:
    """Names of the clusters at their middles, left out if one would run into the next; and the lines between them."""
    names = cluster_names(data)
    sizes = np.array([len(cluster) for cluster in data["clusters"]])
    ends = np.cumsum(sizes)
    middles = cell * (ends - sizes / 2)
    fits = all(_LETTER * font * len(name) <= cell * size for name, size in zip(names, sizes, strict=True))
    return {
        "groups": list(zip(names, middles.tolist(), strict=True)) if fits else [],
        "edges": (cell * ends[:-1]).tolist(),
    }


def colour_bar(scale: float) -> list[View]:
    """Samples of the colour scale, from -scale to scale."""
    values = [share * scale for share in (-1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1)]
    return [{**_coloured(float(strength(value, scale))), "text": number_text(value, 2)} for value in values]


def _coloured(weight: float) -> View:
    """The colour of a cell, and how strong it is."""
    if np.isnan(weight):
        return {"kind": "none", "weight": "1"}
    return {"kind": "for" if weight > 0 else "against", "weight": f"{abs(weight):.3f}".rstrip("0").rstrip(".")}


def drawn(draw: Callable[[Axes], object], size: tuple[float, float], name: str, label: str) -> Markup:
    """A picture of one axes as SVG; ``size`` in inches, ``name`` unique in the page, ``label`` its text alternative."""
    with styled():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
    return Markup(svg_string(figure, name, label, adaptive=True))


def drawn_by_class(
    draw: Callable[[Axes], object], size: tuple[float, float], name: str, label: str, num_classes: int
) -> Markup:
    """As ``drawn``, for axes with a place and a name for each class; if names are small on a phone, once more for it.

    A page shows one of the two: a picture of 30 classes that is shrunk to a phone's width has names of 6 pixels.
    """
    wide = drawn(draw, size, name, label)
    width = max(_SLIM, _AXIS + _PITCH * num_classes)
    if not (MOST_NAMES < num_classes <= 2 * MOST_NAMES and width < 0.95 * size[0]):
        return wide
    slim = drawn(draw, (width, size[1]), f"{name}-slim", label)
    return Markup('<div class="broad">{}</div><div class="slim">{}</div>').format(wide, slim)


# --- class means, or other vectors, in their planes


def plane_views(sides: Sequence[View], names: Sequence[str], ident: str) -> list[View]:
    """Vectors of the classes in their principal planes, all on one scale.

    Args:
        sides: For each picture its ``key``, ``heading``, ``vectors`` (K, d), what they are (``what``), ``states``,
            ``groups`` of merged classes, and possibly ``lost`` classes.
        names: Of the classes.
        ident: Prefix of every id.
    """
    planes = [principal_plane(side["vectors"]) for side in sides]
    reach = 1.25 * max((float(np.nanmax(np.hypot(*at.T), initial=0.0)) for at, _ in planes), default=0.0) or 1.0
    views = []
    for side, (_, held) in zip(sides, planes, strict=True):
        groups = [g for g in side["groups"] if any(side["states"][k] == "merged" for k in g)]  # vanished: no group
        picture = {**side, "class_means": side["vectors"], "class_names": names, "groups": groups}
        shown = share_text(held)
        circled = (
            "; merged groups: " + "; ".join(listed((names[int(k)] for k in g), 8, last=" and ") for g in groups)
            if groups
            else ""
        )
        label = (
            f"{side['heading']}: {side['what']} in their principal plane, which holds {shown} of their squared length"
        )
        svg = drawn(
            lambda ax, picture=picture: class_means_plane(picture, ax, reach=reach),
            (2.9, 2.9), f"{ident}-plane-{side['key']}", f"{label}{circled}.",
        )  # fmt: skip
        views.append({"heading": side["heading"], "what": side["what"], "shown": shown, "svg": svg})
    return views
