"""What the optimum of a training does to the classes that a network has lost, or keeps: in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from collapsar.advise.outlook import TIE
from collapsar.core.types import Vector

if TYPE_CHECKING:
    from collapsar.diagnose.record import Diagnosis

GENTLE = (
    "penalties that are strong from the first step can keep small classes from being learned. Train again with "
    "a tenth of these penalties for the first half of the epochs or longer."
)
"""What helps if the optimum separates classes that the network has not separated; in tests weaker penalties did not."""


def optimum_margins(d: Diagnosis) -> Vector | None:
    """Nats by which each class's own score leads at the predicted optimum, shape (K,).

    None if none is predicted at the penalties of this training: penalties estimated from a network that the model does
    not fit, as under weight decay alone, do not say where it is heading.
    """
    p = d.prediction
    if p is None or p.Z is None:
        return None
    agrees = d.model_fit is not None or (d.effective is not None and d.effective.agree is True)
    if p.source != "as trained" and not (d.at_rest and agrees):
        return None
    scores = p.Z + p.b[:, None]
    own = scores.diagonal().copy()
    np.fill_diagonal(scores, -np.inf)
    return own - scores.max(axis=0)


def kept(d: Diagnosis, classes: Iterable[int]) -> list[int]:
    """Those that the optimum at the training's own penalties separates and predicts on their own samples.

    Empty if decay also acts on layers below a norm, which the model does not include, or has not acted at all.
    """
    margins, p = optimum_margins(d), d.prediction
    if margins is None or p is None or _bent(d) or d.known.idle:
        return []
    return [k for k in classes if margins[k] > TIE and p.states[k] == p.seen[k] == "separated"]


def outvoted_there(d: Diagnosis) -> Iterator[str]:
    """Which classes are outvoted at the optimum, compared with those that are outvoted here."""
    margins, p = optimum_margins(d), d.prediction
    if margins is None or p is None:
        return
    here = {c.index for c in d.standings.lost if c.reason == "outvoted"}
    there = {k for k in np.flatnonzero(margins < -TIE).tolist() if p.seen[k] == "separated"}
    if both := sorted(here & there):
        yield (
            f"{_are(d, both)} outvoted at that optimum as well: longer training does not bring {_them(both)} back, "
            "but weaker penalties can."
        )
    if not_yet := sorted(k for k in there - here if d.separation.states[k] == "separated"):
        lose = f"longer training at these penalties can lose {_them(not_yet)}"
        yield f"{_are(d, not_yet)} outvoted at that optimum: {lose}."
    if astray := sorted(k for k in here - there if margins[k] > TIE):
        own = "its" if len(astray) == 1 else "their"
        why = ", perhaps because of decay of the layers below, which the model does not include" if _bent(d) else ""
        yield f"{_are(d, astray)} predicted on {own} own samples at that optimum; this network has not reached it{why}."


def _bent(d: Diagnosis) -> bool:
    """Whether decay also acts on the layers below a norm, which the model does not include."""
    return d.model_fit is not None and d.known.body == "decayed"


def _are(d: Diagnosis, classes: list[int]) -> str:
    return f"{d.named(classes)} {'is' if len(classes) == 1 else 'are'}"


def _them(classes: list[int]) -> str:
    return "it" if len(classes) == 1 else "them"
