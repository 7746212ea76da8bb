"""The closed-form transitions over the grid of a phase diagram, as curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.types import Array, Mask
from collapsar.phase.grid import Axis, PhaseConfig

Line = tuple[tuple[float, float], ...]
Transition = Literal["merge", "vanish", "complete"]

_CURVES: tuple[tuple[Transition, str], ...] = (
    *(("merge", "a"), ("merge", "b")),
    *(("vanish", "a"), ("vanish", "b")),
    ("complete", ""),
)
_SAME = 1e-9  # two thresholds closer than this, relatively, count as one curve


@dataclass(frozen=True)
class Curve:
    """A closed-form transition over the grid.

    Attributes:
        transition: "merge", "vanish" or "complete".
        cluster: "A", "B", or "" for both.
        exact: whether it is certified to be the model's own. False: it is that of the column form, where classes with
            nonnegative features would share a direction, so that the model's own lies elsewhere.
        lines: polylines of (x, y) in the units of the axes, longest first; none if the range has no such transition.
        note: the finding in words.
    """

    transition: Transition
    cluster: str
    exact: bool
    lines: tuple[Line, ...]
    note: str


def curves_of(config: PhaseConfig, fields: Mapping[str, Array]) -> tuple[Curve, ...]:
    """The curves along which the penalty equals a threshold.

    Thresholds that coincide are drawn once and named after the last of them in the order merge, vanish, complete.

    Args:
        config: the grid.
        fields: thresholds per cell, shape (ny, nx): "merge_a", "merge_b", "vanish_a", "vanish_b", "complete", NaN where
            there is none; and "exact_a", "exact_b", "exact_complete", positive where certified.

    Returns:
        One curve per transition that exists anywhere on the grid, and a second one if a part of it is not exact.
    """
    curves: list[Curve] = []
    for transition, side in _CURVES:
        field, named_elsewhere = fields[f"{transition}_{side}" if side else transition], False
        later = ["complete"] if side else []
        later += [f"vanish_{side}"] if transition == "merge" else []
        if later:
            doubled = np.any([np.abs(field / fields[other] - 1) <= _SAME for other in later], axis=0)
            named_elsewhere = bool((doubled & (config.penalty >= field)).any())
            field = np.where(_inner(doubled), np.nan, field)
        if np.isnan(field).all():
            continue
        certain = _squares((fields[f"exact_{side or 'complete'}"] > 0) | (transition == "merge"))
        lines, rest = (_lines(config, field, where) for where in (certain, ~certain))
        if named_elsewhere and not (lines or rest):
            continue  # otherwise the rest of it would be reported to lie nowhere
        if lines or not rest:
            note = _note(config, transition, side, field, bool(lines))
            curves.append(Curve(transition, side.upper(), True, lines, note))
        if rest:
            what = _words(transition, side)
            note = f"{what}: along a curve of the column form, where classes would share a direction"
            curves.append(Curve(transition, side.upper(), False, rest, note))
    return tuple(curves)


def _lines(config: PhaseConfig, field: Array, squares: Mask) -> tuple[Line, ...]:
    return tuple(
        tuple((_at(config.x_values, config.x, c), _at(config.y_values, config.y, r)) for c, r in line)
        for line in zero_lines(np.log(field / config.penalty), squares)
    )


def zero_lines(field: ArrayLike, squares: ArrayLike | None = None) -> tuple[Line, ...]:
    """Polylines of (column, row) along which a bilinear field changes sign, in units of the grid.

    Args:
        field: shape (rows, columns); squares with a corner that is not finite are left out. Zero counts as positive.
        squares: shape (rows - 1, columns - 1), which squares to include; all by default.

    Returns:
        The lines, longest first; a closed one ends where it begins.

    Example:
        >>> zero_lines([[-1.0, 1.0], [-1.0, 3.0]])
        (((0.5, 0.0), (0.25, 1.0)),)
    """
    from contourpy import contour_generator

    f = np.ma.masked_invalid(np.asarray(field, dtype=np.float64))
    lines = contour_generator(z=-f, corner_mask=False).lines(0.0)  # contourpy puts zero on the low side
    if squares is not None:
        lines = [part for line in lines for part in _inside(np.asarray(line), np.asarray(squares, dtype=bool))]
    return tuple(sorted((tuple(map(tuple, np.asarray(line).tolist())) for line in lines), key=len, reverse=True))


def _inside(line: Array, squares: Mask) -> list[Array]:
    """The parts of a line whose segments lie in the squares; each segment lies in one."""
    column, row = ((line[1:] + line[:-1]) / 2).T.astype(np.intp)
    kept = squares[np.minimum(row, squares.shape[0] - 1), np.minimum(column, squares.shape[1] - 1)]
    if kept.all():
        return [line]
    if np.array_equal(line[0], line[-1]):  # a closed line is cut where it leaves the squares first
        first = int(np.argmin(kept))
        line, kept = np.concatenate([line[first:-1], line[: first + 1]]), np.roll(kept, -first)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]])))
    return [line[begin : end + 1] for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _inner(mask: Mask) -> Mask:
    """Where all neighbours are in the mask too: at the rim a curve may still run into the one that it joins."""
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
    where = ", which lies beyond" if not below else ", it is separated everywhere" if transition == "merge" else ""
    return f"{what}: nowhere in this range{where}"
