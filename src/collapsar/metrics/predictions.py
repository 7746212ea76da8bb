"""Mean predictions Z [logit, class], kept as a product without a K x K table; and counts of decisions. numpy only.

Example:
    >>> P = MeanPredictions(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    >>> P.columns([1]).tolist()
    [[1.0], [2.0]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.sentences import listed
from collapsar.core.types import Matrix, Vector

# Columns are computed this many numbers at a time: 64 MiB.
_BLOCK_NUMBERS = 1 << 23
# How many samples of a class are needed to tell whether it is exchanged for another, and by how many nats its own score
# must be behind: in an untrained head (rows drawn with variance 1/(3d) by torch) scores of unit features differ by 0.8.
_FEWEST, _BEHIND = 5, 2.0
_MOST_NAMED = 20


@dataclass(frozen=True, eq=False)
class MeanPredictions:
    """Z = W M', bias not included.

    Attributes:
        weight: W, shape (L, d); or Z itself, shape (L, K).
        class_means: M, shape (K, d); None if ``weight`` is Z.
    """

    weight: Matrix
    class_means: Matrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(L, K)."""
        return len(self.weight), self.weight.shape[1] if self.class_means is None else len(self.class_means)

    def columns(self, classes: Any) -> Matrix:
        """The columns of these classes, a slice or numbers: shape (L, how many)."""
        return self.weight[:, classes] if self.class_means is None else self.weight @ self.class_means[classes].T

    def blocks(self) -> Iterator[tuple[slice, Matrix]]:
        """All columns, some at a time, with the slice of classes."""
        L, K = self.shape
        step = max(1, _BLOCK_NUMBERS // L)
        for start in range(0, K, step):
            part = slice(start, min(start + step, K))
            yield part, self.columns(part)

    def mean(self, share: Vector) -> Vector:
        """Z @ share, shape (L,)."""
        return self.weight @ (share if self.class_means is None else self.class_means.T @ share)

    def without(self, common: Vector) -> MeanPredictions:
        """Z without its part along ``common``, a unit vector, shape (L,)."""
        return MeanPredictions(self.weight - np.outer(common, common @ self.weight), self.class_means)


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a head does with the samples of each class.

    Attributes:
        counts: samples of each class, shape (K,).
        recall: share of them that are predicted as their class, shape (K,); NaN without samples.
        predicted: how often each class is predicted, shape (K,).
        taken_by: the class that most of a class's other samples are predicted as, the first of equals, shape (K,); -1
            if there are none.
    """

    counts: NDArray[np.int64]
    recall: Vector
    predicted: NDArray[np.int64]
    taken_by: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Over all samples."""
        return float(np.nansum(self.recall * self.counts) / self.counts.sum())


def decisions(labels: NDArray[np.int64], given: NDArray[np.int64], num_classes: int) -> Decisions:
    """Count what samples with true classes ``labels``, shape (N,), are predicted as.

    Example:
        >>> found = decisions(np.array([0, 0, 0, 1]), np.array([0, 2, 2, 1]), 3)
        >>> found.recall.round(2).tolist(), found.taken_by.tolist()
        ([0.33, 1.0, nan], [2, -1, -1])
    """
    counts, right, taken_by = np.bincount(labels, minlength=num_classes), labels == given, np.full(num_classes, -1)
    pairs, times = np.unique(labels[~right] * num_classes + given[~right], return_counts=True)
    places = np.lexsort((-pairs, times))  # the most frequent is written last, and of equals the first
    taken_by[pairs[places] // num_classes] = pairs[places] % num_classes
    with np.errstate(invalid="ignore"):
        recall = np.bincount(labels[right], minlength=num_classes) / counts
    return Decisions(counts, recall, np.bincount(given, minlength=num_classes), taken_by)


def exchanged(recall: ArrayLike, taken_by: ArrayLike, class_counts: ArrayLike, behind: ArrayLike) -> tuple[int, ...]:
    """Classes that are taken for one another, one for one, and never for themselves: their numbers are exchanged.

    No training does that: a head that can tell two classes apart is right about at least one of them. An untrained
    head may do it by chance, with scores that hardly differ.

    Args:
        recall: share of each class's samples that are predicted as it, shape (K,).
        taken_by: the class that most of its other samples are predicted as, shape (K,), -1 for none.
        class_counts: samples, shape (K,); classes with fewer than five say nothing.
        behind: nats by which its mean prediction scores another class higher, shape (K,); below two it says nothing.

    Returns:
        Class indices, ascending.

    Example:
        >>> exchanged([1.0, 0.0, 0.0, 0.0], [-1, 2, 1, 0], [9, 9, 9, 9], [0.0, 4.0, 3.0, 5.0])
        (1, 2)
    """
    target = np.asarray(taken_by)
    inside = (np.asarray(recall) == 0) & (target >= 0) & (np.asarray(class_counts) >= _FEWEST)
    inside &= np.asarray(behind) >= _BEHIND
    while True:
        reached = np.zeros_like(inside)
        reached[target[inside]] = True
        left = inside & inside[target] & reached
        if (left == inside).all():
            return tuple(np.flatnonzero(left).tolist())
        inside = left


def exchanged_words(names: Sequence[str]) -> str:
    """The sentence about classes of these names that are ``exchanged``."""
    return (
        f"{listed(names, _MOST_NAMED, last=' and ')} are taken for one another, one for one, and never for themselves: "
        "the labels are numbered differently from the head's rows. All statements about single classes are meaningless."
    )
