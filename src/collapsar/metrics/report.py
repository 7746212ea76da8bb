"""``CollapseReport``: every metric of class moments and a linear head, in one record.

Example:
    >>> import torch
    >>> from collapsar.metrics import class_moments, collapse_report
    >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-2.0, 1.0], [-2.0, -1.0]])
    >>> moments = class_moments(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
    >>> report = collapse_report(moments, head_weight=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> round(report.cdnv, 12), report.Z.tolist(), report.separation().states
    (0.0625, [[2.0, -2.0], [-2.0, 2.0]], ('separated', 'separated'))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collapsar.core.checks import flat_bias
from collapsar.metrics.collapse import equinorm, head_sum, nc1, self_duality, trace_ratio, variance_traces
from collapsar.metrics.evidence import Standings, class_evidence, class_standings, common_origin
from collapsar.metrics.moments import ClassMoments
from collapsar.metrics.pairs import cdnv_and_angles, cdnv_between_clusters, points_of, within_variances
from collapsar.metrics.predictions import MeanPredictions
from collapsar.metrics.separation import ClassSeparation, class_logits, mean_separation


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """Every metric of one pass, as Python floats and numpy arrays.

    Scalars are NaN where undefined: fewer than two seen classes, no head, pair metrics switched off. Arrays
    over classes have length K, with NaN for unseen classes.

    Attributes:
        nc1_uniform: ``nc1`` with uniform weighting. 0 at collapse.
        nc1_weighted: ``nc1`` with sample weighting. 0 at collapse.
        nc1_rank: Rank of the uniform Σ_B that was inverted; K − 1 while no classes merge.
        nc1_tolerance: The eigenvalue up to which directions of the uniform Σ_B count as lost.
        nc1_trace_ratio: ``trace_ratio``. 0 at collapse.
        within_trace: Tr Σ_W, per sample.
        between_trace: Tr Σ_B, weighted by n_k/N about the sample mean.
        cdnv: Mean over pairs of classes (``pairs.cdnv``). 0 at collapse. Hides a merged minority: see the
            next four, and ``cdnv_between`` for its mean per block of classes.
        cdnv_undefined: Pairs whose CDNV is 0/0, two points in one place; the values above and below leave them out.
        cdnv_worst: Each class's largest CDNV with another, (K,).
        cdnv_rival: The class it is attained with, (K,), int64, −1 for unseen.
        worst_pairs: The worst pairs overall, worst first, (t, 2), int64.
        worst_pair_cdnv: Their CDNV, (t,).
        nc2_equinorm: ``equinorm`` of μ_k − μ_C. 0 at a simplex ETF.
        nc2_equiangular: Standard deviation of their cosines (``angles.equiangularity``). 0 at a simplex ETF.
        nc2_maximal_angle: Mean |cos + 1/(K−1)| (same). 0 at a simplex ETF.
        nc2_etf: ``angles.etf_distance`` of μ_k − μ_C. 0 at a simplex ETF, which under imbalance is not the
            optimum.
        nc3_self_duality: ``self_duality`` over the seen classes. 0 at balanced collapse.
        nc0: ‖Σ_k w_k‖ (``head_sum``). 0 at the optimum.
        nc0_relative: ‖Σ_k w_k‖ / Σ_k ‖w_k‖.
        nc4_agreement: Share of samples on which the head and the nearest of the *given fixed* centres agree
            (``centers.center_agreement``). 1 at collapse. NaN unless centres were given.
        nc4_per_class: The same within each class, (K,); None unless centres were given.
        class_counts: n_k, (K,), int64.
        class_means: μ_k, (K, d); NaN rows for unseen classes.
        within_variances: (1/n_k) Σ_i ‖h_ki − μ_k‖², (K,).
        center_norms: ‖μ_k − μ_C‖, (K,).
        sample_mean: μ_G, (d,).
        mean_of_class_means: μ_C, (d,).
        head_weight: W, (K, d), as it was when the report was made; None without a head.
        b: Head bias, (K,): zeros for a head without bias, None without a head.
    """

    nc1_uniform: float
    nc1_weighted: float
    nc1_rank: int
    nc1_tolerance: float
    nc1_trace_ratio: float
    within_trace: float
    between_trace: float
    cdnv: float
    cdnv_undefined: int
    cdnv_worst: NDArray[np.float64]
    cdnv_rival: NDArray[np.int64]
    worst_pairs: NDArray[np.int64]
    worst_pair_cdnv: NDArray[np.float64]
    nc2_equinorm: float
    nc2_equiangular: float
    nc2_maximal_angle: float
    nc2_etf: float
    nc3_self_duality: float
    nc0: float
    nc0_relative: float
    nc4_agreement: float
    nc4_per_class: NDArray[np.float64] | None
    class_counts: NDArray[np.int64]
    class_means: NDArray[np.float64]
    within_variances: NDArray[np.float64]
    center_norms: NDArray[np.float64]
    sample_mean: NDArray[np.float64]
    mean_of_class_means: NDArray[np.float64]
    head_weight: NDArray[np.float64] | None
    b: NDArray[np.float64] | None

    @property
    def num_classes(self) -> int:
        """K, seen or not."""
        return len(self.class_counts)

    @property
    def num_samples(self) -> int:
        """N."""
        return int(self.class_counts.sum())

    @property
    def unseen_classes(self) -> tuple[int, ...]:
        """The classes without samples."""
        return tuple(np.flatnonzero(self.class_counts == 0).tolist())

    @cached_property
    def Z(self) -> NDArray[np.float64] | None:  # noqa: N802 (the paper's letter)
        """Mean predictions Z̄ = W M̄ᵀ [logit, class], (K, K), bias not included: built when first used.

        NaN columns for unseen classes; None without a head.
        """
        return None if self.head_weight is None else class_logits(self.class_means, self.head_weight)

    @cached_property
    def evidence(self) -> NDArray[np.float64] | None:
        """Z without what all classes share, (K, K): ``class_evidence``; None without a head."""
        if self.head_weight is None:
            return None
        return class_evidence(self.class_means, self.head_weight, self.class_counts)

    def standings(self, **thresholds: float) -> Standings:
        """Say which classes are lost, another class scoring higher on average: ``class_standings``.

        Raises:
            ValueError: If there is no head.
        """
        found = self.separation(**thresholds)
        assert self.head_weight is not None
        assert self.b is not None
        return class_standings(found, MeanPredictions(self.head_weight, self.class_means), bias=self.b)

    def separation(self, **thresholds: float) -> ClassSeparation:
        """Say which classes have merged or vanished: ``class_separation`` of ``evidence``, with its thresholds.

        An offset of all features that the bias cancels does not change it.

        Raises:
            ValueError: If there is no head.
        """
        if self.head_weight is None:
            raise ValueError("`separation` needs mean predictions; got a report without a head. Pass head=model.fc")
        origin = common_origin(self.class_means, self.class_counts)
        return mean_separation(self.class_means - origin, self.head_weight, **thresholds)

    def cdnv_between(self, clusters: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Return the mean CDNV per block of classes, shape (J, J): ``pairs.cdnv_between_clusters``.

        Args:
            clusters: The cluster of each class, length K; None groups classes with equal counts, in ascending order.

        Raises:
            ValueError: If ``clusters`` does not have one entry per class.
        """
        counts, d = torch.from_numpy(self.class_counts), self.class_means.shape[1]
        moments = ClassMoments(
            class_counts=counts,
            class_means=torch.from_numpy(np.nan_to_num(self.class_means)),
            within_scatter=torch.full((1, 1), math.nan, dtype=torch.float64).expand(d, d),
            class_traces=torch.from_numpy(np.nan_to_num(self.within_variances)) * counts,
        )
        return _numpy(cdnv_between_clusters(moments, self.class_counts.tolist() if clusters is None else clusters))

    def scalars(self) -> dict[str, float]:
        """Return every scalar by name, as floats for a logger; undefined ones are NaN.

        Includes ``cdnv_max``, the CDNV of the worst pair, and ``num_unseen``.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        out = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        out["cdnv_max"] = float(self.worst_pair_cdnv[0]) if len(self.worst_pair_cdnv) else math.nan
        out["num_unseen"] = float(len(self.unseen_classes))
        return out


@torch.no_grad()
def collapse_report(
    moments: ClassMoments,
    head_weight: Any = None,
    head_bias: Any = None,
    *,
    agreements: Tensor | None = None,
    num_worst: int = 10,
    pairwise: bool = True,
) -> CollapseReport:
    """Evaluate every metric on class moments and, if given, a linear head.

    Args:
        moments: Class moments.
        head_weight: W, shape (K, d), tensor or array; None without a head.
        head_bias: b, shape (K,); None for a head without bias.
        agreements: Counts of ``center_agreement`` over the same samples, shape (K,); None leaves NC4 undefined.
        num_worst: How many of the worst pairs of classes to name.
        pairwise: False leaves out the work of O(K²·d): CDNV, angles and distance to the ETF are NaN.

    Raises:
        ValueError: If the head does not fit the moments or is not finite.
    """
    weight, bias = _checked_head(moments, head_weight, head_bias)
    seen, counts, uniform = moments.seen, moments.class_counts, nc1(moments, "uniform")
    within, between = variance_traces(moments)
    means = _numpy(moments.class_means)
    means[_numpy(counts) == 0] = math.nan
    points = points_of(moments)
    centred = points.means
    worst, angles = cdnv_and_angles(points if pairwise else points.none, num_worst)
    std, deviation = angles.equiangularity
    nc0, nc0_relative = (math.nan, math.nan) if weight is None else head_sum(weight)
    norms = centred.new_full((len(counts),), math.nan).index_copy_(0, seen, points.norms)
    return CollapseReport(
        nc1_uniform=uniform.value,
        nc1_weighted=nc1(moments, "weighted").value,
        nc1_rank=uniform.rank,
        nc1_tolerance=uniform.tolerance,
        nc1_trace_ratio=trace_ratio(moments),
        within_trace=within,
        between_trace=between,
        cdnv=worst.mean,
        cdnv_undefined=worst.undefined,
        cdnv_worst=_numpy(worst.worst),
        cdnv_rival=_numpy(worst.rival),
        worst_pairs=_numpy(worst.worst_pairs),
        worst_pair_cdnv=_numpy(worst.worst_values),
        nc2_equinorm=equinorm(centred) if len(seen) > 1 else math.nan,
        nc2_equiangular=std,
        nc2_maximal_angle=deviation,
        nc2_etf=angles.etf_distance,
        nc3_self_duality=math.nan if weight is None else self_duality(weight[seen], centred),
        nc0=nc0,
        nc0_relative=nc0_relative,
        nc4_agreement=math.nan if agreements is None else float(agreements.sum().double() / counts.sum()),
        nc4_per_class=None if agreements is None else _numpy(agreements.double() / counts),
        class_counts=_numpy(counts),
        class_means=means,
        within_variances=_numpy(within_variances(moments)),
        center_norms=_numpy(norms),
        sample_mean=_numpy(moments.sample_mean),
        mean_of_class_means=_numpy(moments.mean_of_class_means),
        head_weight=None if weight is None else _numpy(weight),
        b=None if bias is None else _numpy(bias),
    )


def _checked_head(moments: ClassMoments, weight: Any, bias: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return the head as float64 tensors on the device of the moments; zeros for a missing bias."""
    if weight is None:
        if bias is not None:
            raise ValueError("`head_bias` needs a `head_weight`; got None. Pass both, or head=model.fc")
        return None, None
    shape = (moments.num_classes, moments.num_features)
    W = torch.as_tensor(weight).detach().to(moments.class_means)
    b = W.new_zeros(len(W)) if bias is None else flat_bias(torch.as_tensor(bias).detach().to(moments.class_means))
    if W.shape != shape or b.shape != shape[:1]:
        raise ValueError(
            f"`head_weight` must be (K, d) = {shape} and `head_bias` (K,); got {tuple(W.shape)} and "
            f"{tuple(b.shape)}. Pass the features that the head receives"
        )
    if not bool(torch.isfinite(W).all() & torch.isfinite(b).all()):
        raise ValueError("`head_weight` and `head_bias` must be finite; got NaN or infinity. Look for a diverged run")
    return W, b


def _numpy(values: Tensor) -> NDArray[Any]:
    """A copy that does not share memory with the running state."""
    return values.detach().cpu().numpy().copy()
