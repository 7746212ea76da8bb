"""Angles between vectors, one per class, compared with those of the simplex ETF.

Up to d + 1 vectors may be an ETF, where everything here is 0 up to rounding: their Gram matrix is examined entry by
entry. More cannot come near it, and sums of squares over all their pairs follow from d x d products.

Sources: Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training",
PNAS 2020 (equiangularity, Figs 3 and 4); Zhu et al., "A geometric analysis of neural collapse with unconstrained
features", NeurIPS 2021 (distance to the ETF, there of the head).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from collapsar.metrics.tiles import Tile, directions, tiles


class Angles:
    """Angles of the rows of ``vectors``; what has no shortcut for more than d + 1 of them is summed tile by tile."""

    def __init__(self, vectors: Tensor) -> None:
        vectors = vectors.detach()
        self.vectors, self.norms = vectors, torch.linalg.vector_norm(vectors, dim=1)
        self.defined = len(vectors) >= 2 and bool(self.norms.all())
        self.gram = vectors @ vectors.T if len(vectors) <= vectors.shape[1] + 1 else None
        self.by_tiles = self.defined and self.gram is None
        self.lowest, self.inverse = (-self.norms / (len(vectors) - 1))[:, None], 1 / self.norms
        self.total = 0.0

    def add(self, tile: Tile) -> None:
        """Merge max(cos, −1/(S−1)) of the pairs of a tile, in its spare array."""
        values = torch.maximum(tile.products, self.lowest[tile.rows], out=tile.spare)
        if tile.on_diagonal:
            values.triu_(1)
        self.total += float(self.inverse[tile.rows] @ values.sum(dim=1))

    @property
    def equiangularity(self) -> tuple[float, float]:
        """See the function; every tile must have been added."""
        size = len(self.vectors)
        if not self.defined:
            return math.nan, math.nan
        count, share = size * (size - 1), 1 / (size - 1)
        if self.gram is None:
            mean, std = _moments(directions(self.vectors, self.norms))
            return std, 4 * self.total / count + share - mean  # |c + e| = 2 max(c, −e) + e − c
        # Shifted by the ETF's cosine, so that at the ETF nothing cancels.
        shifted = (self.gram / self.norms[:, None] / self.norms + share).fill_diagonal_(0.0)
        deviation, mean = float(shifted.abs().sum()) / count, float(shifted.sum()) / count
        return float(torch.linalg.matrix_norm(shifted.sub_(mean).fill_diagonal_(0.0))) / math.sqrt(count), deviation

    @property
    def etf_distance(self) -> float:
        """See the function."""
        size, vectors = len(self.vectors), self.vectors
        scale = math.sqrt(max(size - 1, 0))
        if self.gram is not None:
            norm = float(torch.linalg.matrix_norm(self.gram))
            if size < 2 or norm == 0:
                return math.nan
            target = (torch.eye(size).to(self.gram) - 1 / size) / scale
            return float(torch.linalg.matrix_norm(self.gram / norm - target))
        # Expanding the square would cancel near the ETF.
        norm = float(torch.linalg.matrix_norm(_products(vectors)))
        inner = float(vectors.square().sum() - vectors.sum(dim=0).square().sum() / size)
        return math.sqrt(2 - 2 * inner / (norm * scale)) if norm > 0 else math.nan


def equiangularity(vectors: Tensor) -> tuple[float, float]:
    """Return how far the angles between vectors are from all being equal, and from the simplex ETF's.

    Args:
        vectors: One row per class, shape (S, d), already centred if desired.

    Returns:
        (std, deviation) over pairs i < j: the standard deviation of the cosines (Papyan et al. 2020, Fig. 3)
        and the mean of |cos + 1/(S−1)| (their Fig. 4). Both are 0 at a simplex ETF, and NaN for fewer than two
        vectors or when one is zero.
    """
    angles = Angles(vectors)
    if angles.by_tiles:
        for tile in tiles(angles.vectors, directions(angles.vectors, angles.norms)):
            angles.add(tile)
    return angles.equiangularity


def etf_distance(vectors: Tensor) -> float:
    """Return ‖G/‖G‖_F − C_S/√(S−1)‖_F for the Gram matrix G of the rows: 0 at a simplex ETF, at most 2.

    C_S = I − J/S has Frobenius norm √(S−1). Under imbalance the ETF is *not* the target of training.

    Args:
        vectors: Shape (S, d), already centred if desired.

    Returns:
        NaN for fewer than two vectors or when all are zero.
    """
    return Angles(vectors).etf_distance


def _moments(units: Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation of the cosines of more than d + 1 directions, from d x d products.

    With u_i = m + a_i and Σ a_i = 0 the sum over all i, j of (⟨u_i, u_j⟩ − |m|²)² is 2S mᵀCm + ‖C‖²_F, C = Σ a_i a_iᵀ;
    the terms i = j of it are (1 − |m|²)² = (tr C / S)² each, so that the mean over i ≠ j is |m|² − tr C / (S(S−1)).
    """
    size, mean = len(units), units.mean(dim=0)
    C, m = _products(units - mean), mean.double()
    own = float(C.trace()) / size
    total = float(2 * size * (m @ C @ m) + C.square().sum()) - size * own**2
    shift = own / (size - 1)
    return float(m @ m) - shift, math.sqrt(max(total / (size * (size - 1)) - shift**2, 0.0))


def _products(rows: Tensor) -> Tensor:
    """Return XᵀX of the rows X, summed in double precision over pieces short enough for single precision."""
    pieces = rows.split(2048)
    return sum(((piece.T @ piece).double() for piece in pieces[1:]), (pieces[0].T @ pieces[0]).double())
