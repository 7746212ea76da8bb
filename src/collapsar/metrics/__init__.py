"""Measuring collapse: one-pass class moments, neural-collapse metrics, and which classes are merging.

``collapsar.metrics.separation`` and ``collapsar.metrics.evidence`` need numpy and scipy only. Everything else needs
torch and is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from collapsar.metrics.evidence import LostClass, Standings, class_evidence, class_standings, common_origin
from collapsar.metrics.separation import (
    ClassSeparation,
    ClassState,
    class_logits,
    class_separation,
    cluster_contrasts,
    mean_separation,
    relative_norms,
    relative_separation,
)

if TYPE_CHECKING:
    from collapsar.metrics.centers import center_agreement, nearest_centers
    from collapsar.metrics.collapse import (
        NC1,
        equinorm,
        head_sum,
        nc1,
        self_duality,
        trace_ratio,
    )
    from collapsar.metrics.moments import ClassMoments, class_moments
    from collapsar.metrics.pairs import (
        PairwiseCdnv,
        cdnv,
        cdnv_between_clusters,
        cdnv_matrix,
        centred_means,
        equiangularity,
        etf_distance,
        within_variances,
    )
    from collapsar.metrics.report import CollapseReport, collapse_report
    from collapsar.metrics.streaming import NeuralCollapse

__all__ = [
    "NC1",
    "ClassMoments",
    "ClassSeparation",
    "ClassState",
    "CollapseReport",
    "LostClass",
    "NeuralCollapse",
    "PairwiseCdnv",
    "Standings",
    "cdnv",
    "cdnv_between_clusters",
    "cdnv_matrix",
    "center_agreement",
    "centred_means",
    "class_evidence",
    "class_logits",
    "class_moments",
    "class_separation",
    "class_standings",
    "cluster_contrasts",
    "collapse_report",
    "common_origin",
    "equiangularity",
    "equinorm",
    "etf_distance",
    "head_sum",
    "mean_separation",
    "nc1",
    "nearest_centers",
    "relative_norms",
    "relative_separation",
    "self_duality",
    "trace_ratio",
    "within_variances",
]

# Named as text, so that importing this package does not import torch.
_TORCH_MODULES = {
    "centers": "center_agreement nearest_centers",
    "collapse": "NC1 equinorm head_sum nc1 self_duality trace_ratio",
    "moments": "ClassMoments class_moments",
    "pairs": "PairwiseCdnv cdnv cdnv_between_clusters cdnv_matrix centred_means equiangularity etf_distance "
    "within_variances",
    "report": "CollapseReport collapse_report",
    "streaming": "NeuralCollapse",
}
_HOME = {name: module for module, names in _TORCH_MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
