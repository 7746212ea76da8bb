"""The optimum for two clusters of classes, from one scalar root: an oracle that shares no code with a solver.

Hong & Ling, JMLR 25(192), 2024, (5.16)-(5.51). With the ratio t = b/c of the two cross-cluster entries every
prediction is explicit, the logits follow by logarithms, and t is the root of b - t c.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, inf, isfinite, log, log1p, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.checks import bias_price, must_be_positive
from collapsar.theory.roots import root_between

State = Literal["apart", "merged", "vanished", "zero"]


@dataclass(frozen=True)
class TwoCluster:
    """Z = [a (k_A I - J) + c k_B I, -b J; -c J, d (k_B I - J) + b k_A I], bias = m [k_B 1; -k_A 1].

    Attributes:
        k_a: classes in A.
        k_b: classes in B.
        a: NaN if k_A = 1, as are d and alpha_B if k_B = 1: a class alone has no within-cluster part.
        b: cross entry of B's columns; 0 when the cluster part has vanished.
        c: cross entry of A's columns.
        d: see ``a``; may be negative.
        m: the bias; 0 without one.
        alpha_a: k_A a + k_B c, the logit contrast inside A; 0 when merged.
        alpha_b: k_B d + k_A b.
        state: "apart" (every cluster keeps its classes apart), "merged" (one does not, but its columns are
            not zero), "vanished" (its columns are zero), "zero" (Z = 0).
    """

    k_a: int
    k_b: int
    a: float
    b: float
    c: float
    d: float
    m: float
    alpha_a: float
    alpha_b: float
    state: State

    def Z(self) -> NDArray[np.float64]:  # noqa: N802 - the paper's letter
        """Mean predictions without the bias, shape (K, K), [logit, class], A first."""
        k_a, k_b, b, c = self.k_a, self.k_b, self.b, self.c
        return two_blocks((k_a, k_b), [[c * k_b / k_a, -b], [-c, b * k_a / k_b]], (self.alpha_a, self.alpha_b))

    def bias(self) -> NDArray[np.float64]:
        """The bias, shape (K,), A first."""
        return np.repeat([self.m * self.k_b, -self.m * self.k_a], (self.k_a, self.k_b))


def two_blocks(classes: tuple[int, int], between: ArrayLike, contrasts: tuple[float, float]) -> NDArray[np.float64]:
    """Z from its entries between the clusters, [logit, class], and contrast (I - J/k) inside each, shape (K, K)."""
    Z = np.repeat(np.repeat(np.asarray(between), classes, axis=0), classes, axis=1)
    for k, contrast, part in zip(classes, contrasts, (slice(classes[0]), slice(classes[0], None)), strict=True):
        Z[part, part] += 0.0 if k == 1 else contrast * (np.eye(k) - 1 / k)
    return Z


@dataclass(frozen=True)
class Side:
    """One cluster's column, given the other cluster; without a mitigation mass n, share n/N.

    Attributes:
        k: own classes.
        mass: m, feature mass of one own class.
        share: q, loss share of one own class.
        other_k: classes of the other cluster.
        other_mass: feature mass of one of its classes.
        lambda_z: penalty of Z.
    """

    k: int
    mass: float
    share: float
    other_k: int
    other_mass: float
    lambda_z: float

    @property
    def level(self) -> float:
        """The ratio lambda_z sqrt(m) / q; below 1 the classes stay apart, with 1 - p_own + p_sibling = level."""
        return self.lambda_z * sqrt(self.mass) / self.share

    @property
    def is_apart(self) -> bool:
        """Whether the classes of the cluster differ."""
        return self.k > 1 and self.level < 1

    def foreign(self, t: float) -> float:
        """Probability of one class of the other cluster, t = (own cross entry) / (the other's)."""
        K = self.k + self.other_k
        spread = self.other_k * self.mass + self.k * self.other_mass / t**2
        return self.level * sqrt(self.mass) / sqrt(K * spread)

    def logits(self, foreign: float) -> tuple[float, float]:
        """Both log(p_sibling / p_foreign), -inf where no probability is left, and log(p_own / p_sibling)."""
        if self.is_apart:
            sibling = (self.level - self.other_k * foreign) / self.k
            own = sibling + (1 - self.level)
        else:
            sibling = own = (1 - self.other_k * foreign) / self.k
        if sibling <= 0:
            return -inf, 0.0
        return log(sibling / foreign), log(own / sibling)

    def cross(self, t: float) -> float:
        """The cross entry without the bias: (k / K) [log(p_sibling / p_foreign) + alpha / k]."""
        gap, alpha = self.logits(self.foreign(t))
        return self.k / (self.k + self.other_k) * (gap + alpha / self.k)


def two_cluster(k_a: int, k_b: int, n_a: float, n_b: float, lambda_z: float, lambda_b: float = inf) -> TwoCluster:
    """The optimum without a mitigation, signed features, k_A classes of n_A samples and k_B of n_B.

    Args:
        k_a: >= 1.
        k_b: >= 1.
        n_a: > 0, may be fractional (only ratios enter).
        n_b: > 0.
        lambda_z: > 0.
        lambda_b: >= 0; inf: no bias, 0: free bias.

    Returns:
        The optimum, to about 1e-12.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> s = two_cluster(5, 5, 500, 100, lambda_z=0.003, lambda_b=0.02)
        >>> s.state, round(s.d, 3), s.alpha_b > 0
        ('apart', -0.129, True)
    """
    for name, value in (("k_a", k_a), ("k_b", k_b)):
        if not value >= 1 or int(value) != value:
            raise ValueError(f"`{name}` must be a whole number >= 1, got {value!r}")
    must_be_positive(n_a=n_a, n_b=n_b, lambda_z=lambda_z)
    bias_price(lambda_b)
    N = k_a * n_a + k_b * n_b
    return optimum_of_sides(
        Side(k_a, n_a, n_a / N, k_b, n_b, lambda_z), Side(k_b, n_b, n_b / N, k_a, n_a, lambda_z), lambda_b
    )


def optimum_of_sides(A: Side, B: Side, lambda_b: float) -> TwoCluster:
    """The optimum for any loss shares and feature masses of two clusters.

    Args:
        A: one cluster.
        B: the other one, with the roles exchanged.
        lambda_b: penalty of the bias.

    Returns:
        The optimum.

    Example:
        >>> optimum_of_sides(Side(5, 1, 0.15, 5, 1, 0.06), Side(5, 1, 0.05, 5, 1, 0.06), inf).state
        'merged'
    """
    k_a, k_b = A.k, B.k
    cross = _cross_part(A, B, lambda_b)
    if cross is None:
        m, alpha_a, alpha_b = _without_cross_part(A, B, lambda_b)
        b = c = 0.0
    else:
        t, m = cross
        b, c = B.cross(t) + k_b * m, A.cross(1 / t) - k_a * m
        alpha_a, alpha_b = A.logits(A.foreign(1 / t))[1], B.logits(B.foreign(t))[1]
    dead = [side.k > 1 and not side.is_apart for side in (A, B)]
    state: State = "merged" if any(dead) else "apart"
    if cross is None:
        state = "vanished" if A.is_apart or B.is_apart else "zero"
    alpha_a, alpha_b = (nan if k_a == 1 else alpha_a), (nan if k_b == 1 else alpha_b)
    return TwoCluster(k_a, k_b, (alpha_a - k_b * c) / k_a, b, c, (alpha_b - k_a * b) / k_b, m, alpha_a, alpha_b, state)


def _cross_part(A: Side, B: Side, lambda_b: float) -> tuple[float, float] | None:
    """The ratio t = b/c and the bias m of a nonzero cluster part; None if it has vanished."""
    if lambda_b == 0:
        t = A.mass / B.mass  # q_A p_BA = q_B p_AB and the two norm equations allow only this ratio
        lowest, highest = B.cross(t), A.cross(1 / t)
        if not (isfinite(lowest) and isfinite(highest)):
            return None
        m = (t * highest - lowest) / (B.k + t * A.k)
        return (t, m) if highest - A.k * m > 0 else None

    def bias(t: float) -> float:
        return 0.0 if lambda_b == inf else (A.share * A.foreign(1 / t) - B.share * B.foreign(t)) / lambda_b

    def b(t: float) -> float:
        return B.cross(t) + B.k * bias(t)

    def c(t: float) -> float:
        return A.cross(1 / t) - A.k * bias(t)

    # b falls and c grows with t, b = tc needs both positive: c at the root of b decides, and the root of b -
    # tc lies below that of b
    low = high = 1.0
    while not (b(low) > 0 and b(low) > low * c(low)):
        low /= 4
        if low < 1e-150:
            return None
    while b(high) > 0 and not b(high) < high * c(high):
        high *= 4
    if not b(high) > 0:
        edge = root_between(lambda t: max(b(t), -1e300), low, high)
        if not c(edge) > 0:
            return None
        high = edge
    low = min(low, high)
    t = root_between(lambda t: max(b(t), -1e300) - t * max(c(t), -1e100), low, high)
    return (t, bias(t)) if c(t) > 0 else None


def _without_cross_part(A: Side, B: Side, lambda_b: float) -> tuple[float, float, float]:
    """m, alpha_A, alpha_B with S = 0 held: lambda_b m = q_A p_BA - q_B p_AB, which falls with m."""
    K = A.k + B.k
    if lambda_b == inf:
        return 0.0, _contrast(A, 0.0)[1], _contrast(B, 0.0)[1]

    def excess(m: float) -> float:
        return A.share * _contrast(A, K * m)[0] - B.share * _contrast(B, -K * m)[0] - lambda_b * m

    high = 1.0
    while excess(high) > 0 or excess(-high) < 0:
        high *= 2
    m = root_between(excess, -high, high)
    return m, _contrast(A, K * m)[1], _contrast(B, -K * m)[1]


def _contrast(side: Side, advantage: float) -> tuple[float, float]:
    """Both p_foreign and alpha where S = 0 and the bias lifts the cluster by ``advantage`` over the other."""
    rest = side.other_k * exp(-advantage)
    if not side.is_apart:
        return exp(-advantage) / (side.k + rest), 0.0

    def excess(alpha: float) -> float:
        # (p_own - p_sibling) - (1 - level), times the sum of odds against a sibling
        odds = rest * exp(alpha / side.k)
        return expm1(alpha) * side.level - (1 - side.level) * (side.k + odds)

    high = 1.0
    while not excess(high) > 0:
        high *= 2
    alpha = root_between(excess, 0.0, high)
    total = exp(alpha) + (side.k - 1) + rest * exp(alpha / side.k)
    return exp(alpha / side.k - advantage) / total, alpha


def balanced(num_classes: int, samples: float, lambda_z: float, *, nonnegative: bool = False) -> float:
    """The balanced optimum Z = alpha (I - J/K), b = 0, as its alpha.

    JMLR Thm 2c; nonnegative: Dang et al., ICML 2024.

    Signed: alpha = log(K/t - K + 1)_+ with t = N lambda_z / sqrt(n); nonnegative: t times sqrt((K - 1)/K) is
    what 1 - p_own reaches, alpha = log((K - 1)(1/s - 1))_+.

    Args:
        num_classes: K >= 2.
        samples: n > 0 per class.
        lambda_z: > 0.
        nonnegative: whether features are nonnegative.

    Returns:
        alpha, 0 where everything has collapsed.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(balanced(2, 50, 0.05), 6)
        0.603456
    """
    K = num_classes
    if not K >= 2:
        raise ValueError(f"`num_classes` must be >= 2, got {num_classes!r}")
    must_be_positive(samples=samples, lambda_z=lambda_z)
    t = K * sqrt(samples) * lambda_z
    if nonnegative:
        s = t * sqrt((K - 1) / K)
        return max(log((K - 1) * (1 / s - 1)), 0.0) if s < 1 else 0.0
    return log1p(K * (1 - t) / t) if t < 1 else 0.0
