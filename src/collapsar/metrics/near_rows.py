"""Rows of a large matrix that lie close together, found without a table of all pairs. Needs only numpy and scipy.

Distances are bounded from below by those of a sketch, a projection onto a few orthonormal directions. Rows are sorted
by the coordinate that leaves the fewest pairs within reach, the sketches of rows within reach are compared in blocks,
and only pairs that the sketch cannot tell apart are compared in full, by direct differences.

Example:
    >>> import numpy as np
    >>> rows = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1e-9], [0.0, 1.0]])
    >>> near_labels(rows, 1e-6).tolist()
    [0, 1, 1, 3]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from collapsar.core.types import Vector

Labels = NDArray[np.int64]

_SKETCH = 64
_BLOCK_NUMBERS = 1 << 22
_PAIRS = 1 << 14  # compared at once


class Rows(Protocol):
    """What a matrix of rows must offer: an array, a memory map, or a reader that converts what it returns."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, d)."""
        ...

    def __getitem__(self, key: Any, /) -> NDArray:
        """The rows of a slice or of an array of numbers, as an array."""
        ...


@dataclass(frozen=True, eq=False)
class SomeRows:
    """Some of the rows, read only when they are used."""

    rows: Rows
    members: Labels

    @property
    def shape(self) -> tuple[int, int]:
        """(how many, d)."""
        return len(self.members), self.rows.shape[1]

    def __getitem__(self, key: Any) -> NDArray:
        return self.rows[self.members[key]]


