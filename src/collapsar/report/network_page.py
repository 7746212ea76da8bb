"""The page of one network or of several: what collapsed, why, what theory says, and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from collapsar.core.record_types import DiagnosisRecord, GeometryRecord, ReportRecord, RunRecord
from collapsar.report.advice_page import advice_view
from collapsar.report.class_marks import class_marks, lost_and_dead, marked_names, part_of, shown_classes
from collapsar.report.class_rows import ClassRow, class_rows
from collapsar.report.diagnosis import class_lengths, class_recalls, class_sizes, price_readings
from collapsar.report.network_axis import gradual, joint_axis, threshold_view
from collapsar.report.network_words import (
    accuracy,
    cautions,
    model_distance,
    price_of,
    report_finding,
    state_counts,
    trained,
    unit_of,
)
from collapsar.report.page import SIDES, View, colour_bar, drawn, drawn_by_class, page, plane_views, score_map
from collapsar.report.plots import CURVES, Chart, curves_over_epochs, largest_score, legend_above
from collapsar.report.record import checked, defined, matrix, same_counts, whole
from collapsar.report.solution_page import solution_view
from collapsar.report.style import PAGE_INCHES
from collapsar.report.words import ABSENT, Clustered, number_text, share_text

_MOST_ROWS = 30
_COLUMNS = (
    *("class", "samples", "recognised", "measured", "theory", "relative length", "nearest class"),
    *("relative distance to it", "implied penalty lambda_z"),
)
_COMPARED = (
    *("network", "classes × samples", {"text": "penalty", "to": "def-lambda"}),
    *({"text": "classes", "to": "def-states"}, "as predicted", {"text": "from theory", "to": "def-distance"}),
    *("test images recognised", "in the smallest classes", {"text": "at rest", "to": "def-rest"}),
)


def report_page(record: Mapping[str, Any]) -> str:
    """The record of a report as one self-contained page.

    Args:
        record: A :class:`~collapsar.core.record_types.ReportRecord`.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked(record, ReportRecord)
    solutions = data.get("solutions", [])  # records of earlier versions have none
    if not data["runs"] and not solutions:
        raise ValueError("`record` must hold at least one run, got none; give folders of runs or diagnosis files")
    for index, run in enumerate(data["runs"]):
        whole(run, RunRecord, f"record.runs[{index}]")
        run["name"], run["diagnosis"] = str(run["name"]), checked(run["diagnosis"], DiagnosisRecord)
    runs = data["runs"]
    finding = report_finding(data)
    return _networks(
        data,
        finding,
        f"which classes does {'a network' if runs else 'the optimum'} lose?",
        [_view(run, f"run-{i}", f"runs.{i}.diagnosis.") for i, run in enumerate(runs)],
        solutions=[solution_view(s, f"optimum-{i}", f"solutions.{i}.") for i, s in enumerate(solutions)],
        columns=_COMPARED,
        rows=[_row(run, f"run-{i}") for i, run in enumerate(runs)],
        joint_svg=joint_axis(runs) if len(runs) > 1 else None,
    )


def _networks(data: ReportRecord | DiagnosisRecord, finding: str, kicker: str, views: list[View], **more: Any) -> str:
    """The page; ``more``: what only several networks, or optima, have."""
    rest: View = {"solutions": [], "columns": [], "rows": [], "joint_svg": None, **more}
    return page("report.html", data, title=f"Collapsar: {finding}", finding=finding, kicker=kicker, views=views, **rest)


