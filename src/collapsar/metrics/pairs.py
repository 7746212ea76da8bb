"""Metrics over pairs of classes, in blocks: O(K²·d) time, O(K·block) memory, no K×K array unless asked for.

Averages over all pairs hide the collapse of a minority: with 100 classes of which two merge, one pair in 4950
changes. So everything here also names the worst pairs and gives every class its worst rival.

With more than two thousand classes in fewer dimensions, means over pairs are good to six digits, and which of two pairs
is worse is told apart to as many; the values of the pairs that are named are computed in double precision.

Sources: Galanti, György & Hutter, "On the role of neural collapse in transfer learning", ICLR 2022 (CDNV);
Papyan, Han & Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training",
PNAS 2020 (equiangularity, Figs 3 and 4).

Example:
    >>> import torch
    >>> from collapsar.metrics import class_moments, cdnv
    >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 6.0], [2.0, 1.0]])
    >>> pairs = cdnv(class_moments(features, torch.tensor([0, 0, 1, 1, 2]), num_classes=3), num_worst=1)
    >>> pairs.worst_pairs.tolist(), pairs.worst_values.tolist()
    ([[0, 2]], [0.5])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from collapsar.metrics.moments import ClassMoments
from collapsar.metrics.tiles import Angles, Tile, tiles

__all__ = [
    "PairwiseCdnv",
    "cdnv",
    "cdnv_and_angles",
    "cdnv_between_clusters",
    "cdnv_matrix",
    "centred_means",
    "equiangularity",
    "etf_distance",
    "noise_floor",
    "within_variances",
]

# Differences of class means below this fraction of the largest class mean are rounding noise, not geometry:
# summing many float64 numbers keeps about 12 digits. Such differences count as exactly zero.
NOISE = 1e-12
# ‖x‖² + ‖y‖² − 2⟨x, y⟩ loses its digits when x ≈ y; below this ratio the difference is taken directly, in double
# precision, so that sums are good to 9 digits, or 6 in single precision.
_CANCELLATION = {torch.float64: 1e-7, torch.float32: 0.05}
# From this many classes on, products and sums over all pairs are in single precision, at half of the price.
_MANY = 2000
_DIRECT_NUMBERS = 1 << 21


@dataclass(frozen=True)
class PairwiseCdnv:
    """Class-distance normalised variances, summarised over pairs of seen classes.

    Attributes:
        mean: Mean over the pairs i < j that have one (uniform over pairs, whatever the class counts); NaN without any.
        worst: Largest CDNV of each class with any other, shape (K,), float64; NaN for classes without one.
        rival: The class with which it is reached, shape (K,), int64; −1 for classes without one.
        worst_pairs: The worst pairs overall, worst first, shape (t, 2), int64, i < j.
        worst_values: Their CDNV, shape (t,), float64.
        undefined: How many pairs are 0/0, two points in one place: they are set aside everywhere else.
    """

    mean: float
    worst: Tensor
    rival: Tensor
    worst_pairs: Tensor
    worst_values: Tensor
    undefined: int


def centred_means(moments: ClassMoments) -> Tensor:
    """Return μ_k − μ_C for the seen classes, shape (S, d), about the mean of class means.

    Rows that are rounding noise (``NOISE`` times the largest ‖μ_k‖) are exactly zero.
    """
    means = moments.class_means[moments.seen]
    centred = means - means.mean(dim=0)
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return torch.where(norms > noise_floor(means), centred, 0.0)


def within_variances(moments: ClassMoments) -> Tensor:
    """Return Var_k = (1/n_k) Σ_i ‖h_ki − μ_k‖², shape (K,); NaN for unseen classes, 0 at collapse."""
    return moments.class_traces / moments.class_counts


def equiangularity(vectors: Tensor) -> tuple[float, float]:
    """Return how far the angles between vectors are from all being equal, and from the simplex ETF's.

    Args:
        vectors: One row per class, shape (S, d), centred as the caller wants.

    Returns:
        (std, deviation) over pairs i < j: the standard deviation of the cosines (Papyan et al. 2020, Fig. 3)
        and the mean of |cos + 1/(S−1)| (their Fig. 4). Both 0 at a simplex ETF. NaN for fewer than two
        vectors or when one is zero.
    """
    angles = Angles(torch.linalg.vector_norm(vectors, dim=1))
    if angles.defined:
        for tile in tiles(vectors):
            angles.add(tile)
    return angles.result


def etf_distance(vectors: Tensor) -> float:
    """Return ‖G/‖G‖_F − C_S/√(S−1)‖_F for the Gram matrix G of the rows: 0 at a simplex ETF, at most 2.

    Zhu et al., "A geometric analysis of neural collapse with unconstrained features", NeurIPS 2021, there of the head.
    C_S = I − J/S has Frobenius norm √(S−1). Under imbalance the ETF is *not* the target of training.

    Args:
        vectors: Shape (S, d), centred as the caller wants.

    Returns:
        NaN for fewer than two vectors or when all are zero.
    """
    size, dim = vectors.shape
    scale = math.sqrt(max(size - 1, 0))
    if size <= dim + 1:
        gram = vectors @ vectors.T
        norm = float(torch.linalg.matrix_norm(gram))
        if size < 2 or norm == 0:
            return math.nan
        target = (torch.eye(size).to(gram) - 1 / size) / scale
        return float(torch.linalg.matrix_norm(gram / norm - target))
    # Expanding the square would cancel near the ETF, but more than d + 1 vectors cannot come near it.
    norm = float(torch.linalg.matrix_norm(vectors.T @ vectors))
    inner = float(vectors.square().sum() - vectors.sum(dim=0).square().sum() / size)
    return math.sqrt(2 - 2 * inner / (norm * scale)) if norm > 0 else math.nan


def cdnv(moments: ClassMoments, num_worst: int = 10) -> PairwiseCdnv:
    """Return the class-distance normalised variance V_ij = (Var_i + Var_j) / (2‖μ_i − μ_j‖²) over all pairs.

    Galanti et al. (2022). 0 at within-class collapse of distinct classes; inf when two means
    coincide and the variances do not vanish. Pairs for which both do (0/0) are set aside and counted.

    Args:
        moments: Class moments.
        num_worst: How many of the worst pairs to name.
    """
    worst = _Worst(_points(moments), num_worst)
    with _full_precision(worst.fast.means):
        for tile in tiles(worst.fast.means):
            worst.add(tile)
    return worst.result(moments)


def cdnv_and_angles(moments: ClassMoments, num_worst: int = 10) -> tuple[PairwiseCdnv, tuple[float, float]]:
    """Return :func:`cdnv`, and :func:`equiangularity` of the centred means: both from one product of all pairs."""
    points = _points(moments)
    worst, fast = _Worst(points, num_worst), points.fast
    norms = torch.linalg.vector_norm(fast.means, dim=1)
    angles = Angles(torch.where(norms > fast.floor, norms, 0.0))
    with _full_precision(fast.means):
        for tile in tiles(fast.means):
            worst.add(tile)
            if angles.defined:
                angles.add(tile)
    return worst.result(moments), angles.result


def cdnv_matrix(
    moments: ClassMoments, classes: Sequence[int] | None = None, others: Sequence[int] | None = None
) -> Tensor:
    """Return the CDNV of each class in ``classes`` with each in ``others``, one row per class.

    Both default to all K classes, which allocates K²: pass blocks of classes when K is large. NaN where a
    class is paired with itself or was not seen.

    Raises:
        ValueError: If a class is not in [0, K).
    """
    for name, wanted in (("classes", classes), ("others", others)):
        outside = [k for k in wanted or () if not 0 <= k < moments.num_classes]
        if outside:
            raise ValueError(f"`{name}` must lie in [0, {moments.num_classes}); got {outside[0]}. Count from 0")
    seen, points = moments.seen, _points(moments)
    position = torch.full((moments.num_classes,), -1, device=seen.device)
    position[seen] = torch.arange(len(seen), device=seen.device)
    rows = position if classes is None else position[torch.as_tensor(classes, device=seen.device)]
    columns = position if others is None else position[torch.as_tensor(others, device=seen.device)]
    out = points.variances.new_full((len(rows), len(columns)), math.nan)
    i, j = (rows >= 0).nonzero().flatten(), (columns >= 0).nonzero().flatten()
    if len(i) and len(j):
        a, b = rows[i], columns[j]
        distances = _squared_distances(points.means[a], points.means[b], points.floor)
        values = (points.variances[a, None] + points.variances[b]) / (2 * distances)
        out[i[:, None], j] = values.masked_fill_(a[:, None] == b, math.nan)
    return out


def cdnv_between_clusters(moments: ClassMoments, clusters: Sequence[int]) -> Tensor:
    """Return the mean CDNV per block of classes, shape (J, J), in the order of the sorted labels.

    Args:
        moments: Class moments.
        clusters: The cluster of each class, length K, for example the classes with equal counts.

    Returns:
        Entry (a, b) is the mean over pairs of a seen class of cluster a with a *different* seen class of b, those that
        are 0/0 left out; NaN where there is no such pair.

    Raises:
        ValueError: If ``clusters`` does not have one entry per class.
    """
    seen = moments.seen
    labels = torch.as_tensor(clusters, device=seen.device)
    if labels.shape != (moments.num_classes,):
        raise ValueError(
            f"`clusters` must hold one label per class, shape ({moments.num_classes},); got "
            f"{tuple(labels.shape)}. Give every class a label, seen or not"
        )
    distinct, member = labels.unique(return_inverse=True)
    J, member = len(distinct), member[seen]
    sums = torch.zeros(J * J, dtype=torch.float64, device=seen.device)
    counts = torch.zeros_like(sums)
    points = _points(moments).fast
    with _full_precision(points.means):
        for tile in tiles(points.means):
            values = points.cdnv(tile)
            pair = values.isnan().logical_not_() & tile.pairs
            cells = (member[tile.rows, None] * J + member[tile.columns])[pair]
            sums.index_add_(0, cells, values[pair].to(sums))
            counts += torch.bincount(cells, minlength=J * J)
    sums, counts = sums.view(J, J), counts.view(J, J)
    # A pair stands once, above the diagonal of classes, in whichever of its two cells that is.
    return (sums + sums.T) / (counts + counts.T)


@dataclass(frozen=True)
class _Points:
    """What distances need: centred means, their squared lengths and variances of seen classes, the length of noise.

    ``exact`` is the means in double precision.
    """

    means: Tensor
    squares: Tensor
    variances: Tensor
    floor: float
    exact: Tensor

    @cached_property
    def fast(self) -> _Points:
        """The same in single precision where there are many classes; the longest mean is 1: squares stay finite.

        Fewer classes than dimensions may be at the simplex ETF, where the spread of the angles is nothing but rounding.
        """
        size, dim = self.means.shape
        longest = float(self.squares.max()) ** 0.5 if size else 0.0
        if size <= max(_MANY, dim + 1) or not longest > 0 or torch.get_float32_matmul_precision() != "highest":
            return self
        exact = self.means / longest
        variances = self.variances / longest**2
        return _Points(
            exact.float(), (self.squares / longest**2).float(), variances.float(), self.floor / longest, exact
        )

    def cdnv(self, tile: Tile) -> Tensor:
        """CDNV of all entries of a tile; NaN where 0/0."""
        rows, columns = self.squares[tile.rows], self.squares[tile.columns]
        distances = torch.add(rows[:, None], columns).sub_(tile.gram, alpha=2)
        if float(distances.min()) < _CANCELLATION[distances.dtype] * float(rows.max() + columns.max()):
            distances = _corrected(distances, self.exact[tile.rows], self.exact[tile.columns], self.floor)
        return torch.add(self.variances[tile.rows, None], self.variances[tile.columns]).div_(distances).mul_(0.5)


class _Worst:
    """The mean and the worst of the CDNV, tile by tile."""

    def __init__(self, points: _Points, num_worst: int) -> None:
        self.points, self.fast, self.num_worst = points, points.fast, num_worst
        self.total, self.undefined = 0.0, 0
        self.worst = torch.full_like(self.fast.variances, -1.0)
        self.rival = torch.full_like(points.variances, -1, dtype=torch.int64)
        self.top_rank, self.top_pairs = self.worst[:0], self.rival.new_zeros(0, 2)

    def add(self, tile: Tile) -> None:
        """Merge the pairs of a tile."""
        rank = self.fast.cdnv(tile)
        total = float(rank.sum())
        if tile.on_diagonal or math.isnan(total):
            undefined = rank.isnan() & tile.pairs
            self.undefined += int(undefined.sum())
            rank.masked_fill_(undefined | ~tile.pairs, -1.0)
            total = float(rank.clamp(min=0.0).sum())
        self.total += total
        highest = self._merge(rank, tile.rows.start, tile.columns.start)
        self._merge(rank.T, tile.columns.start, tile.rows.start)
        full = len(self.top_rank) == self.num_worst
        if highest >= 0 and not (full and (not self.num_worst or highest <= float(self.top_rank[-1]))):
            self._name(rank, tile)

    def _merge(self, rank: Tensor, start: int, other: int) -> float:
        """Take over rivals of the rows of a tile; the highest rank in it."""
        best = rank.amax(dim=1)
        better = (best > self.worst[start : start + len(best)]).nonzero().flatten()
        if len(better):
            self.worst[start + better] = best[better]
            self.rival[start + better] = other + rank[better].argmax(dim=1)
        return float(best.max())

    def _name(self, rank: Tensor, tile: Tile) -> None:
        best, where = rank.flatten().topk(min(self.num_worst, rank.numel()))
        where, best = where[best >= 0], best[best >= 0]
        pairs = torch.stack(
            [tile.rows.start + where // rank.shape[1], tile.columns.start + where % rank.shape[1]], dim=1
        )
        together, order = torch.cat([self.top_rank, best]).sort(descending=True, stable=True)
        self.top_rank = together[: self.num_worst]
        self.top_pairs = torch.cat([self.top_pairs, pairs])[order][: self.num_worst]

    def result(self, moments: ClassMoments) -> PairwiseCdnv:
        """The summary, its worst values from direct differences of the means."""
        seen, count = moments.seen, len(moments.seen) * (len(moments.seen) - 1) // 2 - self.undefined
        all_worst = self.points.variances.new_full((moments.num_classes,), math.nan)
        all_rival = seen.new_full((moments.num_classes,), -1)
        has = (self.rival >= 0).nonzero().flatten()
        if len(has):
            own = torch.stack([has, self.rival[has]], dim=1)
            all_worst[seen[has]], all_rival[seen[has]] = _values_of_pairs(self.points, own), seen[self.rival[has]]
        return PairwiseCdnv(
            mean=self.total / count if count > 0 else math.nan,
            worst=all_worst,
            rival=all_rival,
            worst_pairs=seen[self.top_pairs],
            worst_values=_values_of_pairs(self.points, self.top_pairs),
            undefined=self.undefined,
        )


def _points(moments: ClassMoments) -> _Points:
    means = moments.class_means[moments.seen]
    variances = within_variances(moments)[moments.seen]
    floor = noise_floor(means)
    centred = means - means.mean(dim=0)
    variances = torch.where(variances > floor**2, variances, 0.0)
    return _Points(centred, centred.square().sum(dim=1), variances, floor, centred)


def _full_precision(means: Tensor) -> torch.autocast:
    """Where products of these means are not cast to half precision."""
    return torch.autocast(means.device.type, enabled=False)


def noise_floor(means: Tensor) -> float:
    """Return the length below which differences of these means (rows) are rounding noise; 0 without rows."""
    return NOISE * float(torch.linalg.vector_norm(means, dim=1).max()) if len(means) else 0.0


def _squared_distances(left: Tensor, right: Tensor, floor: float) -> Tensor:
    """Return ‖l − r‖² for all rows, shape (L, R): by a product, directly where that would cancel."""
    scale = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    return _corrected(torch.addmm(scale, left, right.T, alpha=-2), left, right, floor)


def _corrected(distances: Tensor, left: Tensor, right: Tensor, floor: float) -> Tensor:
    """Squared distances in place, those that cancelled anew from the differences; 0 where they are noise."""
    scale = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    i, j = (distances < _CANCELLATION[distances.dtype] * scale).nonzero().unbind(dim=1)
    chunk = max(1, _DIRECT_NUMBERS // max(1, left.shape[1]))
    for some_i, some_j in zip(i.split(chunk), j.split(chunk), strict=True):
        distances[some_i, some_j] = (left[some_i] - right[some_j]).square().sum(dim=1).to(distances)
    return distances.masked_fill_(distances <= floor**2, 0.0)


def _values_of_pairs(points: _Points, pairs: Tensor) -> Tensor:
    """CDNV of the listed pairs of seen classes, from direct differences of the means."""
    i, j = pairs.unbind(dim=1)
    distances = (points.means[i] - points.means[j]).square().sum(dim=1)
    distances.masked_fill_(distances <= points.floor**2, 0.0)
    return (points.variances[i] + points.variances[j]) / (2 * distances)
