"""lambda_z read from the mean predictions of a trained network: class by class, and from all at once.

Example:
    >>> from collapsar.solver import solve
    >>> s = solve(Problem("100x2,20x2", lambda_z=0.01))
    >>> round(lambda_z_from_residual(s.problem, s.Z, s.b), 6)
    0.01
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.types import Matrix, Vector
from collapsar.metrics.predictions import MeanPredictions
from collapsar.solver.certificate import dual_norm
from collapsar.solver.objective import predict, residual
from collapsar.solver.symmetry import Blocks, quotient, trivial_quotient


def checked_predictions(
    problem: Problem, Z: ArrayLike | MeanPredictions, b: ArrayLike
) -> tuple[MeanPredictions, Vector]:
    """Mean predictions and bias, their shapes checked."""
    P = Z if isinstance(Z, MeanPredictions) else MeanPredictions(np.asarray(Z, dtype=np.float64))
    bias, K = np.asarray(b, dtype=np.float64), problem.num_classes
    square = P.weight.ndim == 2 and P.shape == (K, K)
    for name, shape, wanted in (("Z", P.shape if square else P.weight.shape, (K, K)), ("b", bias.shape, (K,))):
        if shape != wanted:
            raise ValueError(f"`{name}` must have shape {wanted} for {K} classes, got {shape}")
    return P, bias


def lambda_z_from_predictions(
    problem: Problem, Z: ArrayLike | MeanPredictions, b: ArrayLike, features: FeatureModel
) -> Vector:
    """lambda_z read from each class's mean prediction; NaN if the class cannot tell.

    With r_k = q_k tau_k delta o (y_k - p_k) / sqrt(m_k), or (e_k - p_k) sqrt(n_k)/N for the plain loss: signed features
    give r_kk - r_lk, l the mean over the class's cluster, or (1 - p_own + p_other) sqrt(n_k)/N (NaN for a class alone
    in it); nonnegative ones ||r_k||. Both equal lambda_z at the optimum for separated classes (Hong & Ling, JMLR
    25(192), 2024, Thm 3; column form of the model with H >= 0); other classes give a lower bound of lambda_z.

    Args:
        problem: counts and loss; its penalties are not used.
        Z: shape (K, K), [logit, class], or factors of it.
        b: shape (K,).
        features: the model to read by.

    Returns:
        shape (K,).

    Example:
        >>> from collapsar.solver import solve
        >>> s = solve(Problem("100x2,20x2", lambda_z=0.01))
        >>> lambda_z_from_predictions(s.problem, s.Z, s.b, "signed").round(9).tolist()
        [0.01, 0.01, 0.01, 0.01]
    """
    P, bias = checked_predictions(problem, Z, b)
    labels = quotient(problem).labels
    readings = np.empty(labels.size)
    for part, columns in P.blocks():
        R = _residual_columns(problem, columns, bias, part)
        if features == "nonnegative":
            readings[part] = np.linalg.norm(R, axis=0)
            continue
        own = R[np.arange(part.start, part.stop), np.arange(R.shape[1])]
        siblings, inside = np.bincount(labels)[labels[part]] - 1, np.empty(own.size)
        for j in np.unique(labels[part]):
            inside[labels[part] == j] = R[np.ix_(labels == j, labels[part] == j)].sum(axis=0)
        readings[part] = own - (inside - own) / np.where(siblings > 0, siblings, np.nan)
    return readings


def _residual_columns(problem: Problem, columns: Matrix, b: Vector, part: slice) -> Matrix:
    """These columns of R = diag(delta)(Y - P)diag(tau o q)M^(-1/2), with relative accuracy even near 0."""
    own, place, K = np.arange(part.start, part.stop), np.arange(columns.shape[1]), problem.num_classes
    u = problem.temperatures[part] * (problem.scales[:, None] * (columns + b[:, None])) + problem.offsets[:, None]
    u -= u.max(axis=0)
    odds = np.exp(u, out=u)
    mine = odds[own, place].copy()
    odds[own, place] = 0.0
    missed = odds.sum(axis=0)
    even = problem.loss.smoothing / K
    R = np.divide(odds, -(mine + missed), out=odds)
    R += even
    R[own, place] = missed / (mine + missed) - even * (K - 1)
    R *= problem.scales[:, None]
    R *= (problem.temperatures * problem.loss_share / np.sqrt(problem.mass))[part]
    return R


def lambda_z_from_residual(problem: Problem, Z: ArrayLike, b: ArrayLike) -> float:
    """lambda_z read from all mean predictions at once: the dual norm of the residual R.

    At an optimum with anything alive it is lambda_z (JMLR Lemma 8), for signed features the spectral norm of R, for
    nonnegative ones the bound sqrt(lambda_max([R'R]_+)). It works even if every class is alone in its cluster.

    Args:
        problem: counts, loss and feature model; its penalties are not used.
        Z: shape (K, K), [logit, class].
        b: shape (K,).
    """
    q = trivial_quotient(problem)
    blocks = Blocks(np.zeros(q.num_classes), np.asarray(Z, dtype=np.float64), np.asarray(b, dtype=np.float64))
    return dual_norm(q, residual(q, predict(q, blocks)[0]))
