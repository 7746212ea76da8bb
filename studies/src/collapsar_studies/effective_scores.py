"""How well each predictor of a switch does: intervals of measured over predicted, and the plain statement of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collapsar.core.types import Record

BRANCHES = ("cold", "up", "down")
PREDICTORS = ("shallow", "deep", "body", "spinodal", "descent")
WORDS = {
    "shallow": "the shallow model at effective penalties",
    "deep": "the global switch of the deep model",
    "body": "the global switch of the deep model with the layers below the normalisation",
    "spinodal": "the spinodal",
    "descent": "the lowest point of the deep model",
}


def middle(bracket: Sequence[float | None]) -> float | None:
    """The geometric middle of a bracket; None where an end is open.

    Example:
        >>> middle([0.02, 0.08]), middle([0.02, None])
        (0.04, None)
    """
    low, high = bracket
    return math.sqrt(low * high) if low is not None and high is not None else None


def predictors_of(table: Sequence[Record]) -> list[Record]:
    """Measured over predicted decay at the switch, for each kind of network, way of starting and predictor.

    Args:
        table: One row for each network, imbalance and learning rate, with "rate", "layers", "measured" (brackets by
            branch, one for each seed) and "predicted".

    Returns:
        Dicts with "regime", "layers" (L; 0 without normalisation, None where several L are taken together), "rate"
        (None: all), "branch", "model"; "ratio_low", "ratio_high": the smallest lower and the largest upper end of a
        bracket over its prediction; "ratio": geometric mean of the middles; "switches": how many that is made of;
        "unpredicted": switches where the model foresees none; "open": switches outside the decays tried, not in the
        rest; "best": of the models with the most predictions, the first with the smallest factor between any switch and
        its prediction.
    """
    groups: dict[tuple[str, int | None, float | None], list[Record]] = {}
    for row in table:
        name = f"batch normalisation, L = {row['layers']}" if row["layers"] else "no normalisation"
        groups.setdefault((name, row["layers"], None), []).append(row)
        if row["layers"]:
            groups.setdefault(("batch normalisation", None, None), []).append(row)
            groups.setdefault(("batch normalisation", None, row["rate"]), []).append(row)
    out = []
    for (regime, layers, rate), rows in groups.items():
        for branch in BRANCHES:
            found = [_interval(rows, branch, model) for model in PREDICTORS]
            known = [s for s in found if s["switches"]]
            most = max((s["switches"] for s in known), default=0)
            off = {s["model"]: _factor(s) for s in known if s["switches"] == most}
            best = min(off, key=lambda name: off[name]) if off else None
            place = {"regime": regime, "layers": layers, "rate": rate, "branch": branch}
            out += [{**place, **s, "best": s["model"] == best} for s in found]
    return out


def _interval(rows: Sequence[Record], branch: str, model: str) -> Record:
    ratios, unpredicted, outside = [], 0, 0
    for row in rows:
        place = row["predicted"][model]
        for low, high in row["measured"][branch]:
            if low is None or high is None:
                outside += 1
            elif place is None or not math.isfinite(place):
                unpredicted += 1
            else:
                ratios.append((low / place, high / place))
    return {
        "model": model,
        "ratio_low": min(low for low, _ in ratios) if ratios else None,
        "ratio_high": max(high for _, high in ratios) if ratios else None,
        "ratio": math.exp(float(np.mean(np.log(ratios)))) if ratios else None,
        "switches": len(ratios),
        "unpredicted": unpredicted,
        "open": outside,
    }


def _factor(interval: Mapping[str, Any]) -> float:
    """The largest factor between a measured and a predicted switch."""
    return max(interval["ratio_high"], 1 / interval["ratio_low"])


def statement_of(predictors: Sequence[Record]) -> list[str]:
    """One plain sentence for each kind of network and start: the best predictor, and how good it is."""
    ways = {"cold": "fresh weights", "up": "decay raised step by step", "down": "decay lowered step by step"}
    out = []
    for s in predictors:
        if s["best"] and s["branch"] != "down":
            rate = "" if s["rate"] is None else f", learning rate {s['rate']:g}"
            out.append(
                f"{s['regime']}{rate}, {ways[s['branch']]}: best is {WORDS[s['model']]}; the small classes are lost "
                f"at {s['ratio_low']:.2f} to {s['ratio_high']:.2f} of its decay ({s['switches']} switches)"
            )
    return out


def distances_of(runs: Sequence[Record]) -> list[Record]:
    """Median distance of Z to each model's optimum of the observed state, while B is apart."""
    out = []
    for rate, layers in dict.fromkeys((r["rate"], r["layers"]) for r in runs):
        mine = [r for r in runs if (r["rate"], r["layers"]) == (rate, layers) and r["lost"] == 0]
        entry: Record = {"rate": rate, "layers": layers, "runs": len(mine)}
        for name in ("shallow", "deep", "body"):
            found = [r["distance"][name] for r in mine if r["distance"][name] is not None]
            entry[name] = [float(np.median(found)), float(min(found)), float(max(found))] if found else None
        out.append(entry)
    return out
