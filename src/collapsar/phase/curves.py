"""The closed-form transitions over the grid of a phase diagram, as curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collapsar.core.types import Array, Mask
from collapsar.phase.contour import zero_lines
from collapsar.phase.grid import Axis, PhaseConfig

__all__ = ["Curve", "curves_of"]

Transition = Literal["merge", "vanish", "complete"]

_CURVES: tuple[tuple[Transition, str], ...] = (
    *(("merge", "a"), ("merge", "b")),
    *(("vanish", "a"), ("vanish", "b")),
    ("complete", ""),
)
_SAME = 1e-9  # two thresholds closer than this, relatively, are one curve


@dataclass(frozen=True)
class Curve:
    """A closed-form transition over the grid.

    Attributes:
        transition: "merge", "vanish" or "complete".
        cluster: "A", "B", or "" where both are meant.
        exact: whether it is certified to be the model's own. False: of the column form alone, where classes with
            nonnegative features would share a direction, so that the model's own lies elsewhere.
        lines: polylines of (x, y) in the units of the axes, longest first; none where the range has no such transition.
        note: the finding in words.
    """

    transition: Transition
    cluster: str
    exact: bool
    lines: tuple[tuple[tuple[float, float], ...], ...]
    note: str


def curves_of(config: PhaseConfig, fields: Mapping[str, Array]) -> tuple[Curve, ...]:
    """Where the penalty equals a threshold.

    A threshold that is another one's too is drawn and named once, by the last of them: merge, vanish, complete.

    Args:
        config: the grid.
        fields: thresholds per cell, shape (ny, nx): "merge_a", "merge_b", "vanish_a", "vanish_b", "complete", NaN where
            there is none; and "exact_a", "exact_b", "exact_complete", positive where certified.

    Returns:
        One curve per transition that exists anywhere on the grid, and a second one where a part of it is not exact.
    """
    complete = fields["complete"]
    curves: list[Curve] = []
    for transition, side in _CURVES:
        field = fields[f"{transition}_{side}" if side else transition]
        if side:
            doubled = np.abs(field / complete - 1) <= _SAME
            if transition == "merge":
                doubled |= np.abs(field / fields[f"vanish_{side}"] - 1) <= _SAME
            field = np.where(_inner(doubled), np.nan, field)
        if np.isnan(field).all():
            continue
        certain = _squares(fields[f"exact_{side or 'complete'}"] > 0)
        if transition == "merge":
            certain = np.ones_like(certain)
        lines, rest = (_lines(config, field, where) for where in (certain, ~certain))
        if lines or not rest:
            curves.append(
                Curve(transition, side.upper(), True, lines, _note(config, transition, side, field, bool(lines)))
            )
        if rest:
            note = (
                f"{_words(transition, side)}: along a curve of the column form, where classes would share a direction"
            )
            curves.append(Curve(transition, side.upper(), False, rest, note))
    return tuple(curves)


def _lines(config: PhaseConfig, field: Array, squares: Mask) -> tuple[tuple[tuple[float, float], ...], ...]:
    return tuple(
        tuple((_at(config.x_values, config.x, c), _at(config.y_values, config.y, r)) for c, r in line)
        for line in zero_lines(np.log(field / config.penalty), squares)
    )


def _inner(mask: Mask) -> Mask:
    """Where all neighbours are in the mask too: at its rim a curve may still run into the one it joins."""
    ny, nx = mask.shape
    padded = np.pad(mask, 1, constant_values=True)
    return np.all([padded[i : i + ny, j : j + nx] for i in range(3) for j in range(3)], axis=0)


def _squares(mask: Mask) -> Mask:
    """Squares of the grid all of whose corners are in the mask."""
    return mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]


def _at(values: Array, axis: Axis, position: float) -> float:
    """The value of an axis between its grid points."""
    at = np.arange(values.size)
    if axis.scale == "log":
        return float(np.exp(np.interp(position, at, np.log(values))))
    return float(np.interp(position, at, values))


def _words(transition: Transition, side: str) -> str:
    verb = {"merge": "merges", "vanish": "vanishes", "complete": "everything collapses"}[transition]
    return f"{side.upper()} {verb}" if side else verb


def _note(config: PhaseConfig, transition: Transition, side: str, field: Array, found: bool) -> str:
    what = _words(transition, side)
    if found:
        return f"{what}: along a curve"
    below = bool((config.penalty < field)[np.isfinite(field)].all())
    if not side:
        return f"{what}: {'nowhere' if below else 'everywhere'} in this range"
    state = "past it" if not below else "separated" if transition == "merge" else ""
    return f"{what}: nowhere in this range{f', it is {state} everywhere' if state else ''}"
