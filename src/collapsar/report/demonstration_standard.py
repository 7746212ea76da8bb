"""The part of a demonstration's page on the network as people train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collapsar.report.page import SIDES, colour_bar, largest_score, map_views
from collapsar.report.record import Record
from collapsar.report.words import (
    lambda_text,
    norm_name,
    number_text,
    outcome,
    share_text,
    standard_finding,
    summary_of_states,
)

__all__ = ["standard_view"]

_ROWS: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("Mean cosine of two small classes, predicted", lambda run: _cosine(run["predicted"])),
    ("Mean cosine of two small classes, measured", lambda run: _cosine(run["measured"])),
    ("Mean scores: distance from network to theory", lambda run: share_text(run["distance"]["Z"])),
    ("Bias: distance from network to theory", lambda run: share_text(run["distance"]["b"])),
    ("Small classes, training images recognised", lambda run: share_text(run["accuracy"]["train_minority"])),
    ("Small classes, unseen images recognised", lambda run: share_text(run["accuracy"]["test_minority"])),
    ("Imbalance of forces", lambda run: number_text(run["stationarity"], 2)),
)


def _cosine(side: Record) -> str:
    return number_text(side.get("cosines", {}).get("minority"), 3)


def standard_view(data: Record) -> dict[str, Any] | None:
    """What the template draws of those runs; None where the record has none.

    Args:
        data: The record of a demonstration, checked.
    """
    standard = data.get("standard")
    if standard is None:
        return None
    runs = standard["runs"]
    scale = largest_score(run[side]["Z"] for run in runs for side, _ in SIDES)
    columns = [lambda_text(run["lambda_w"]) for run in runs]
    return {
        "norm": norm_name(standard["norm"]),
        "finding": standard_finding(data),
        "scale": colour_bar(scale),
        "columns": ["Weight decay of the head, lambda_w", *columns],
        "rows": [
            *(
                [f"State of the small classes, {side}", *_states(data, runs, side)]
                for side in ("predicted", "measured")
            ),
            *([name, *map(text, runs)] for name, text in _ROWS),
        ],
        "runs": [
            {
                "level": columns[i],
                "states": outcome(data, run["measured"]["states"]),
                "maps": _maps(data, run, i, scale),
            }
            for i, run in enumerate(runs)
        ],
    }


def _states(data: Record, runs: list[Record], side: str) -> list[str]:
    return [summary_of_states(run[side]["states"], data["clusters"][-1]) for run in runs]


def _maps(data: Record, run: Record, index: int, scale: float) -> list[Record]:
    level = lambda_text(run["lambda_w"])
    sides = [
        {
            "side": side,
            "heading": heading,
            "Z": run[side]["Z"],
            "source": f"standard.runs.{index}.{side}.Z",
            "label": f"{heading}, at weight decay {level}: {outcome(data, run[side]['states'])}.",
            "remark": f"the network is {share_text(run['distance']['Z'])} away" if side == "predicted" else "",
        }
        for side, heading in SIDES
    ]
    return map_views(sides, data, scale, f"standard-{index}")
