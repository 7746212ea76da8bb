"""Closed forms and scalar roots of the unconstrained feature model. No solver here: each tests the other."""

from collapsar.theory.deep import DeepState, deep_column, deep_price, deep_within
from collapsar.theory.deep_body import Body, body_cost
from collapsar.theory.deep_switch import decay_switch
from collapsar.theory.inverse import (
    Edge,
    best_oversampling,
    critical_majority,
    critical_minority,
    critical_ratio,
    edge_of,
    fractional_problem,
    largest_head_decay_factor,
    least_oversampling,
)
from collapsar.theory.landscape import Landscape, Verdict, landscape
from collapsar.theory.limits import (
    Geometry,
    column_cosines,
    etf_cosine,
    large_sample_margins,
    seli,
    seli_two_cluster_grams,
    simplex_etf,
)
from collapsar.theory.normalized import NormalizedTwoCluster, normalized_merge, normalized_two_cluster
from collapsar.theory.thresholds import Thresholds, thresholds
from collapsar.theory.two_cluster import TwoCluster, balanced, two_cluster

__all__ = [
    "Body",
    "DeepState",
    "Edge",
    "Geometry",
    "Landscape",
    "NormalizedTwoCluster",
    "Thresholds",
    "TwoCluster",
    "Verdict",
    "balanced",
    "best_oversampling",
    "body_cost",
    "column_cosines",
    "critical_majority",
    "critical_minority",
    "critical_ratio",
    "decay_switch",
    "deep_column",
    "deep_price",
    "deep_within",
    "edge_of",
    "etf_cosine",
    "fractional_problem",
    "landscape",
    "large_sample_margins",
    "largest_head_decay_factor",
    "least_oversampling",
    "normalized_merge",
    "normalized_two_cluster",
    "seli",
    "seli_two_cluster_grams",
    "simplex_etf",
    "thresholds",
    "two_cluster",
]
