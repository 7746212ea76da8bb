"""Lines on which a function given on a grid is zero: marching squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Line", "zero_lines"]

Array = NDArray[np.float64]
Line = tuple[tuple[float, float], ...]
_Edge = tuple[int, int, int]  # row and column of the node it starts from; 0: to the next column, 1: to the next row

# The four edges of the square whose first node is (i, j): below, right, above, left.
_EDGES = ((0, 0, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1))


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
    f = np.asarray(field, dtype=np.float64)
    positive = f >= 0
    corners = (positive[:-1, :-1], positive[:-1, 1:], positive[1:, 1:], positive[1:, :-1])  # counter-clockwise
    finite = np.isfinite(f)
    whole = finite[:-1, :-1] & finite[:-1, 1:] & finite[1:, 1:] & finite[1:, :-1]
    mixed = whole & (sum(c.astype(int) for c in corners) % 4 != 0)
    if squares is not None:
        mixed &= np.asarray(squares, dtype=bool)
    links: dict[_Edge, list[_Edge]] = {}
    for i, j in zip(*np.nonzero(mixed), strict=True):
        signs = [bool(c[i, j]) for c in corners]
        crossed = [(i + a, j + b, d) for n, (a, b, d) in enumerate(_EDGES) if signs[n] != signs[(n + 1) % 4]]
        if len(crossed) == 4 and (np.mean(f[i : i + 2, j : j + 2]) >= 0) != signs[0]:
            crossed = crossed[1:] + crossed[:1]  # a saddle: the middle is not of the first corner
        for first, second in zip(crossed[::2], crossed[1::2], strict=True):
            links.setdefault(first, []).append(second)
            links.setdefault(second, []).append(first)
    lines = [tuple(_point(f, edge) for edge in chain) for chain in _chains(links)]
    return tuple(sorted(lines, key=len, reverse=True))


def _chains(links: dict[_Edge, list[_Edge]]) -> list[Sequence[_Edge]]:
    """Every link once: open chains from their ends, then closed ones."""
    chains: list[Sequence[_Edge]] = []
    for start in sorted(links, key=lambda edge: len(links[edge])):  # ends, with one neighbour, come first
        if not links[start]:
            continue
        chain = [start]
        while links[chain[-1]]:
            following = links[chain[-1]].pop()
            links[following].remove(chain[-1])
            chain.append(following)
        chains.append(chain)
    return chains


def _point(f: Array, edge: _Edge) -> tuple[float, float]:
    i, j, direction = edge
    here, there = f[i, j], f[i + direction, j + 1 - direction]
    t = float(here / (here - there))
    return (float(j), float(i + t)) if direction else (float(j + t), float(i))
