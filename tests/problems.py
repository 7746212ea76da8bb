"""The problem table and the naive model: K x K, one loop per class, nothing shared with the package's algebra."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import collapsar as cs

INF = float("inf")

PROBLEMS: dict[str, cs.Problem] = {
    "paper-apart": cs.Problem("500x5,100x5", 0.0027, 0.02),
    "paper-merged": cs.Problem("500x5,100x5", 0.0037, 0.02),
    "paper-vanished": cs.Problem("500x3,100x7", 0.0070, 0.02),
    "dataset1": cs.Problem("5000x4,4000x3,3000x3", 0.0004, 0.02),
    "no-bias": cs.Problem("500x5,100x5", 0.003, INF),
    "free-bias": cs.Problem("500x3,100x4", 0.003, 0.0),
    "balanced": cs.Problem("100x6", 0.004, 0.02),
    "distinct": cs.Problem([400, 300, 200, 100, 50], 0.008, 0.05),
    "two-classes": cs.Problem([90, 10], 0.02, 0.02),
    "weighted": cs.Problem("300x3,30x3", 0.006, 0.02, cs.Loss(class_weights=[1, 1, 1, 4, 4, 4])),
    "oversampled": cs.Problem(
        "300x3,30x3", 0.006, 0.02, cs.Loss(class_weights=[1] * 3 + [5] * 3), [300] * 3 + [150] * 3
    ),
    "adjusted": cs.Problem("300x3,30x3", 0.004, INF, cs.Loss(offsets=np.log([1.0] * 3 + [0.1] * 3))),
    "vs-loss": cs.Problem(
        "300x3,30x3", 0.004, 0.02, cs.Loss(offsets=[0.5] * 3 + [-0.5] * 3, scales=[1.0] * 3 + [0.6] * 3)
    ),
    "ldt-smoothed": cs.Problem("200x2,50,20x2", 0.006, 0.1, cs.Loss(temperatures=[1, 1, 1.2, 1.5, 1.5], smoothing=0.1)),
    "layer-peeled": cs.Problem("100x3,10x3", 0.05, INF, feature_mass=[1.0] * 6),
}


def naive_loss(p: cs.Problem, Z: NDArray, b: NDArray) -> float:
    """The loss and bias price, straight from the definition."""
    K = p.num_classes
    weights = p.loss.class_weights if p.loss.class_weights is not None else np.ones(K)
    scales = p.loss.scales if p.loss.scales is not None else np.ones(K)
    temperatures = p.loss.temperatures if p.loss.temperatures is not None else np.ones(K)
    offsets = p.loss.offsets if p.loss.offsets is not None else np.zeros(K)
    total = 0.0
    for k in range(K):
        u = temperatures[k] * scales * (Z[:, k] + b) + offsets
        y = np.full(K, p.loss.smoothing / K)
        y[k] += 1 - p.loss.smoothing
        total += weights[k] * p.class_counts[k] * (np.logaddexp.reduce(u) - y @ u)
    total /= np.sum(weights * p.class_counts)
    return float(total) + (0.0 if p.lambda_b == INF else 0.5 * p.lambda_b * float(b @ b))


def naive_objective(p: cs.Problem, Z: NDArray, b: NDArray) -> float:
    mass = p.class_counts if p.feature_mass is None else p.feature_mass
    X = Z * np.sqrt(mass)
    price = np.linalg.norm(X, "nuc") if p.features == "signed" else np.linalg.norm(X, axis=0).sum()
    return naive_loss(p, Z, b) + p.lambda_z * float(price)
