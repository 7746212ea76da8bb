"""Inner products of all pairs of rows, tile by tile, and the spread of their angles.

A tile is small enough to stay in the cache while several sums are taken of it; no K x K array is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Angles", "Tile", "tiles"]

# Numbers of a tile: on the CPU what stays in the cache, elsewhere fewer and larger products.
_BLOCK_NUMBERS = {"cpu": 1 << 17}
_BLOCK_NUMBERS_ELSEWHERE = 1 << 21


@dataclass(frozen=True)
class Tile:
    """Inner products of some rows with some later ones; on the diagonal only those above it are pairs."""

    rows: slice
    columns: slice
    gram: Tensor

    @property
    def on_diagonal(self) -> bool:
        """Whether some entries are no pairs."""
        return self.rows.start == self.columns.start

    @property
    def pairs(self) -> Tensor:
        """Mask of the pairs i < j."""
        mask = torch.ones_like(self.gram, dtype=torch.bool)
        return mask.triu_(1) if self.on_diagonal else mask

    @property
    def count(self) -> int:
        """How many pairs."""
        rows, columns = self.gram.shape
        return rows * columns - (rows * (rows + 1) // 2 if self.on_diagonal else 0)


def tiles(vectors: Tensor) -> Iterator[Tile]:
    """Each pair of rows once, in pieces that stay in the cache while they are worked on."""
    side = max(1, math.isqrt(_BLOCK_NUMBERS.get(vectors.device.type, _BLOCK_NUMBERS_ELSEWHERE) // 2))
    for start in range(0, len(vectors), side):
        rows = slice(start, min(start + side, len(vectors)))
        for first in range(start, len(vectors), 2 * side):
            columns = slice(first, min(first + 2 * side, len(vectors)))
            yield Tile(rows, columns, vectors[rows] @ vectors[columns].T)


class Angles:
    """The spread of cosines, and their distance from the simplex ETF's, tile by tile."""

    def __init__(self, norms: Tensor) -> None:
        self.defined = len(norms) >= 2 and not bool((norms == 0).any())
        self.scale = 1 / norms
        self.count, self.mean, self.squares, self.deviation = 0, 0.0, 0.0, 0.0

    def add(self, tile: Tile) -> None:
        """Merge the pairs of a tile, whose inner products it overwrites."""
        # Shifted by the ETF's cosine, so that at the ETF nothing cancels; merged pairwise as in moments.
        more = tile.count
        if more == 0:
            return
        scale = self.scale
        block = tile.gram.mul_(scale[tile.rows, None]).mul_(scale[tile.columns]).add_(1 / (len(scale) - 1))
        if tile.on_diagonal:
            block.triu_(1)
        self.deviation += float(block.abs().sum())  # several times faster than the norm of order 1
        block_mean = float(block.sum()) / more
        step, total = block_mean - self.mean, self.count + more
        block.sub_(block_mean)
        if tile.on_diagonal:
            block.triu_(1)
        self.squares += float(torch.dot(block.flatten(), block.flatten())) + step**2 * self.count * more / total
        self.mean, self.count = self.mean + step * more / total, total

    @property
    def result(self) -> tuple[float, float]:
        """Standard deviation and mean distance, NaN where they are not defined."""
        if not self.defined:
            return math.nan, math.nan
        return math.sqrt(self.squares / self.count), self.deviation / self.count
