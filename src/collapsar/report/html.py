"""The page of a demonstration: what collapses, and that theory said so, for a reader who is new to all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from collapsar.report.advice_page import advice_view
from collapsar.report.diagnosis import checked_diagnosis, price_readings
from collapsar.report.page import colour_bar, drawn, page, score_map
from collapsar.report.planes import plane_views
from collapsar.report.plots import (
    VANISHED_REMARK,
    curve_legend,
    demo_scale,
    nc1_curve,
    nc1_limits,
    threshold_line,
)
from collapsar.report.record import Record, checked_demo, defined, matrix
from collapsar.report.style import PAGE_INCHES
from collapsar.report.tables import comparison
from collapsar.report.words import (
    cluster_counts,
    cluster_names,
    consequence,
    data_words,
    finding,
    lambda_text,
    meaning,
    number_text,
    outcome,
    share_text,
    verdict,
)

__all__ = ["demo_page"]


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
    return page(
        "demo.html",
        data,
        title=f"Collapsar: {data_words(data)}",
        finding=finding(data),
        verdict=verdict(data),
        meaning=meaning(data),
        consequence=consequence(data),
        names=cluster_names(data),
        data_words=data_words(data),
        threshold_svg=_threshold_svg(data),
        scale=scale,
        colour_bar=colour_bar(scale),
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
        planes=[_planes(data, i) for i in range(len(data["runs"]))],
        advice=_advice(data),
    )


def _planes(data: Record, index: int) -> list[Record]:
    """The class means of one run and of theory; none where the record has no diagnosis of it."""
    run = data["runs"][index]
    if run.get("diagnosis") is None:
        return []
    return plane_views(run.get("geometry"), checked_diagnosis(run["diagnosis"]), f"run-{index}")


def _advice(data: Record) -> Record | None:
    """Advice at the smallest penalty at which classes are lost, and that penalty; None where none was recorded."""
    found = [run for run in data["runs"] if run.get("advice") is not None]
    if not found:
        return None
    return {"level": lambda_text(found[0]["lambda_z"]), "view": advice_view(found[0]["advice"], "advice")}


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
        view: Record = {"side": side, "heading": heading, "states": states, "remark": ""}
        if side == "predicted" and defined(run["distance"]["Z"]):
            view["remark"] = f"the network is {share_text(run['distance']['Z'])} away"
        maps.append(
            view
            | score_map(matrix(run[side]["Z"]), data, scale, f"map-{index}-{side}", label, f"runs.{index}.{side}.Z")
        )
    seeds = len({run["seed"] for run in data["runs"]}) > 1
    return {"index": index, "level": level, "seed": run["seed"] if seeds else None, "maps": maps, "run": run}


# --- the diagnosis of a network


def _diagnosis_view(run: Record, index: int) -> Record | None:
    """What the page of a demonstration shows of one network's diagnosis; None where there is none."""
    if run.get("diagnosis") is None:
        return None
    data = checked_diagnosis(run["diagnosis"])
    view = {key: data[key] for key in ("headline", "words", "notes")}
    readings = data["effective"] is not None and any(map(defined, data["effective"]["by_class"]))
    return {**view, "svg": _readings_svg(data, f"readings-{index}") if readings else None}


def _readings_svg(data: Record, name: str) -> Markup:
    label = "The penalty implied by each class's predictions, beside the one implied by the norms."
    return drawn(lambda ax: price_readings(data, ax), (PAGE_INCHES, 2.2), name, label)


# --- drawings by matplotlib


def _threshold_svg(data: Record) -> Markup:
    places = [
        f"at penalty {lambda_text(run['lambda_z'])} theory predicts {outcome(data, run['predicted']['states'])}, "
        f"measured is {outcome(data, run['measured']['states'])}"
        for run in data["runs"]
    ]
    height = 0.6 + 0.55 * len(data["clusters"])
    label = f"The penalty axis with the thresholds of the theory and the runs: {'; '.join(places)}."
    return drawn(lambda ax: threshold_line(data, ax), (PAGE_INCHES, height), "threshold", label)


def _curves(data: Record) -> list[Record]:
    """A small NC1 chart per run, all on one scale."""
    limits = nc1_limits([run["history"] for run in data["runs"]])
    views = []
    for index, run in enumerate(data["runs"]):
        vanished = "vanished" in run["measured"]["states"]

        def draw(ax: Axes, run: Record = run, vanished: bool = vanished) -> None:
            curves = nc1_curve(run["history"], ax, remark=VANISHED_REMARK if vanished else "")
            if curves.lines and limits is not None:
                ax.set_ylim(limits)
                curve_legend(ax)

        level = lambda_text(run["lambda_z"])
        last = run["measured"]["nc1_uniform"]
        label = f"NC1 over the epochs at penalty {level}, ending at {number_text(last)} (uniform weighting)."
        svg = drawn(draw, (PAGE_INCHES * 0.7, 1.75), f"curve-{index}", label)
        views.append({"level": level, "svg": svg, "outcome": outcome(data, run["measured"]["states"])})
    return views
