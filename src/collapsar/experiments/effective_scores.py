"""How well each predictor of a switch does: ratios, spreads, and the plain statement made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["BRANCHES", "PREDICTORS", "distances_of", "middle", "scores_of", "statement_of"]

Record = dict[str, Any]

BRANCHES = ("cold", "up", "down")
PREDICTORS = ("shallow", "deep", "spinodal")


def middle(bracket: Sequence[float | None]) -> float | None:
    """The geometric middle of a bracket; None where an end is open.

    Example:
        >>> middle([0.02, 0.08]), middle([0.02, None])
        (0.04, None)
    """
    low, high = bracket
    return math.sqrt(low * high) if low is not None and high is not None else None


def scores_of(table: Sequence[Record]) -> Record:
    """Measured over predicted switch: geometric mean and spread (a factor) over networks, imbalances and seeds."""
    out: Record = {}
    groups = {f"{'normalised' if row['layers'] else 'bare'}, rate {row['rate']:g}": [] for row in table}
    for row in table:
        groups[f"{'normalised' if row['layers'] else 'bare'}, rate {row['rate']:g}"].append(row)
    for group, rows in groups.items():
        for branch in BRANCHES:
            for name in PREDICTORS:
                logs = [
                    math.log(place / row["predicted"][name])
                    for row in rows
                    for bracket in row["measured"][branch]
                    if (place := middle(bracket)) is not None and row["predicted"][name] not in (None, math.inf)
                ]
                open_ended = sum(middle(bracket) is None for row in rows for bracket in row["measured"][branch])
                out.setdefault(group, {}).setdefault(branch, {})[name] = {
                    "ratio": math.exp(float(np.mean(logs))) if logs else None,
                    "spread": math.exp(float(np.std(logs))) if logs else None,
                    "switches": len(logs),
                    "without_prediction": sum(
                        middle(bracket) is not None and row["predicted"][name] in (None, math.inf)
                        for row in rows
                        for bracket in row["measured"][branch]
                    ),
                    "no_switch_in_range": int(open_ended),
                }
    return out


def statement_of(scores: Mapping[str, Any]) -> list[str]:
    """One plain sentence for each kind of network and start: the predictor that comes closest, and how close."""
    words = {
        "cold": "cold starts",
        "up": "warm starts with decay going up",
        "down": "warm starts with decay going down",
    }
    out = []
    for group, branches in scores.items():
        for branch, predictors in branches.items():
            known = {name: s for name, s in predictors.items() if s["ratio"] is not None}
            if not known:
                continue
            # how far a single switch typically is from the prediction: the bias and the spread together
            off = {name: math.hypot(math.log(s["ratio"]), math.log(s["spread"])) for name, s in known.items()}
            best = min(off, key=lambda name: off[name])
            s = known[best]
            missed = predictors["shallow"]["without_prediction"]
            out.append(
                f"{group}, {words[branch]}: nearest is {best}; measured over predicted {s['ratio']:.2f} with a spread "
                f"of a factor {s['spread']:.2f} over {s['switches']} switches ({s['no_switch_in_range']} more outside "
                f"the decays tried); the shallow model foresees none for {missed} of them"
            )
    return out


def distances_of(runs: Sequence[Record]) -> list[Record]:
    """Median distance of Z to the shallow optimum and to the deep one of the observed state, while B is apart."""
    out = []
    for rate, layers in dict.fromkeys((r["rate"], r["layers"]) for r in runs):
        mine = [r for r in runs if (r["rate"], r["layers"]) == (rate, layers) and r["lost"] == 0]
        entry: Record = {"rate": rate, "layers": layers, "runs": len(mine)}
        for name in ("shallow", "deep"):
            found = [r["distance"][name] for r in mine if r["distance"][name] is not None]
            entry[name] = [float(np.median(found)), float(min(found)), float(max(found))] if found else None
        out.append(entry)
    return out
