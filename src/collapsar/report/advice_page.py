"""Advice on a page: what pages show of it, and the page of advice alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collapsar.core.problem import Problem
from collapsar.core.record_types import AdviceRecord
from collapsar.core.sentences import problem_words
from collapsar.report.advice import (
    SUGGESTION_COLUMNS,
    group_rows,
    prior_words,
    room_words,
    suggestion_rows,
    verdict_words,
)
from collapsar.report.advice_plots import margins, safety
from collapsar.report.page import View, drawn, page
from collapsar.report.record import checked
from collapsar.report.style import PAGE_INCHES


def advice_page(record: Mapping[str, Any]) -> str:
    """The page of an advice record.

    Args:
        record: ``Advice.to_dict()``; undefined numbers as None or NaN; ``cautions`` optional.

    Returns:
        The text of an HTML file, to be written as UTF-8.

    Raises:
        ValueError: it is another kind of record.
    """
    data = checked(record, AdviceRecord)
    setting = problem_words(Problem.from_dict(data["problem"]), samples=data.get("num_samples"))
    return page("advice.html", data, title="Collapsar: advice", setting=setting, advice=advice_view(data, "advice"))


def advice_view(data: AdviceRecord, name: str) -> View:
    """What the templates show of an advice record, in plain values; ``name`` is the prefix of its picture's ids."""
    verdict = verdict_words(data)
    return {
        "verdict": verdict,
        "unit": "lambda_z" if data["problem"].get("normalization") is None else "lambda_w",
        "cautions": data.get("cautions", []),
        "pictures": [
            drawn(
                lambda ax, draw=draw: draw(data, ax),
                (PAGE_INCHES * 0.95, 0.7 + 0.24 * min(len(data["groups"]), 24)),
                f"{name}-{i}",
                label,
            )
            for i, (draw, label) in enumerate(((safety, verdict), (margins, "Decision margins of the same classes.")))
        ],
        "groups": [(who, samples, {"state": state}, *rest) for who, samples, state, *rest in group_rows(data)],
        "room": f"{100 * data['margin']:.0f} %",
        "columns": SUGGESTION_COLUMNS,
        "rows": suggestion_rows(data),
        "caveats": [(s["words"], " ".join(s["caveats"])) for s in data["suggestions"]],
        "sentences": [text for text in (room_words(data), prior_words(data)) if text],
    }
