"""Metrics over pairs of classes, in blocks: O(K²·d) time, O(K·block) memory, no K×K array unless asked for.

Averages over all pairs hide the collapse of a minority: with 100 classes of which two merge, one pair in 4950
changes. So everything here also names the worst pairs and gives every class its worst rival.

With more than two thousand classes, and twice as many as dimensions, means over pairs are accurate to six digits, and
so is the ranking of pairs; the values of the pairs that are named are computed in double precision.

Sources: Galanti, György & Hutter, "On the role of neural collapse in transfer learning", ICLR 2022.

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

from collapsar.metrics.angles import Angles
from collapsar.metrics.moments import ClassMoments
from collapsar.metrics.tiles import Tile, directions, tiles

# Differences of class means below this fraction of the largest class mean are rounding noise, not geometry:
# summing many float64 numbers keeps about 12 digits. Such differences count as exactly zero.
NOISE = 1e-12
# ‖x‖² + ‖y‖² − 2⟨x, y⟩ loses its digits when x ≈ y; below this ratio the difference is taken directly, in double
# precision, so that sums are good to 9 digits, or 6 in single precision.
_CANCELLATION = {torch.float64: 1e-7, torch.float32: 0.05}
# From this many classes on, products and sums over all pairs are in single precision, at half the cost.
_MANY = 2000
_DIRECT_NUMBERS = 1 << 18


@dataclass(frozen=True)
class PairwiseCdnv:
    """Class-distance normalised variances, summarised over pairs of seen classes.

    Attributes:
        mean: Mean over the pairs i < j that have one (uniform over pairs, whatever the class counts); NaN if none has.
        worst: Largest CDNV of each class with any other, shape (K,), float64; NaN for classes without one.
        rival: The class with which it is attained, shape (K,), int64; −1 for classes without one.
        worst_pairs: The worst pairs overall, worst first, shape (t, 2), int64, i < j.
        worst_values: Their CDNV, shape (t,), float64.
        undefined: How many pairs are 0/0, two points in one place; everything else leaves them out.
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
    means = moments.seen_means
    centred = means - means.mean(dim=0)
    noise = torch.linalg.vector_norm(centred, dim=1) <= noise_floor(means)
    return centred.masked_fill_(noise[:, None], 0.0)


def within_variances(moments: ClassMoments) -> Tensor:
    """Return Var_k = (1/n_k) Σ_i ‖h_ki − μ_k‖², shape (K,); NaN for unseen classes, 0 at collapse."""
    return moments.class_traces / moments.class_counts


def cdnv(moments: ClassMoments, num_worst: int = 10) -> PairwiseCdnv:
    """Return the class-distance normalised variance V_ij = (Var_i + Var_j) / (2‖μ_i − μ_j‖²) over all pairs.

    Galanti et al. (2022). 0 at within-class collapse of distinct classes; inf when two means coincide but the
    variances do not vanish. Pairs for which the variances vanish too (0/0) are left out and counted.

    Args:
        moments: Class moments.
        num_worst: How many of the worst pairs to name.
    """
    return _cdnv(points_of(moments), num_worst)


def cdnv_and_angles(points: Points, num_worst: int = 10) -> tuple[PairwiseCdnv, Angles]:
    """Return :func:`cdnv`, and the angles of the centred means: both from one product of all pairs."""
    with _full_precision(points.means):
        angles = Angles(points.fast.means)
        return _cdnv(points, num_worst, angles), angles


def _cdnv(points: Points, num_worst: int, angles: Angles | None = None) -> PairwiseCdnv:
    worst = _Worst(points, num_worst)
    with _full_precision(points.means):
        for tile in tiles(points.fast.means, points.fast.units):
            if angles and angles.by_tiles:
                angles.add(tile)
            worst.add(tile)
        return worst.result()


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
    seen, points = moments.seen, points_of(moments)
    position = torch.full((moments.num_classes,), -1, device=seen.device)
    position[seen] = torch.arange(len(seen), device=seen.device)
    rows = position if classes is None else position[torch.as_tensor(classes, device=seen.device)]
    columns = position if others is None else position[torch.as_tensor(others, device=seen.device)]
    out = points.halves.new_full((len(rows), len(columns)), math.nan)
    i, j = (rows >= 0).nonzero().flatten(), (columns >= 0).nonzero().flatten()
    if len(i) and len(j):
        a, b = torch.cartesian_prod(rows[i], columns[j]).unbind(dim=1)
        values = points.cdnv_of(a, b).masked_fill_(a == b, math.nan)
        out[i[:, None], j] = values.view(len(i), len(j))
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
    points = points_of(moments).fast
    with _full_precision(points.means):
        for tile in tiles(points.means, points.units):
            values = points.cdnv(tile.rows, tile.columns, tile.products, tile.spare)
            pair = values.isnan().logical_not_() & tile.pairs
            cells = (member[tile.rows, None] * J + member[tile.columns])[pair]
            sums.index_add_(0, cells, values[pair].to(sums))
            counts += torch.bincount(cells, minlength=J * J)
    sums, counts = sums.view(J, J), counts.view(J, J)
    # Each pair counts once, above the diagonal of classes, in whichever of its two cells that is.
    return (sums + sums.T) / (counts + counts.T)


