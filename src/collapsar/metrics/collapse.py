"""Neural-collapse metrics: pure functions of class moments and a linear head.

"NC1" means different numbers in different papers, and so does "the mean" under imbalance: each function says
which one it is, where it comes from, how classes are weighted, and its value at collapse. Notation: K
classes, n_k samples in class k, N in all; μ_k class means, μ_G = Σ n_k μ_k / N the *sample mean*,
μ_C = (1/K) Σ μ_k the *mean of class means*; Σ_W = (1/N) Σ_k Σ_i (h_ki − μ_k)(h_ki − μ_k)ᵀ. Classes without
samples take no part: K counts the seen ones. Undefined values are NaN, never a silent 0.

Sources: Papyan, Han & Donoho, PNAS 2020 (NC1–NC4); Hong & Ling, JMLR 25(192), 2024, (4.1).

Example:
    >>> import torch
    >>> from collapsar.metrics import class_moments
    >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-2.0, 1.0], [-2.0, -1.0]])
    >>> moments = class_moments(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
    >>> round(nc1(moments).value, 12), nc1(moments).rank, round(trace_ratio(moments), 12)
    (0.0625, 1, 0.25)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from collapsar.metrics.moments import ClassMoments
from collapsar.metrics.pairs import noise_floor

Weighting = Literal["uniform", "weighted"]


@dataclass(frozen=True)
class NC1:
    """NC1, with the rank and tolerance it depends on.

    Attributes:
        value: Tr(Σ_W Σ_B⁺)/K.
        rank: How many eigenvalues of Σ_B were inverted; K − 1 while all class means are in general position.
        tolerance: Eigenvalues of Σ_B up to this count as zero (in squared feature units).
    """

    value: float
    rank: int
    tolerance: float


def nc1(moments: ClassMoments, weighting: Weighting = "uniform", rtol: float | None = None) -> NC1:
    """Return within-class variability relative to between-class variability, Tr(Σ_W Σ_B⁺)/K: 0 at collapse.

    * ``"uniform"``: Σ_B = (1/K) Σ_k (μ_k − μ_G)(μ_k − μ_G)ᵀ, each class once, about the *sample* mean: Hong &
      Ling (2024), (4.1); equal to Papyan et al. (2020) for balanced classes.
    * ``"weighted"``: n_k/N in place of 1/K, so that Σ_W + Σ_B is the total covariance, as published code often
      computes it. Under imbalance the two differ, easily by a factor of several.

    When classes merge, Σ_B loses rank and the pseudo-inverse depends on the tolerance: rank and tolerance are part of
    the result. The smaller of the K×K Gram matrix and the d×d covariance is decomposed; the value is the same.

    Args:
        moments: Class moments.
        weighting: See above.
        rtol: Eigenvalues of Σ_B up to rtol times the largest count as zero; default max(K, d) · 2.2e-16.

    Returns:
        Value NaN if Σ_B vanishes to rounding (complete collapse, or a single class), where the ratio has no
        meaning.

    Raises:
        ValueError: If ``weighting`` is unknown or ``rtol`` is not in [0, 1).
    """
    if weighting not in ("uniform", "weighted"):
        raise ValueError(f'`weighting` must be "uniform" or "weighted"; got {weighting!r}')
    means, counts = moments.seen_means, moments.class_counts[moments.seen].double()
    size, dim = means.shape
    rtol = max(size, dim) * torch.finfo(torch.float64).eps if rtol is None else rtol
    if not 0 <= rtol < 1:
        raise ValueError(f"`rtol` must lie in [0, 1); got {rtol}. Pass None for the default")
    if size == 0:
        return NC1(math.nan, 0, math.nan)
    shares = counts / counts.sum() if weighting == "weighted" else torch.full_like(counts, 1 / size)
    rows = (means - moments.sample_mean) * shares.sqrt()[:, None]
    if size <= dim:
        eigenvalues, left = torch.linalg.eigh(rows @ rows.T)
    else:
        eigenvalues, left = torch.linalg.eigh(rows.T @ rows)
    tolerance = max(rtol * float(eigenvalues[-1]), noise_floor(means) ** 2)
    kept = eigenvalues > tolerance
    rank = int(kept.sum())
    if rank == 0:
        return NC1(math.nan, 0, tolerance)
    values, vectors = eigenvalues[kept], left[:, kept]
    if size <= dim:
        vectors = rows.T @ vectors / values.sqrt()
    within = (vectors * (moments.within_scatter @ vectors)).sum(dim=0) / counts.sum()
    return NC1(float((within / values).sum()) / size, rank, tolerance)


def variance_traces(moments: ClassMoments) -> tuple[float, float]:
    """Return (Tr Σ_W, Tr Σ_B), the second weighted by n_k/N about the sample mean.

    They add up to the total variance. Differences between means that are rounding noise count as zero.
    """
    means, counts = moments.seen_means, moments.class_counts[moments.seen].double()
    lengths = torch.linalg.vector_norm(means - moments.sample_mean, dim=1)
    lengths = torch.where(lengths > noise_floor(means), lengths, 0.0)
    within = moments.class_traces.sum() / counts.sum()
    return float(within), float(counts @ lengths.square() / counts.sum())


def trace_ratio(moments: ClassMoments) -> float:
    """Return Tr Σ_W / Tr Σ_B with Σ_B weighted by n_k/N about the sample mean: 0 at collapse.

    Tirer, Huang & Niles-Weed, "Perturbation analysis of neural collapse", ICML 2023, where classes are balanced. The
    two traces add up to the total variance. inf when all class means coincide, NaN when the total
    variance is 0. Large classes dominate both traces: a merged minority is hardly visible.
    """
    within, between = variance_traces(moments)
    if between == 0:
        return math.inf if within > 0 else math.nan
    return within / between


def equinorm(vectors: Tensor) -> float:
    """Return std/mean of the row norms, each row once, population std: 0 when all are equally long.

    For the centred class means μ_k − μ_C this is NC2 (equal norms), Papyan et al. (2020), Fig. 2; under
    imbalance the optimum has unequal norms. NaN without rows or when all are zero.

    Args:
        vectors: One row per class, shape (S, d), already centred if desired.
    """
    norms = torch.linalg.vector_norm(vectors, dim=1)
    return float(norms.std(correction=0) / norms.mean()) if len(norms) else math.nan


def self_duality(weight: Tensor, vectors: Tensor) -> float:
    """Return ‖W/‖W‖_F − M/‖M‖_F‖_F for the head W and the centred class means M.

    0 at collapse of balanced classes, at most 2.

    NC3, Papyan et al. (2020), Fig. 5, with M centred by the *mean of class means*, so that its rows sum to
    zero like those of an optimal head.

    Args:
        weight: Head weight, shape (S, d).
        vectors: μ_k − μ_C, shape (S, d).

    Returns:
        NaN if either is zero.
    """
    left, right = torch.linalg.matrix_norm(weight), torch.linalg.matrix_norm(vectors)
    return float(torch.linalg.matrix_norm(weight / left - vectors / right))


def head_sum(weight: Tensor) -> tuple[float, float]:
    """Return NC0: (‖Σ_k w_k‖, the same divided by Σ_k ‖w_k‖).

    0 at every optimum, balanced or not; the second is at most 1.

    The columns of the optimal Z sum to zero over the logits (Hong & Ling 2024, Thm 2), so the rows of the optimal head
    do too, unless logits have scales of their own. The relative value is NaN for a zero head.

    Args:
        weight: Head weight, shape (K, d), all classes, seen or not.
    """
    total = torch.linalg.vector_norm(weight.sum(dim=0))
    return float(total), float(total / torch.linalg.vector_norm(weight, dim=1).sum())
