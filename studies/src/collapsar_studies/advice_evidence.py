"""What the measured switches of ordinary training say about each model, as the small data file that advice reads.

``python -m collapsar_studies.advice_evidence results/effective/effective.json >
src/collapsar/advise/weight_decay.json`` brings the file up to date with a record.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from collapsar.core.types import Record
from collapsar_studies.effective import K_A, K_B
from collapsar_studies.effective_scores import middle

# Models that need no more than counts, decay and layers, as advice has them: the record may hold nearer ones that need
# the images or a trained network.
MODELS = ("shallow", "deep")
# A model foresees a kind of network when each of its switches lies within this factor of the prediction.
TRUSTED = 2.0


def evidence_of(effective: Mapping[str, Any]) -> Record:
    """The nearest of ``MODELS``, and per number of layers above the normalisation by how much its switches missed it.

    Networks trained afresh only, at every learning rate: what a practitioner does.

    Args:
        effective: the record of ``collapsar reproduce effective``.

    Returns:
        A dict of JSON values: "environment", the commits, versions and devices of the record's runs; "model", and
        "depths", per number of layers: "ratio", from the last decay of any network that kept its small classes to the
        first of any that lost them, over the prediction (None: open, the smallest or largest decay tried was already
        beyond); "middles", smallest and largest middle of a switch over the prediction; "predicts", whether all
        switches are closed and within a factor ``TRUSTED``; "switches" and "networks".

    Raises:
        ValueError: the record has no switch of a network with normalisation.
    """
    rows = [row for row in effective["table"] if row["layers"] >= 1]
    depths = sorted({row["layers"] for row in rows})
    off = {name: _off(rows, name) for name in MODELS}
    known = {name: value for name, value in off.items() if value is not None}
    if not known:
        raise ValueError("`effective` must hold switches of networks with normalisation, got none")
    model = min(known, key=lambda name: known[name])
    return {
        "source": "results/effective/effective.json",
        "environment": effective.get("environment"),
        "data": effective["data"],
        "model": model,
        "depths": [_depth(layers, [r for r in rows if r["layers"] == layers], effective, model) for layers in depths],
    }


def _off(rows: Sequence[Record], model: str) -> float | None:
    """How far a switch typically is from the prediction, as a root mean square logarithm; None: it foresees too few."""
    logs = []
    for row in rows:
        for place in filter(None, map(middle, row["measured"]["cold"])):
            if row["predicted"].get(model) in (None, math.inf):
                return None
            logs.append(math.log(place / row["predicted"][model]))
    return math.hypot(*logs) / math.sqrt(len(logs)) if logs else None


def _depth(layers: int, rows: Sequence[Record], effective: Mapping[str, Any], model: str) -> Record:
    brackets = [
        [None if end is None else end / row["predicted"][model] for end in bracket]
        for row in rows
        for bracket in row["measured"]["cold"]
    ]
    ratio = [_outermost([bracket[side] for bracket in brackets], pick) for side, pick in ((0, min), (1, max))]
    middles = [middle(bracket) for bracket in brackets]
    closed = [value for value in middles if value is not None]
    predicts = len(closed) == len(middles) and all(1 / TRUSTED <= value <= TRUSTED for value in closed)
    return {
        "layers": layers,
        "predicts": predicts,
        "ratio": ratio,
        "middles": [round(pick(closed), 3) if closed else None for pick in (min, max)],
        "switches": len(brackets),
        "networks": [
            {
                "class_counts": f"{effective['n_a']}x{K_A},{row['n_b']}x{K_B}",
                "rate": row["rate"],
                "seeds": len(row["measured"]["cold"]),
            }
            for row in rows
        ],
    }


def _outermost(ends: Sequence[float | None], pick: Callable[[list[float]], float]) -> float | None:
    known = [end for end in ends if end is not None]
    return round(pick(known), 3) if len(known) == len(ends) else None


if __name__ == "__main__":
    print(json.dumps(evidence_of(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), indent=1))
