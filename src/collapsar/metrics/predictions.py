"""Mean predictions Z [logit, class] as the product they are: columns on request, no K x K table. numpy only.

Example:
    >>> P = MeanPredictions(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    >>> P.columns([1]).tolist()
    [[1.0], [2.0]]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsar.core.types import Matrix, Vector

__all__ = ["MeanPredictions"]


# Columns are made this many numbers at a time: 64 MiB.
_BLOCK_NUMBERS = 1 << 23


@dataclass(frozen=True, eq=False)
class MeanPredictions:
    """Z = W M', bias not included.

    Attributes:
        weight: W, shape (L, d); or Z itself, shape (L, K).
        class_means: M, shape (K, d); None where ``weight`` is Z.
    """

    weight: Matrix
    class_means: Matrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(L, K)."""
        return len(self.weight), self.weight.shape[1] if self.class_means is None else len(self.class_means)

    def columns(self, classes: Any) -> Matrix:
        """Of these classes, a slice or numbers: shape (L, how many)."""
        return self.weight[:, classes] if self.class_means is None else self.weight @ self.class_means[classes].T

    def blocks(self) -> Iterator[tuple[slice, Matrix]]:
        """All columns, some at a time, each with which they are."""
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
