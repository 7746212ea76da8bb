"""Two clusters of classes with features of equal length, from six numbers: shares no code with a solver.

It is for networks that normalise features per sample and decay only the head (docs/theory/normalized.md). By symmetry
an angle and a length per cluster describe everything: with v = sqrt(k_A k_B / K) (1/k_A on A, -1/k_B on B),

    z_A = norm [ t sin u_A v + beta_A cos u_A sqrt(k_A/(k_A - 1)) (e_k - 1/k_A) ],
    z_B = norm [-t sin u_B v + beta_B cos u_B sqrt(k_B/(k_B - 1)) (e_k - 1/k_B) ],   bias m (1/k_A, -1/k_B),

and the penalty is (lambda_w/2)(t^2 + (k_A - 1) beta_A^2 + (k_B - 1) beta_B^2). Merged classes have u = pi/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf, isinf, nan, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Vector
from collapsar.theory.roots import root_between
from collapsar.theory.two_cluster import two_blocks

_MERGED = 1e-6  # radians from pi/2 that may be rounding


@dataclass(frozen=True)
class NormalizedTwoCluster:
    """The optimum of two clusters under equal feature lengths.

    Attributes:
        k_a: classes in A.
        k_b: classes in B.
        norm: length of the features.
        value: the objective, nats.
        t: length of the head's part between the clusters.
        beta_a: length of its part inside A; NaN where k_A = 1.
        beta_b: length of its part inside B; NaN where k_B = 1.
        u_a: angle of A's features to the within-cluster plane; pi/2 where they are equal.
        u_b: angle of B's features.
        m: the bias is m (1/k_A, -1/k_B).
    """

    k_a: int
    k_b: int
    norm: float
    value: float
    t: float
    beta_a: float
    beta_b: float
    u_a: float
    u_b: float
    m: float

    @property
    def cosines(self) -> tuple[float, float, float]:
        """Cosines of two features of A, of two of B, and of one of each; NaN if a cluster has one class."""
        a = nan if self.k_a == 1 else (self.k_a * np.sin(self.u_a) ** 2 - 1) / (self.k_a - 1)
        b = nan if self.k_b == 1 else (self.k_b * np.sin(self.u_b) ** 2 - 1) / (self.k_b - 1)
        return float(a), float(b), float(-np.sin(self.u_a) * np.sin(self.u_b))

    @property
    def merged(self) -> tuple[bool, bool]:
        """Whether the classes of A, and those of B, have equal features."""
        a, b = (k > 1 and abs(u - pi / 2) <= _MERGED for k, u in ((self.k_a, self.u_a), (self.k_b, self.u_b)))
        return a, b

    def Z(self) -> NDArray[np.float64]:  # noqa: N802 - the paper's letter
        """Mean predictions without the bias, shape (K, K), [logit, class], A first."""
        k, beta, u = np.array([self.k_a, self.k_b]), np.array([self.beta_a, self.beta_b]), [self.u_a, self.u_b]
        v = sqrt(k.prod() / k.sum()) * np.array([1, -1]) / k
        contrasts = self.norm * beta * np.cos(u) * np.sqrt(k / np.maximum(k - 1, 1))
        between = self.norm * self.t * np.outer(v, np.sin(u) * [1, -1])
        return two_blocks((self.k_a, self.k_b), between, (contrasts[0], contrasts[1]))

    def bias(self) -> Vector:
        """The bias, shape (K,), A first."""
        return np.repeat([self.m / self.k_a, -self.m / self.k_b], (self.k_a, self.k_b))


@dataclass(frozen=True)
class _Model:
    """The objective of (t, beta_A, beta_B, u_A, u_B, m) for features of unit length, head's price c."""

    k: Vector
    share: Vector
    c: float
    lambda_b: float

    def __call__(self, x: Vector) -> tuple[float, Vector]:
        """Value and gradient."""
        t, beta, u, m = x[0], x[1:3], x[3:5], x[5]
        k, K = self.k, float(self.k.sum())
        apart = np.sqrt(K / (k[0] * k[1]))
        several = np.maximum(k - 1, 1.0)
        inner, rim = np.where(k > 1, np.sqrt(k / several), 0.0), np.sqrt((k - 1) / k)
        sin, cos, h, sign = np.sin(u), np.cos(u), 1 / k[0] + 1 / k[1], np.array([-1.0, 1.0])
        # logits of a sibling and of a class of the other cluster, minus the own class's
        sibling = -inner * beta * cos
        other = -apart * t * sin - rim * beta * cos + sign * h * m
        exponents = np.array([np.log(np.maximum(k - 1, 1e-300)) + sibling, np.log(k[::-1]) + other, 0 * k])
        top = exponents.max(axis=0)
        odds = np.exp(exponents - top)
        total = odds.sum(axis=0)
        weight = k * self.share
        p, r = weight * odds[0] / total, weight * odds[1] / total
        bias = 0.0 if isinf(self.lambda_b) else self.lambda_b
        value = weight @ (top + np.log(total))
        value += 0.5 * self.c * (t * t + (k - 1) @ beta**2) + 0.5 * bias * h * m * m
        pull = inner * p + rim * r
        gradient = np.concatenate(
            [
                [self.c * t - apart * (r @ sin)],
                self.c * (k - 1) * beta - pull * cos,
                pull * beta * sin - apart * t * r * cos,
                [0.0 if isinf(self.lambda_b) else bias * h * m + h * (r @ sign)],
            ]
        )
        return float(value), gradient

    def hold(self, k: Vector) -> NDArray[np.bool_]:
        """Which numbers are free: a class alone has no part inside its cluster, and without bias m is zero."""
        alone = k == 1
        return ~np.array([False, *alone, *alone, isinf(self.lambda_b)])