@dataclass(frozen=True)
class Points:
    """What distances need from the seen classes: centred means, their lengths, half of their variances.

    ``classes`` has their numbers and how many classes there are; differences up to ``floor`` are noise; ``exact`` is
    the means in double precision.
    """

    classes: Tensor
    num_classes: int
    means: Tensor
    norms: Tensor
    halves: Tensor
    floor: float
    exact: Tensor

    @property
    def none(self) -> Points:
        """None of the classes: over no pairs everything is undefined."""
        parts = (self.means[:0], self.norms[:0], self.halves[:0])
        return Points(self.classes[:0], self.num_classes, *parts, self.floor, self.exact[:0])

    @cached_property
    def fast(self) -> Points:
        """The same in single precision if there are many classes; the longest mean is 1, so that squares stay finite.

        Fewer classes than dimensions may be at the simplex ETF, where the spread of the angles is mere rounding.
        """
        size, dim = self.means.shape
        longest = float(self.norms.max()) if size else 0.0
        if size <= max(_MANY, 2 * dim) or not longest > 0 or torch.get_float32_matmul_precision() != "highest":
            return self
        exact = self.means / longest
        norms, halves = (self.norms / longest).float(), (self.halves / longest**2).float()
        return Points(self.classes, self.num_classes, exact.float(), norms, halves, self.floor / longest, exact)

    @cached_property
    def units(self) -> Tensor:
        """The directions of the means."""
        return directions(self.means, self.norms)

    @cached_property
    def squares(self) -> Tensor:
        """Their squared lengths."""
        return self.norms.square()

    def cdnv(self, rows: slice | Tensor, columns: slice, products: Tensor, spare: Tensor) -> Tensor:
        """CDNV of some rows with some columns, NaN where 0/0, from products with their directions, in place."""
        left, right = self.squares[rows], self.squares[columns]
        distances = torch.add(left[:, None], right, out=spare).addcmul_(products, self.norms[columns], value=-2)
        if float(distances.amin()) < _CANCELLATION[distances.dtype] * float(left.amax() + right.amax()):
            _corrected(distances, self.exact[rows], self.exact[columns], self.floor)
        return torch.add(self.halves[rows, None], self.halves[columns], out=products).div_(distances)

    def cdnv_of(self, i: Tensor, j: Tensor) -> Tensor:
        """CDNV of listed pairs, from direct differences of the means."""
        chunk = max(1, _DIRECT_NUMBERS // max(1, self.means.shape[1]))
        chunks = zip(i.split(chunk), j.split(chunk), strict=True)
        distances = torch.cat([(self.exact[a] - self.exact[b]).square_().sum(dim=1) for a, b in chunks])
        return (self.halves[i] + self.halves[j]) / distances.masked_fill_(distances <= self.floor**2, 0.0)


class _Worst:
    """The mean and the worst of the CDNV, tile by tile."""

    def __init__(self, points: Points, num_worst: int) -> None:
        self.points, self.fast, self.num_worst = points, points.fast, num_worst
        self.total, self.undefined = 0.0, 0
        # The largest value of every class so far, and the other class.
        self.worst = torch.full_like(self.fast.halves, -1.0)
        self.rival = torch.full_like(points.classes, -1)
        self.top_rank, self.top_pairs = self.worst[:0], points.classes.new_zeros(0, 2)
        self.bar = -1.0 if num_worst else math.inf  # what a pair must exceed to be named

    def add(self, tile: Tile) -> None:
        """Merge the pairs of a tile."""
        if tile.on_diagonal:
            tile.products.fill_diagonal_(-math.inf)  # a class counts as far from itself
        rank = self.fast.cdnv(tile.rows, tile.columns, tile.products, tile.spare)
        total = float(rank.sum())
        if tile.on_diagonal or math.isnan(total):
            undefined = rank.isnan() & tile.pairs
            self.undefined += int(undefined.sum())
            rank.masked_fill_(undefined | ~tile.pairs, -1.0)
            total = float(rank.clamp(min=0.0).sum())
        self.total += total
        best = rank.amax(dim=1)
        self._merge(best, rank, tile.rows, tile.columns)
        self._merge(rank.amax(dim=0), rank.T, tile.columns, tile.rows)
        if float(best.amax()) > self.bar:
            self._name(rank, best, tile)

    def _merge(self, best: Tensor, rank: Tensor, rows: slice, others: slice) -> None:
        better = (best > self.worst[rows]).nonzero().flatten()  # ever fewer: only these are updated
        self.worst[rows][better] = best[better]
        self.rival[rows][better] = others.start + rank[better].argmax(dim=1)

    def _name(self, rank: Tensor, best: Tensor, tile: Tile) -> None:
        rows = best.topk(min(self.num_worst, len(best))).indices.sort().values  # the worst pairs are in these
        values, where = rank[rows].flatten().topk(min(self.num_worst, len(rows) * rank.shape[1]))
        where, values = where[values >= 0], values[values >= 0]
        i, j = rows[where // rank.shape[1]], where % rank.shape[1]
        together, order = torch.cat([self.top_rank, values]).sort(descending=True, stable=True)
        pairs = torch.stack([tile.rows.start + i, tile.columns.start + j], dim=1)
        self.top_rank = together[: self.num_worst]
        self.top_pairs = torch.cat([self.top_pairs, pairs])[order][: self.num_worst]
        if len(self.top_rank) == self.num_worst:
            self.bar = float(self.top_rank[-1])

    def result(self) -> PairwiseCdnv:
        """The summary, its worst values from direct differences of the means."""
        classes, points, rivals = self.points.classes, self.points, self.rival
        count = len(classes) * (len(classes) - 1) // 2 - self.undefined
        worst = points.halves.new_full((points.num_classes,), math.nan)
        rival = classes.new_full((points.num_classes,), -1)
        has = (rivals >= 0).nonzero().flatten()
        worst[classes[has]], rival[classes[has]] = points.cdnv_of(has, rivals[has]), classes[rivals[has]]
        return PairwiseCdnv(
            mean=self.total / count if count > 0 else math.nan,
            worst=worst,
            rival=rival,
            worst_pairs=classes[self.top_pairs],
            worst_values=points.cdnv_of(*self.top_pairs.unbind(dim=1)),
            undefined=self.undefined,
        )


def points_of(moments: ClassMoments) -> Points:
    """Means of the seen classes about the mean of class means; variances that are rounding noise are 0."""
    means, floor = centred_means(moments), noise_floor(moments.seen_means)
    variances = within_variances(moments)[moments.seen]
    halves = torch.where(variances > floor**2, variances, 0.0) / 2
    norms = torch.linalg.vector_norm(means, dim=1)
    return Points(moments.seen, moments.num_classes, means, norms, halves, floor, means)


def _full_precision(means: Tensor) -> torch.autocast:
    """A context in which products of these means are not cast to half precision."""
    return torch.autocast(means.device.type, enabled=False)


def noise_floor(means: Tensor) -> float:
    """Return the length below which differences of these means (rows) are rounding noise; 0 without rows."""
    return NOISE * float(torch.linalg.vector_norm(means, dim=1).max()) if len(means) else 0.0


def _corrected(distances: Tensor, left: Tensor, right: Tensor, floor: float) -> Tensor:
    """Squared distances in place, those that cancelled recomputed from differences; 0 where they are noise."""
    scale = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    i, j = (distances < _CANCELLATION[distances.dtype] * scale).nonzero().unbind(dim=1)
    chunk = max(1, _DIRECT_NUMBERS // max(1, left.shape[1]))
    for some_i, some_j in zip(i.split(chunk), j.split(chunk), strict=True):
        distances[some_i, some_j] = (left[some_i] - right[some_j]).square().sum(dim=1).to(distances)
    return distances.masked_fill_(distances <= floor**2, 0.0)
