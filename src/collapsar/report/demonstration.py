"""The page of a demonstration: what collapses, and that theory predicted it, for a reader who is new to it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from collapsar.core.record_types import BesideRecord, DemoRecord, DemoRunRecord, DiagnosisRecord, StandardRunRecord
from collapsar.report.advice_page import advice_view
from collapsar.report.network_axis import axis_svg
from collapsar.report.network_page import network_planes, readings_view
from collapsar.report.page import SIDES, View, colour_bar, drawn, page, score_map
from collapsar.report.penalty_axis import demo_axis
from collapsar.report.plots import VANISHED_REMARK, largest_score, legend_above, nc1_curve, nc1_limits
from collapsar.report.record import checked, checked_demo, defined
from collapsar.report.style import PAGE_INCHES
from collapsar.report.words import (
    cluster_counts,
    cluster_names,
    consequence,
    data_words,
    finding,
    meaning,
    norm_name,
    number_text,
    outcome,
    sentence,
    share_text,
    standard_finding,
    summary_of_states,
    verdict,
)


def demo_page(record: Mapping[str, Any]) -> str:
    """The record of a demonstration as one self-contained page, for a reader who is new to it all.

    Args:
        record: As ``plots.demo_figure`` takes it. Undefined numbers (None, NaN) appear as "–".

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: The record is of another kind or incomplete.
    """
    data = checked_demo(record)
    scale, views = _runs(data, data["runs"], "runs", "penalty")
    limits = nc1_limits([run["history"] for run in data["runs"]])
    for i, (run, view) in enumerate(zip(data["runs"], views, strict=True)):
        found = None if (diagnosis := run.get("diagnosis")) is None else checked(diagnosis, DiagnosisRecord)
        view |= {
            "run": run,
            "diagnosis": found,
            "readings_svg": found and readings_view(found, f"readings-{i}"),
            "planes": [] if found is None else network_planes(run.get("geometry"), found, f"run-{i}"),
            "vanished": _vanished(run),
            "lengths": run["measured"].get("relative_norm") or [None] * len(data["class_names"]),
        }
    told = [(view, run.get("advice")) for run, view in zip(data["runs"], views, strict=True)]
    advised = [(view, advice) for view, advice in told if advice is not None]
    return page(
        "demo.html",
        data,
        title=f"Collapsar: {data_words(data)}",
        finding=finding(data),
        leads=[text for text in (meaning(data), consequence(data), verdict(data)) if text],
        names=cluster_names(data),
        data_words=data_words(data),
        threshold_svg=_threshold_svg(data),
        colour_bar=scale,
        views=views,
        curves=[
            {"heading": view["title"], "beside": view["measured"], "svg": _curve(view["run"], limits, f"curve-{i}")}
            for i, view in enumerate(views)
        ],
        table=comparison(data, data["runs"], _QUANTITIES),
        order=[k for cluster in data["clusters"] for k in cluster],
        sizes=[cluster_counts(data, cluster) for cluster in data["clusters"]],
        advice={"level": advised[0][0]["level"], "view": advice_view(advised[0][1], "advice")} if advised else None,
        standard=_standard(data),
        settings=[
            ("data", data["data"]),
            ("bias penalty lambda_b", number_text(data["lambda_b"])),
            ("theory for", f"{data['features']} features"),
            *data["environment"].items(),
        ],
    )


def _standard(data: DemoRecord) -> View | None:
    """The networks with standard training; None if the record has none."""
    standard = data.get("standard")
    if standard is None:
        return None
    scale, views = _runs(data, standard["runs"], "standard.runs", "weight decay")
    return {
        "norm": norm_name(standard["norm"]),
        "finding": standard_finding(data),
        "colour_bar": scale,
        "views": views,
        "table": comparison(data, standard["runs"], _STANDARD),
    }


def _runs(
    data: DemoRecord, runs: Sequence[DemoRunRecord | StandardRunRecord], source: str, penalty: str
) -> tuple[list[View], list[View]]:
    """The colour scale of several networks, and for each its penalty, its states, and two maps."""
    scale, views = largest_score([run[side]["Z"] for run in runs for side, _ in SIDES]), []
    seeds, place = len({run.get("seed") for run in runs}) > 1, source.replace(".", "-")
    for i, run in enumerate(runs):
        level = number_text(run["lambda_z"] if "lambda_z" in run else run["lambda_w"])
        level, away = f"{level}, seed {run.get('seed')}" if seeds else level, run["distance"]["Z"]
        states = {side: outcome(data, run[side]["states"]) for side, _ in SIDES}
        same = run["predicted"]["states"] == run["measured"]["states"]
        maps = [
            score_map(
                run[side]["Z"], data, scale, f"{place}-map-{i}", side=side, heading=heading,
                label=f"{heading}, at {penalty} {level}: {states[side]}. Mean predictions as colours, a column per "
                "class of images, a row per score.",
                source=f"{source}.{i}.{side}.Z",
                remark=f"the network is {share_text(away)} away" if side == "predicted" and defined(away) else "",
            )
            for side, heading in SIDES
        ]  # fmt: skip
        found = states["measured"] + (", as predicted" if same else f"; predicted: {states['predicted']}")
        title = f"{sentence(penalty)} {level}"
        views.append({"id": f"{place}-{i}", "level": level, "title": title, "states": found, "maps": maps, **states})
    return colour_bar(scale), views


# --- drawings by matplotlib


def _threshold_svg(data: DemoRecord) -> Markup:
    places = [
        f"at penalty {number_text(run['lambda_z'])} theory predicts {outcome(data, run['predicted']['states'])}, "
        f"measured is {outcome(data, run['measured']['states'])}"
        for run in data["runs"]
    ]
    label = f"The penalty axis with the thresholds of the theory and the runs: {'; '.join(places)}."
    return axis_svg(demo_axis(data), "threshold", label)


def _vanished(run: BesideRecord) -> bool:
    return "vanished" in run["measured"]["states"]


def _curve(run: DemoRunRecord, limits: tuple[float, float] | None, ident: str) -> Markup:
    """A small NC1 chart; ``limits`` are common to all runs."""

    def draw(ax: Axes) -> None:
        curves = nc1_curve(run["history"], ax, remark=VANISHED_REMARK if _vanished(run) else "")
        if curves.lines and limits is not None:
            ax.set_ylim(limits)
            legend_above(ax)

    last = number_text(run["measured"].get("nc1_uniform"))
    label = f"NC1 over the epochs at penalty {number_text(run['lambda_z'])}, ending at {last} (uniform weighting)."
    return drawn(draw, (PAGE_INCHES * 0.7, 1.75), ident, label)


# --- the tables: a row per quantity, a column per run

# A name, the id of its definition, its place in a run (keys joined by points), and its format.
Quantity = tuple[str, str, str, Callable[[float | None], str]]
_two_digits = partial(number_text, digits=2)
_FORCES: Quantity = ("Imbalance of forces", "def-rest", "stationarity", _two_digits)
_GAP: Quantity = ("Certificate gap", "def-gap", "predicted.gap", _two_digits)
_QUANTITIES: tuple[Quantity, ...] = (
    ("Distance to theory, mean predictions Z̄", "def-distance", "distance.Z", share_text),
    ("The same, largest entry", "def-distance", "distance.Z_max", share_text),
    ("Distance to theory, bias b", "def-distance", "distance.b", share_text),
    ("Distance to the signed model, mean predictions Z̄", "def-models", "distance.Z_signed", share_text),
    ("Distance to the signed model, bias b", "def-models", "distance.b_signed", share_text),
    ("Training images recognised, minority", "", "accuracy.train_minority", share_text),
    ("Training images recognised, majority", "", "accuracy.train_majority", share_text),
    ("Unseen (test) images recognised, minority", "", "accuracy.test_minority", share_text),
    ("Unseen (test) images recognised, majority", "", "accuracy.test_majority", share_text),
    ("Unseen (test) images recognised, mean over classes", "", "accuracy.test_balanced", share_text),
    ("Spread within classes, NC1 uniform", "def-nc1", "measured.nc1_uniform", number_text),
    ("Spread within classes, NC1 weighted", "def-nc1", "measured.nc1_weighted", number_text),
    _GAP,
    _FORCES,
    ("Epochs trained", "", "epochs", number_text),
    ("Seconds", "", "seconds", number_text),
)
_STANDARD: tuple[Quantity, ...] = (
    ("Cosine of two small classes, predicted", "", "predicted.cosines.minority", number_text),
    ("Cosine of two small classes, measured", "", "measured.cosines.minority", number_text),
    ("Distance to theory, mean predictions Z̄", "def-distance", "distance.Z", share_text),
    ("Distance to theory, bias b", "def-distance", "distance.b", share_text),
    ("Minority images recognised, training", "", "accuracy.train_minority", share_text),
    ("Minority images recognised, unseen (test)", "", "accuracy.test_minority", share_text),
    _GAP,
    _FORCES,
)


def comparison(data: DemoRecord, runs: Sequence[BesideRecord], quantities: Sequence[Quantity]) -> list[tuple[Any, ...]]:
    """The rows of a table of some runs of a demonstration: the states of each cluster, then the quantities."""
    rows: list[tuple[Any, ...]] = []
    for name, cluster in reversed(list(zip(cluster_names(data), data["clusters"], strict=True))):
        title = sentence(name) if name.isalpha() else name
        for side, _ in reversed(SIDES):
            found = [summary_of_states(run[side]["states"], cluster) for run in runs]
            rows.append(({"text": f"{title}, {side}", "to": "def-states"}, *({"state": state} for state in found)))
    right = [
        sum(a == b for a, b in zip(run["predicted"]["states"], run["measured"]["states"], strict=True)) for run in runs
    ]
    rows.append(("Classes as predicted", *(f"{n} of {len(data['class_names'])}" for n in right)))
    for name, definition, place, text in quantities:
        cells = [text(_number(run, place)) for run in runs]
        rows.append(({"text": name, "to": definition} if definition else name, *cells))
    return rows


def _number(run: BesideRecord, place: str) -> float | None:
    value: Any = run
    for key in place.split("."):
        value = (value or {}).get(key)
    return value
