"""Measured against optimum: distances, and the penalties a trained head acts as if it had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.problem import FeatureModel, Problem
from collapsar.solver import Solution

__all__ = ["Distance", "balance_penalties", "distance", "lambda_z_from_predictions"]

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """Relative distances of a measured (Z, b) to an optimum (Z*, b*); NaN where the optimum is zero.

    Attributes:
        Z: ||Z - Z*||_F / ||Z*||_F.
        Z_max: the same in the largest absolute entry.
        b: ||b - b*||_2 / ||b*||_2.
        b_max: the same in the largest absolute entry.
    """

    Z: float
    Z_max: float
    b: float
    b_max: float


def distance(solution: Solution, Z: ArrayLike, b: ArrayLike) -> Distance:
    """How far a network's mean predictions are from the optimum (Hong & Ling, JMLR 25(192), 2024, Fig. 3).

    Args:
        solution: the optimum.
        Z: shape (K, K), [logit, class], mean predictions without the bias.
        b: shape (K,).

    Raises:
        ValueError: a shape disagrees.

    Example:
        >>> from collapsar import Problem, solve
        >>> s = solve(Problem([10, 10], lambda_z=0.05))
        >>> round(distance(s, 1.1 * s.Z, s.b).Z, 12)
        0.1
    """
    z, bias = np.asarray(Z, dtype=np.float64), np.asarray(b, dtype=np.float64)
    K = solution.problem.num_classes
    for name, value, shape in (("Z", z, (K, K)), ("b", bias, (K,))):
        if value.shape != shape:
            raise ValueError(f"`{name}` must have shape {shape} for {K} classes, got {value.shape}")
    dz, db = z - solution.Z, bias - solution.b
    return Distance(
        Z=_ratio(np.linalg.norm(dz), np.linalg.norm(solution.Z)),
        Z_max=_ratio(np.abs(dz).max(), np.abs(solution.Z).max()),
        b=_ratio(np.linalg.norm(db), np.linalg.norm(solution.b)),
        b_max=_ratio(np.abs(db).max(), np.abs(solution.b).max()),
    )


def _ratio(value: float | np.floating, scale: float | np.floating) -> float:
    # an optimum that is zero to rounding has no relative distance
    return float(value / scale) if scale > 1e-9 else float("nan")


def balance_penalties(
    weight: ArrayLike, class_means: ArrayLike, mass: ArrayLike, lambda_w: float
) -> tuple[float, float]:
    """The feature penalty a stationary head acts as if it had, without knowing any.

    At any stationary point lambda_w ||W||^2 = lambda_h sum_k m_k ||h_k||^2.

    Args:
        weight: W, shape (K, d), as torch stores a linear layer.
        class_means: shape (K, d), mean feature of each class.
        mass: m, shape (K,), samples per class.
        lambda_w: the head's penalty, with its half.

    Returns:
        lambda_h and lambda_z = sqrt(lambda_w lambda_h); NaN where all features are zero.

    Raises:
        ValueError: ``lambda_w`` is not positive or the shapes disagree.
    """
    W, H, m = (np.asarray(v, dtype=np.float64) for v in (weight, class_means, mass))
    if W.shape != H.shape or m.shape != W.shape[:1]:
        raise ValueError(
            f"`weight`, `class_means` and `mass` must have shapes (K, d), (K, d), (K,), "
            f"got {W.shape}, {H.shape}, {m.shape}"
        )
    if not 0 < lambda_w < np.inf:
        raise ValueError(f"`lambda_w` must be finite and > 0, got {lambda_w!r}")
    features = float(m @ np.sum(H**2, axis=1))
    lambda_h = lambda_w * float(np.sum(W**2)) / features if features > 0 else float("nan")
    return lambda_h, float(np.sqrt(lambda_w * lambda_h))


def lambda_z_from_predictions(problem: Problem, Z: ArrayLike, b: ArrayLike, features: FeatureModel) -> Vector:
    """lambda_z read from each class's mean prediction, for plain training; NaN where the class cannot tell.

    Signed features: (1 - p_own + p_other) sqrt(n_k)/N with p_other the mean over the class's cluster (NaN for a class
    alone in it). Nonnegative: sqrt(n_k) ||e_k - p_k|| / N. Both hold at the optimum for classes that are alive.

    Args:
        problem: counts; its penalties are not used.
        Z: shape (K, K), [logit, class].
        b: shape (K,).
        features: the model to read by.

    Returns:
        shape (K,).
    """
    logits = np.asarray(Z, dtype=np.float64) + np.asarray(b, dtype=np.float64)[:, None]
    P = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
    n = problem.class_counts.astype(np.float64)
    root = np.sqrt(n) / n.sum()
    if features == "nonnegative":
        return root * np.linalg.norm(np.eye(n.size) - P, axis=0)
    same = n[:, None] == n
    siblings = same.sum(axis=0) - 1
    other = (np.sum(same * P, axis=0) - np.diag(P)) / np.where(siblings > 0, siblings, np.nan)
    return root * (1 - np.diag(P) + other)
