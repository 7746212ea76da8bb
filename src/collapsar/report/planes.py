"""Class means of a network beside those of theory, as pictures for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collapsar.metrics.separation import class_separation
from collapsar.report.geometry import class_means_plane, principal_plane
from collapsar.report.page import drawn
from collapsar.report.record import Record, matrix
from collapsar.report.words import share_text

__all__ = ["plane_views"]


def plane_views(geometry: Record | None, data: Record, ident: str) -> list[Record]:
    """Class means of the network and of the optimum in their planes, one scale; mean scores where there are none."""
    if not {"separated", "merged"} & set(data["separation"]["states"]):
        return []  # noise around the origin
    means, what = _points(geometry, data)
    theory = data["prediction"]
    sides = [
        ("network", "The network, measured", data["separation"]["states"], data["separation"]["groups"]),
        ("theory", "The theory, predicted", theory and theory["seen"], _groups_of(theory)),
    ]
    sides = [side for side in sides if means.get(side[0]) is not None]
    reach = 1.25 * max((_longest(means[side]) for side, *_ in sides), default=0.0) or 1.0
    views = []
    for side, heading, states, found in sides:
        groups = [g for g in found if any(states[k] == "merged" for k in g)]  # vanished classes are no group
        picture = {
            "class_means": means[side],
            "class_names": data["class_names"],
            "groups": groups,
            "states": states,
        }
        shown = principal_plane(means[side])[1]
        circled = "; merged groups: " + ", ".join(_group(g, data) for g in groups) if groups else ""
        label = f"{heading}: {what} in their principal plane, which holds {share_text(shown)} of their squared length"
        svg = drawn(
            lambda ax, picture=picture: class_means_plane(picture, ax, reach=reach),
            (2.9, 2.9), f"{ident}-plane-{side}", f"{label}{circled}.",
        )  # fmt: skip
        views.append({"heading": heading, "what": what, "shown": share_text(shown), "svg": svg})
    return views


def _points(geometry: Record | None, data: Record) -> tuple[dict[str, Any], str]:
    if geometry is not None:
        return geometry, "class means"
    theory = data["prediction"]
    scores = {"network": data["Z"], "theory": None if theory is None else theory["Z"]}
    return {k: None if Z is None else matrix(Z).T for k, Z in scores.items()}, "mean scores"


def _longest(means: Any) -> float:
    return float(np.nanmax(np.linalg.norm(principal_plane(means)[0], axis=1), initial=0.0))


def _groups_of(theory: Record | None) -> Sequence[Sequence[int]]:
    """Classes that cannot be told apart at the optimum, by the rule that measures the network."""
    return () if theory is None or theory["Z"] is None else class_separation(theory["Z"]).groups


def _group(classes: Sequence[int], data: Record) -> str:
    return " and ".join(data["class_names"][k] for k in classes[:8])
