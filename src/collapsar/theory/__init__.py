"""Closed forms and scalar roots of the unconstrained feature model. No solver here: each tests the other."""

from collapsar._lazy import lazy_names
from collapsar.theory.inverse import (
    best_oversampling,
    critical_majority,
    critical_minority,
    critical_ratio,
    edge_of,
    fractional_problem,
    least_oversampling,
)
from collapsar.theory.landscape import landscape
from collapsar.theory.limits import large_sample_margins, seli
from collapsar.theory.normalized import normalized_merge, normalized_two_cluster
from collapsar.theory.thresholds import thresholds
from collapsar.theory.two_cluster import balanced, two_cluster

__all__ = [
    "balanced",
    "best_oversampling",
    "critical_majority",
    "critical_minority",
    "critical_ratio",
    "edge_of",
    "fractional_problem",
    "landscape",
    "large_sample_margins",
    "least_oversampling",
    "normalized_merge",
    "normalized_two_cluster",
    "seli",
    "thresholds",
    "two_cluster",
]

__getattr__, _ = lazy_names(
    __name__,
    {},
    left={
        "collapsar_studies.deep": "DeepState deep_column deep_price deep_within",
        "collapsar_studies.deep_body": "Body body_cost",
        "collapsar.theory.deep_switch": "decay_switch",
        "collapsar.theory.inverse": "Edge largest_head_decay_factor",
        "collapsar.theory.landscape": "Landscape Verdict",
        "collapsar.theory.limits": "Geometry column_cosines etf_cosine seli_two_cluster_grams simplex_etf",
        "collapsar.theory.normalized": "NormalizedTwoCluster",
        "collapsar.core.thresholds": "Thresholds",
        "collapsar.theory.two_cluster": "TwoCluster",
    },
)
