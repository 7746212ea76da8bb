"""Measuring collapse: one-pass class moments, neural-collapse metrics, and which classes are merging.

``collapsar.metrics.separation`` and ``collapsar.metrics.evidence`` need only numpy and scipy. Everything else needs
torch and is imported when first used.
"""

from typing import TYPE_CHECKING

from collapsar._lazy import lazy_names

if TYPE_CHECKING:
    from collapsar.metrics.collapse import nc1
    from collapsar.metrics.moments import ClassMoments, class_moments
    from collapsar.metrics.pairs import cdnv
    from collapsar.metrics.report import CollapseReport, collapse_report
    from collapsar.metrics.separation import class_separation, cluster_contrasts
    from collapsar.metrics.streaming import NeuralCollapse

__all__ = [
    "ClassMoments",
    "CollapseReport",
    "NeuralCollapse",
    "cdnv",
    "class_moments",
    "class_separation",
    "cluster_contrasts",
    "collapse_report",
    "nc1",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "collapsar.metrics.collapse": "nc1",
        "collapsar.metrics.moments": "ClassMoments class_moments",
        "collapsar.metrics.pairs": "cdnv",
        "collapsar.metrics.report": "CollapseReport collapse_report",
        "collapsar.metrics.separation": "class_separation cluster_contrasts",
        "collapsar.metrics.streaming": "NeuralCollapse",
    },
    left={
        "collapsar.core.states": "ClassState",
        "collapsar.metrics.angles": "equiangularity etf_distance",
        "collapsar.metrics.centers": "center_agreement nearest_centers",
        "collapsar.metrics.collapse": "NC1 equinorm head_sum self_duality trace_ratio",
        "collapsar.metrics.evidence": "LostClass Standings class_evidence class_standings common_origin",
        "collapsar.metrics.pairs": "PairwiseCdnv cdnv_between_clusters cdnv_matrix centred_means within_variances",
        "collapsar.metrics.separation": "ClassSeparation class_logits mean_separation relative_norms "
        "relative_separation",
    },
)
