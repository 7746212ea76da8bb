"""Metrics over pairs of classes, in blocks: O(K²·d) time, O(K·block) memory, no K×K array unless asked for.

Averages over all pairs hide the collapse of a minority: with 100 classes of which two merge, one pair in 4950
changes. So everything here also names the worst pairs and gives every class its worst rival.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from collapsar.metrics.moments import ClassMoments

__all__ = [
    "PairwiseCdnv",
    "cdnv",
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
# ‖x‖² + ‖y‖² − 2⟨x, y⟩ loses its digits when x ≈ y; below this ratio the difference is taken directly.
_CANCELLATION = 1e-7
_BLOCK_NUMBERS = 1 << 21


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
    norms = torch.linalg.vector_norm(vectors, dim=1)
    size = len(vectors)
    if size < 2 or bool((norms == 0).any()):
        return math.nan, math.nan
    units = vectors / norms[:, None]
    count, mean, squares, deviation = 0, 0.0, 0.0, 0.0
    for gram, other in _upper_strips(units):
        # Shifted by the ETF's cosine, so that at the ETF nothing cancels; merged pairwise as in moments.
        block = gram.add_(1 / (size - 1)).masked_fill_(other, 0.0)
        more = block.numel() - int(other.sum())
        if more == 0:
            continue
        deviation += float(block.abs().sum())
        block_mean = float(block.sum()) / more
        step, total = block_mean - mean, count + more
        block.sub_(block_mean).masked_fill_(other, 0.0)
        squares += float(torch.linalg.vector_norm(block)) ** 2 + step**2 * count * more / total
        mean, count = mean + step * more / total, total
    return math.sqrt(squares / count), deviation / count


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
    seen, points = moments.seen, _points(moments)
    total, count, undefined = 0.0, len(seen) * (len(seen) - 1) // 2, 0
    worst = points.variances.new_full((len(seen),), -1.0)
    rival = torch.full_like(seen, -1)
    top_rank, top_pairs = worst.new_zeros(0), seen.new_zeros(0, 2)
    for start, values, other in _cdnv_strips(points):
        aside = values.isnan().logical_or_(other)
        undefined += int(aside.sum()) - int(other.sum())
        total += float(values.masked_fill(aside, 0.0).sum())
        rank = values.masked_fill_(aside, -1.0)
        for dim in (1, 0):  # row maxima are the rivals among later classes, column maxima among earlier ones
            best, where = rank.max(dim=dim)
            better = (best > worst[start : start + len(best)]).nonzero().flatten()
            worst[start + better], rival[start + better] = best[better], start + where[better]
        best, where = rank.flatten().topk(min(num_worst, rank.numel()))
        where, best = where[best >= 0], best[best >= 0]
        pairs = torch.stack([start + where // rank.shape[1], start + where % rank.shape[1]], dim=1)
        top_rank, top_pairs = torch.cat([top_rank, best]), torch.cat([top_pairs, pairs])
        top_rank, order = top_rank.sort(descending=True, stable=True)
        top_rank, top_pairs = top_rank[:num_worst], top_pairs[order][:num_worst]
    all_worst = worst.new_full((moments.num_classes,), math.nan)
    all_rival = seen.new_full((moments.num_classes,), -1)
    has = (rival >= 0).nonzero().flatten()
    if len(has):
        own = torch.stack([has, rival[has]], dim=1)
        all_worst[seen[has]], all_rival[seen[has]] = _values_of_pairs(points, own), seen[rival[has]]
    return PairwiseCdnv(
        mean=total / (count - undefined) if count > undefined else math.nan,
        worst=all_worst,
        rival=all_rival,
        worst_pairs=seen[top_pairs],
        worst_values=_values_of_pairs(points, top_pairs),
        undefined=undefined,
    )


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
    for start, values, other in _cdnv_strips(_points(moments)):
        pair = ~other.logical_or_(values.isnan())
        cells = (member[start : start + len(values), None] * J + member[start:])[pair]
        sums.index_add_(0, cells, values[pair])
        counts += torch.bincount(cells, minlength=J * J)
    sums, counts = sums.view(J, J), counts.view(J, J)
    # A pair stands once, above the diagonal of classes, in whichever of its two cells that is.
    return (sums + sums.T) / (counts + counts.T)


@dataclass(frozen=True)
class _Points:
    """What distances need: centred means and variances of seen classes, the length of noise."""

    means: Tensor
    variances: Tensor
    floor: float


def _points(moments: ClassMoments) -> _Points:
    means = moments.class_means[moments.seen]
    variances = within_variances(moments)[moments.seen]
    floor = noise_floor(means)
    return _Points(means - means.mean(dim=0), torch.where(variances > floor**2, variances, 0.0), floor)


def noise_floor(means: Tensor) -> float:
    """Return the length below which differences of these means (rows) are rounding noise; 0 without rows."""
    return NOISE * float(torch.linalg.vector_norm(means, dim=1).max()) if len(means) else 0.0


def _cdnv_strips(points: _Points) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (start, CDNV of classes start.. with start.., mask of all but the pairs i < j): each pair once."""
    for start, stop in _strips(len(points.means)):
        distances = _squared_distances(points.means[start:stop], points.means[start:], points.floor)
        values = points.variances[start:stop, None] + points.variances[start:]
        yield start, values.div_(distances.mul_(2)), _not_above_diagonal(values)


def _squared_distances(left: Tensor, right: Tensor, floor: float) -> Tensor:
    """Return ‖l − r‖² for all rows, shape (L, R): by a product, directly where that would cancel."""
    scale = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    distances = torch.addmm(scale, left, right.T, alpha=-2)
    i, j = (distances < _CANCELLATION * scale).nonzero().unbind(dim=1)
    chunk = max(1, _BLOCK_NUMBERS // max(1, left.shape[1]))
    for some_i, some_j in zip(i.split(chunk), j.split(chunk), strict=True):
        distances[some_i, some_j] = (left[some_i] - right[some_j]).square().sum(dim=1)
    return distances.masked_fill_(distances <= floor**2, 0.0)


def _values_of_pairs(points: _Points, pairs: Tensor) -> Tensor:
    """CDNV of the listed pairs of seen classes, from direct differences of the means."""
    i, j = pairs.unbind(dim=1)
    distances = (points.means[i] - points.means[j]).square().sum(dim=1)
    distances.masked_fill_(distances <= points.floor**2, 0.0)
    return (points.variances[i] + points.variances[j]) / (2 * distances)


def _upper_strips(vectors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inner products of rows start.. with start.., mask of all but the pairs i < j): each pair once."""
    for start, stop in _strips(len(vectors)):
        gram = vectors[start:stop] @ vectors[start:].T
        yield gram, _not_above_diagonal(gram)


def _strips(size: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BLOCK_NUMBERS // max(1, size))
    return ((start, min(start + rows, size)) for start in range(0, size, rows))


def _not_above_diagonal(strip: Tensor) -> Tensor:
    return torch.ones_like(strip, dtype=torch.bool).tril()
