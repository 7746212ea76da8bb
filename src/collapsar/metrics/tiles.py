"""Inner products of all pairs of vectors, tile by tile.

A tile is small enough to stay in the cache while several sums are taken over it; no K x K array is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows and columns of a tile: on the CPU as many as stay in the cache, elsewhere fewer and larger products.
_SIDE = {"cpu": 768}
_SIDE_ELSEWHERE = 1448


@dataclass(frozen=True)
class Tile:
    """Inner products of some rows with some later ones; on the diagonal only those above it are pairs.

    ``gram`` and the two arrays of its shape in ``spare``, which may be overwritten, are valid until the next tile.
    """

    rows: slice
    columns: slice
    products: Tensor
    spare: Tensor

    @property
    def on_diagonal(self) -> bool:
        """Whether some entries are not pairs."""
        return self.rows == self.columns

    @property
    def pairs(self) -> Tensor:
        """Mask of the pairs i < j."""
        mask = torch.ones_like(self.products, dtype=torch.bool)
        return mask.triu_(1) if self.on_diagonal else mask


def pieces(vectors: Tensor) -> list[slice]:
    """The rows in pieces, two of which make a tile."""
    side = _SIDE.get(vectors.device.type, _SIDE_ELSEWHERE)
    return [slice(start, min(start + side, len(vectors))) for start in range(0, len(vectors), side)]


def directions(vectors: Tensor, norms: Tensor) -> Tensor:
    """The rows with length 1; 0 stays 0."""
    return vectors / torch.where(norms > 0, norms, 1.0)[:, None]


def tiles(vectors: Tensor, units: Tensor) -> Iterator[Tile]:
    """Each pair of rows once; ``units`` are their directions."""
    parts = pieces(vectors)
    room = vectors.new_empty(2 * parts[0].stop ** 2 if parts else 0)
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            shape = 2, rows.stop - rows.start, columns.stop - columns.start
            products, spare = room[: math.prod(shape)].view(shape)
            yield Tile(rows, columns, torch.mm(vectors[rows], units[columns].T, out=products), spare)