def row_blocks(rows: Rows, dtype: Any = np.float32) -> Iterator[tuple[int, NDArray]]:
    """The rows in blocks of about 2²² numbers, each with the number of its first row."""
    K, d = rows.shape
    step = max(1, _BLOCK_NUMBERS // max(d, 1))
    for start in range(0, K, step):
        yield start, np.asarray(rows[start : min(start + step, K)], dtype=dtype)


def near_labels(rows: Rows, tolerance: float, centre: NDArray | None = None) -> Labels:
    """Give rows that are connected by steps no longer than ``tolerance`` one label: the smallest row of each set.

    Distances are compared in double precision; a ``centre``, shape (d,), near the middle of the rows preserves digits;
    by default it is their mean.
    """
    K = rows.shape[0]
    labels = np.arange(K)
    if K < 2:
        return labels
    middle = mean_row(rows) if centre is None else centre
    sketch, lengths = _sketch(rows, middle)
    slack = 1e-5 * float(lengths.max())  # float32 coordinates
    key = _best_key(sketch, lengths, tolerance + slack)
    order = np.argsort(key, kind="stable")
    for pairs in _candidates(sketch[order], key[order], tolerance, slack):
        labels = _joined(rows, labels, order[pairs], tolerance)
    smallest = np.full(K, K)
    np.minimum.at(smallest, labels, np.arange(K))
    return smallest[labels]


def groups_of(labels: Labels) -> list[tuple[int, ...]]:
    """The sets of two or more that share a label, each ascending, the largest first."""
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [tuple(part.tolist()) for part in np.split(order, cuts) if len(part) > 1]
    return sorted(groups, key=lambda group: (-len(group), group))


def nearest_rows(points: NDArray[np.float64]) -> tuple[Labels, Vector]:
    """For each of two or more rows the nearest other row, the first of equally near ones, and its distance."""
    K = len(points)
    centred = points - points.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    noise = 1e-12 * (float(squares.max()) or 1.0)
    nearest, distances = np.empty(K, dtype=np.int64), np.empty(K)
    step = max(1, _BLOCK_NUMBERS // K)
    for start in range(0, K, step):
        stop = min(start + step, K)
        table = -2 * (centred[start:stop] @ centred.T)
        table += squares
        table += squares[start:stop, None]
        table[np.arange(stop - start), np.arange(start, stop)] = np.inf
        i, j = np.nonzero(table <= table.min(axis=1, keepdims=True) + noise)
        exact = _distances(points, i + start, j)
        first = np.lexsort((j, exact, i))
        chosen = first[np.unique(i[first], return_index=True)[1]]
        nearest[start:stop], distances[start:stop] = j[chosen], exact[chosen]
    return nearest, distances


def mean_row(rows: Rows) -> Vector:
    """The mean of the rows, shape (d,)."""
    return np.sum([block.sum(axis=0) for _, block in row_blocks(rows, np.float64)], axis=0) / rows.shape[0]


def _sketch(rows: Rows, centre: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates along a few orthonormal directions, shape (K, m), and lengths, shape (K,), both about the centre."""
    K, d = rows.shape
    m = min(d, _SKETCH)
    directions = np.eye(d) if d <= _SKETCH else np.linalg.qr(np.random.default_rng(0).standard_normal((d, m)))[0]
    directions = directions.astype(np.float32)
    sketch, lengths = np.empty((K, m), dtype=np.float32), np.empty(K, dtype=np.float32)
    for start, block in row_blocks(rows):
        part = slice(start, start + len(block))
        centred = block - centre.astype(np.float32)
        sketch[part] = centred @ directions
        lengths[part] = np.linalg.norm(centred, axis=1)
    return sketch, lengths


def _best_key(sketch: NDArray[np.float32], lengths: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    """The coordinate, or the length, with the fewest pairs in reach; no difference of these exceeds the distance."""

    def pairs_in_reach(key: NDArray[np.float32]) -> int:
        key = np.sort(key)
        return int(np.searchsorted(key, key + np.float32(reach), side="right").sum())

    spread = np.argsort(-sketch.std(axis=0))[:4]
    return min((lengths, *sketch.T[spread]), key=pairs_in_reach)


def _candidates(
    sketch: NDArray[np.float32], key: NDArray[np.float32], tolerance: float, slack: float
) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions in the sorted sketch that may be within the tolerance, shape (n, 2), block by block."""
    K = len(sketch)
    halves = 0.5 * np.einsum("ij,ij->i", sketch, sketch, dtype=np.float32)
    ones = np.ones_like(halves)
    # one product gives half the squared distances
    left, right = np.column_stack([-sketch, halves, ones]), np.column_stack([sketch, ones, halves])
    ends = np.searchsorted(key, key + np.float32(tolerance + slack), side="right")
    start = 0
    while start < K:
        width = int(ends[min(start + 1024, K) - 1]) - start
        stop = min(K, start + max(1, min(1024, 4 * _BLOCK_NUMBERS // max(width, 1))))
        near = slice(start, ends[stop - 1])  # the rounding of a product is that of its rows
        limit = np.float32(0.5 * (tolerance + slack) ** 2 + 1e-5 * float(halves[near].max()))
        close = left[start:stop] @ right[near].T <= limit
        i, j = np.divmod(np.flatnonzero(close), close.shape[1])
        later = j > i
        if later.any():
            yield np.column_stack([i[later] + start, j[later] + start])
        start = stop


def _joined(rows: Rows, labels: Labels, pairs: NDArray[np.int64], tolerance: float) -> Labels:
    """The labels after joining those of the pairs within the tolerance; a pair already joined is not compared.

    The first pairs are those of one row with all others: in a large group they join most rows.
    """
    while len(pairs := pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]):
        i, j = pairs[:_PAIRS].T
        near = _distances(rows, i, j) <= tolerance
        if near.any():
            edges = coo_array((np.ones(near.sum()), (labels[i[near]], labels[j[near]])), shape=(len(labels),) * 2)
            labels = connected_components(edges, directed=False)[1][labels].astype(np.int64)
        pairs = pairs[_PAIRS:]
    return labels


def _distances(rows: Rows, i: NDArray[np.int64], j: NDArray[np.int64]) -> Vector:
    """Distances of pairs of rows by direct differences, in double precision."""
    step = max(1, _BLOCK_NUMBERS // max(1, rows.shape[1]))
    found = np.empty(len(i))
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        difference = np.asarray(rows[i[part]], dtype=np.float64) - np.asarray(rows[j[part]], dtype=np.float64)
        found[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return found