def normalized_two_cluster(
    classes: tuple[int, int], counts: tuple[float, float], lambda_w: float, norm: float, lambda_b: float = 0.0
) -> NormalizedTwoCluster:
    """The optimum of k_A classes of n_A samples and k_B of n_B, features of length ``norm``, plain cross-entropy.

    Args:
        classes: (k_A, k_B).
        counts: (n_A, n_B).
        lambda_w: penalty of the head's weight.
        norm: length of the features.
        lambda_b: penalty of the bias; 0: free, inf: none.

    Returns:
        The optimum, accurate to about 1e-10.

    Raises:
        ArithmeticError: the six equations could not be solved.

    Example:
        >>> s = normalized_two_cluster((5, 5), (100, 20), lambda_w=3.0, norm=128**0.5)
        >>> round(s.value, 8), [round(c, 4) for c in s.cosines]
        (0.96799192, [-0.2111, 0.2003, -0.1059])
    """
    model = _model(classes, counts, lambda_w / norm**2, lambda_b)
    free = model.hold(model.k)
    merged = free.copy()
    merged[[2, 4]] = False
    x = min((_minimum(model, which) for which in (free, merged)), key=lambda x: model(x)[0])
    beta = np.where(model.k > 1, x[1:3], nan) / norm
    u = x[3:5]
    return NormalizedTwoCluster(
        *classes, norm, model(x)[0], x[0] / norm, float(beta[0]), float(beta[1]), float(u[0]), float(u[1]), x[5]
    )


def normalized_merge(
    classes: tuple[int, int], counts: tuple[float, float], norm: float, lambda_b: float = 0.0
) -> float:
    """The least ``lambda_w`` at which the classes of B have equal features; NaN if they never have.

    With B's classes held equal, giving them a contrast pays as long as q_B exceeds c (z_BB - <p_B, z_B>), c =
    lambda_w / norm^2; this is the root of the difference.

    Args:
        classes: (k_A, k_B), k_B >= 2.
        counts: (n_A, n_B).
        norm: length of the features.
        lambda_b: penalty of the bias.

    Example:
        >>> round(normalized_merge((5, 5), (100, 20), norm=1.0), 7)
        0.0662035
    """
    if classes[1] == 1:
        return nan

    @cache  # the ends are evaluated twice
    def excess(log_c: float) -> float:
        model = _model(classes, counts, float(np.exp(log_c)), lambda_b)
        free = model.hold(model.k)
        free[[2, 4]] = False
        x = _minimum(model, free)
        # c (z_BB - <p_B, z_B>) with z_B = -t v: t times the slope of the loss in t through B
        k = model.k
        other = np.exp(-np.sqrt(k.sum() / (k[0] * k[1])) * x[0] + (1 / k[0] + 1 / k[1]) * x[5])
        miss = k[0] * other / (k[1] + k[0] * other)
        return model.c * miss * x[0] * float(np.sqrt(k.sum() / (k[0] * k[1]))) - float(model.share[1])

    low, high = -12.0, 6.0
    return norm**2 * float(np.exp(root_between(excess, low, high))) if excess(low) < 0 < excess(high) else nan


def _model(classes: tuple[int, int], counts: tuple[float, float], c: float, lambda_b: float) -> _Model:
    k, n = np.asarray(classes, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    return _Model(k, n / (k @ n), c, lambda_b)


def _minimum(model: _Model, free: NDArray[np.bool_]) -> Vector:
    """The least value over the free numbers; the others stay at beta = 0, u = pi/2, m = 0."""
    from scipy.optimize import minimize, root

    k = model.k
    simplex = np.arcsin(np.sqrt(k[::-1] / ((k.sum() - 1) * k)))  # the angle of the simplex' features
    best, least = np.zeros(6), inf
    for size in (1.0, 4.0):
        x = np.array([size * 2, size, size, *simplex, 0.0])
        x[~free] = np.array([0, 0, 0, pi / 2, pi / 2, 0.0])[~free]

        def placed(part: Vector, x: Vector = x) -> Vector:
            full = x.copy()
            full[free] = part
            return full

        def sliced(part: Vector, x: Vector = x) -> tuple[float, Vector]:
            value, gradient = model(placed(part, x))
            return value, gradient[free]

        found = minimize(sliced, x[free], jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}).x
        polished = root(lambda part, f=sliced: f(part)[1], found, tol=1e-15).x
        part = polished if sliced(polished)[0] <= sliced(found)[0] + 1e-13 else found
        if sliced(part)[0] < least:
            best, least = placed(part), sliced(part)[0]
    if not np.max(np.abs(model(best)[1][free])) <= 1e-8:
        raise ArithmeticError("the optimum of two clusters did not converge; the penalty may be too weak for float64")
    return best