def diagnosis_page(record: Mapping[str, Any]) -> str:
    """The record of a diagnosis as one self-contained page.

    Args:
        record: As from ``Diagnosis.to_dict``.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked(record, DiagnosisRecord)
    run: RunRecord = {
        "name": data["source"], "training": None, "diagnosis": data, "history": [], "geometry": None, "advice": None
    }  # fmt: skip
    return _networks(data, data["headline"], f"diagnosis of {data['source']}", [_view(run, "run-0")])


def _view(run: RunRecord, ident: str, source: str = "") -> View:
    """What the templates show of one network; ``ident`` is the prefix of every id, ``source`` that of the diagnosis."""
    data = run["diagnosis"]
    shown = shown_classes(data)
    part, total = part_of(data, shown), len(data["class_names"])
    scale, maps = _maps(data, ident, source)
    wide = (PAGE_INCHES, 1.9)
    here = "" if data["prediction"] is None else number_text(price_of(data["prediction"]))
    sizes = f"Training samples of each class, with its state. {data['headline']}"
    lengths = f"Length of the mean predictions of each class, with its state. {data['headline']}"
    recalls = f"Share of each class's samples that is recognised. {' '.join(lost_and_dead(data))}"
    return {
        "id": ident,
        "name": run["name"],
        "trained": trained(run),
        "cautions": [*lost_and_dead(data), *cautions(data)],
        "marks": sorted({mark for marks in class_marks(data) for mark in marks}, reverse=True),
        "part": f"{len(shown)} of the {total} classes are drawn and listed: first those that are not separated, lost "
        "or dead, then some of every size. The record has all."
        if len(shown) < total
        else "",
        "diagnosis": data,
        "training": run["training"],
        "order": [k for cluster in same_counts(data["class_counts"]) for k in cluster],
        "threshold_svg": threshold_view(
            data, ident, f"Thresholds of theory and the penalty of this network, {here}. {data['reason']}"
        ),
        "price": here,
        "gradual": [] if data["prediction"] is None else gradual(data["prediction"]),
        "sizes_svg": drawn_by_class(lambda ax: class_sizes(part, ax), wide, f"{ident}-sizes", sizes, len(shown)),
        "lengths_svg": drawn_by_class(
            lambda ax: class_lengths(part, ax), wide, f"{ident}-lengths", lengths, len(shown)
        ),
        "recalls_svg": drawn_by_class(
            lambda ax: class_recalls(part, ax), wide, f"{ident}-recalls", recalls, len(shown)
        ),
        "columns": _COLUMNS,
        "rows": [_class_row(row) for row in class_rows(part, data["class_names"])],
        "distances": _distances(data),
        "many": len(data["class_names"]) > _MOST_ROWS,
        "maps": maps,
        "scale": colour_bar(scale) if maps else [],
        "planes": network_planes(run["geometry"], data, ident),
        "curves": _curves(run["history"], ident),
        "readings_svg": readings_view(part, f"{ident}-readings"),
        "advice": None if run["advice"] is None else advice_view(run["advice"], f"{ident}-advice"),
    }


def network_planes(geometry: GeometryRecord | None, data: DiagnosisRecord, ident: str) -> list[View]:
    """Class means of network and optimum; mean predictions if there are none, nothing if all is noise."""
    separation, theory = data["separation"], data["prediction"]
    if not {"separated", "merged"} & set(separation["states"]):
        return []
    what, vectors = "class means", geometry
    if vectors is None:
        scores = {"network": data["Z"], "theory": theory and theory["Z"]}
        what, vectors = "mean predictions", {k: None if Z is None else matrix(Z).T for k, Z in scores.items()}
    lost = [k for k, marks in enumerate(class_marks(data)) if "lost" in marks]
    sides = [
        ("network", "The network, measured", separation["states"], separation["groups"], lost),
        ("theory", "The theory, predicted", theory and theory["seen"], theory and theory.get("groups", ()), ()),
    ]
    keys = ("key", "heading", "states", "groups", "lost")
    shown = [{**dict(zip(keys, side, strict=True)), "what": what, "vectors": vectors[side[0]]} for side in sides
             if vectors.get(side[0]) is not None]  # fmt: skip
    return plane_views(shown, data["class_names"], ident)


def _row(run: RunRecord, ident: str) -> tuple[Any, ...]:
    """One line of the table that compares the networks, as ``_COMPARED``."""
    data, theory = run["diagnosis"], run["diagnosis"]["prediction"]
    price = agreed = away = ABSENT
    if theory is not None:
        states = data["separation"]["states"]
        right = sum(a == b for a, b in zip(theory["seen"], states, strict=True))
        price = {"text": f"{number_text(price_of(theory))}\N{NO-BREAK SPACE}({unit_of(theory)})", "to": "def-lambda"}
        agreed = f"{right} of {len(states)}"
        away = share_text(model_distance(data))
    recognised = (share_text(accuracy(run, which)) for which in ("balanced", "minority"))
    rest = "yes" if data["at_rest"] else "no"
    name = {"text": run["name"], "to": ident}
    return name, _sizes(data["class_counts"]), price, state_counts(data), agreed, away, *recognised, rest


def _sizes(counts: Sequence[int]) -> str:
    groups = {n: counts.count(n) for n in sorted(set(counts), reverse=True)}
    if len(groups) > 3:
        return f"{len(counts)} classes, {max(counts)} to {min(counts)}"
    return ", ".join(f"{k} × {n}" for n, k in groups.items())


# --- maps, curves, readings, rows


def _maps(data: DiagnosisRecord, ident: str, source: str) -> tuple[float, list[View]]:
    """The common scale, and mean predictions of network and theory, if it predicts; none for many classes."""
    theory = None if data["prediction"] is None else data["prediction"]["Z"]
    sides = [
        side for side in zip(SIDES, (data["Z"], theory), ("Z", "prediction.Z"), strict=True) if side[1] is not None
    ]
    scale = largest_score([Z for _, Z, _ in sides])
    names, counts, marked = data["class_names"], data["class_counts"], marked_names(data)
    classes: Clustered = {"class_names": names, "class_counts": counts, "clusters": same_counts(counts)}
    words = "mean predictions as colours, a column per class of samples, a row per score."
    return scale, [
        score_map(
            Z, classes, scale, f"{ident}-map", names=(marked if side == "measured" else names, marked),
            side=side, heading=heading, source=source + place, label=f"{heading}: {words}",
        )
        for (side, heading), Z, place in sides
    ]  # fmt: skip


def _curves(history: Sequence[Mapping[str, Any]], ident: str) -> list[View]:
    """The charts over epochs for which the records hold numbers."""
    views = []
    for i, chart in enumerate(CURVES):
        values = [r[key] for r in history for key, *_ in chart.lines if defined(r.get(key))]
        if len(values) < 2:
            continue

        def draw(ax: Axes, chart: Chart = chart) -> None:
            if curves_over_epochs(history, chart, ax).lines:
                legend_above(ax)

        label = f"{chart.title} over the epochs, ending at {values[-1]:.3g}."
        svg = drawn(draw, (PAGE_INCHES * 0.7, 1.75), f"{ident}-curve-{i}", label)
        views.append({"heading": chart.title, "svg": svg, "definition": chart.definition})
    return views


def readings_view(data: DiagnosisRecord, name: str) -> Markup | None:
    """The penalty that each class implies; None if none does."""
    if data["effective"] is None or not any(map(defined, data["effective"]["by_class"])):
        return None
    label = "The penalty implied by each class's predictions, beside the one implied by the norms."
    return drawn_by_class(
        lambda ax: price_readings(data, ax), (PAGE_INCHES, 2.2), name, label, len(data["class_names"])
    )


def _distances(data: DiagnosisRecord) -> list[tuple[str, ...]]:
    """How far the network is from the optimum of each model, as text."""
    own, first = data.get("model"), []
    if own is not None and (away := own["distance"]) is not None:
        off = (share_text(away[key]) for key in ("Z", "Z_max", "b"))
        first = [(f"normalised, per {own['name']}", *off, ABSENT, ABSENT, ABSENT)]
    return first + [
        (name, *(share_text(fit["distance"][key]) for key in ("Z", "Z_max", "b")),
         *(share_text(fit[key]) for key in ("classifier_gram", "feature_gram", "excess")))
        for name, fit in (data["fit"]["models"] if data["fit"] else {}).items()
    ]  # fmt: skip


def _class_row(row: ClassRow) -> tuple[Any, ...]:
    """A line of the table of classes, as ``_COLUMNS``."""
    theory = row.theory if row.theory == ABSENT else {"state": row.theory}
    state = {"state": row.state, "marks": row.marks}
    return row.name, row.samples, row.recognised, state, theory, row.length, row.nearest, row.distance, row.price
