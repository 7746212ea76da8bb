"""Classes whose rows of a head coincide: no features can tell them apart. Needs only numpy and scipy.

Example:
    >>> shared_rows(np.array([[1.0, 0], [0, 1], [0, 1], [-1, 0]]))
    ((1, 2),)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Vector
from collapsar.metrics.near_rows import Rows, SomeRows, groups_of, mean_row, near_labels, row_blocks

TOLERANCE = 0.01
"""Rows coincide if no farther apart than this share of the longest row."""

# Sums of squares of larger numbers exceed the range of float64.
_LARGEST = 1e100


def shared_rows(weight: NDArray) -> tuple[tuple[int, ...], ...]:
    """Groups of classes whose rows of a head, shape (K, d), finite, coincide, the largest first."""
    mean, lengths = row_geometry(weight)
    scale = longest_row(lengths)
    return tuple(row_groups(weight, mean, TOLERANCE * scale)) if scale > 0 else (tuple(range(len(lengths))),)


def longest_row(lengths: Vector) -> float:
    """The longest row's length; three times the 90th percentile if that is less."""
    tail = float(np.quantile(lengths, 0.9))
    return min(float(lengths.max()), 3 * tail) if tail > 0 else float(lengths.max())


def row_geometry(W: Rows) -> tuple[Vector, Vector]:
    """The mean row and the lengths of the rows about it; refuses entries that are not finite."""
    K, d = W.shape
    mean, lengths = np.zeros(d), np.empty(K)
    for start, block in row_blocks(W, np.float64):
        total = block.sum(axis=0, dtype=np.float64)
        if not np.isfinite(total).all():
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            row = f"; row {start + int(bad[0])} is not" if len(bad) else ""
            raise ValueError(f"`weight` must be finite{row}. Look for a diverged run or a damaged file")
        mean += total
    mean /= K
    for start, block in row_blocks(W, np.float64):
        centred = block - mean
        lengths[start : start + len(block)] = np.sqrt(np.einsum("ij,ij->i", centred, centred))
    if not (lengths < _LARGEST).all():
        raise ValueError(
            f"`weight` must be below {_LARGEST:g}; row {int(np.argmin(lengths < _LARGEST))} is not. "
            "Look for a diverged run or a damaged file"
        )
    return mean, lengths


def row_groups(W: Rows, mean: Vector, tolerance: float) -> list[tuple[int, ...]]:
    """Sets of classes connected by near rows; a chain wider than four tolerances is cut around its densest rows."""
    found: list[tuple[int, ...]] = []
    for group in groups_of(near_labels(W, tolerance, mean)):
        left = np.array(group)
        while len(left) > 1:
            distances = from_middle(SomeRows(W, left))
            if distances.max() <= 2 * tolerance:
                found.append(tuple(left.tolist()))
                break
            centre = np.asarray(W[left[[int(distances.argmin())]]], dtype=np.float64)[0]
            near = _from(SomeRows(W, left), centre) <= tolerance
            if near.sum() > 1:
                found.append(tuple(left[near].tolist()))
            left = left[~near]
    return sorted(found, key=lambda group: (-len(group), group))


def from_middle(rows: Rows) -> Vector:
    """Distances of the rows from their mean."""
    return _from(rows, mean_row(rows))


def _from(rows: Rows, centre: Vector) -> Vector:
    return np.concatenate([np.linalg.norm(block - centre, axis=1) for _, block in row_blocks(rows, np.float64)])
