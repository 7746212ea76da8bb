"""Lines on which a function given on a grid is zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.types import Array

__all__ = ["Line", "zero_lines"]

Line = tuple[tuple[float, float], ...]


def zero_lines(field: ArrayLike, squares: ArrayLike | None = None) -> tuple[Line, ...]:
    """Polylines of (column, row) along which a bilinear field changes sign, in units of the grid.

    Args:
        field: shape (rows, columns); squares with a corner that is not finite are left out. Zero counts as positive.
        squares: shape (rows - 1, columns - 1), which squares to look at; all by default.

    Returns:
        The lines, longest first; a closed one ends where it begins.

    Example:
        >>> zero_lines([[-1.0, 1.0], [-1.0, 3.0]])
        (((0.5, 0.0), (0.25, 1.0)),)
    """
    from contourpy import contour_generator

    f = np.ma.masked_invalid(np.asarray(field, dtype=np.float64))
    lines = contour_generator(z=-f, corner_mask=False).lines(0.0)  # zero is on the low side for contourpy
    if squares is not None:
        lines = [part for line in lines for part in _inside(np.asarray(line), np.asarray(squares, dtype=bool))]
    return tuple(sorted((tuple(map(tuple, np.asarray(line).tolist())) for line in lines), key=len, reverse=True))


def _inside(line: Array, squares: NDArray[np.bool_]) -> list[Array]:
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
