"""Where the minority vanishes, for every bias penalty: the map lambda*(lambda_b; k_A, k_B, n_A, n_B).

Two clusters, no mitigation. With signed features the merged columns of the minority stay nonzero above the merge
threshold until the cluster part S of Z vanishes, at the root of (5.24) in Hong & Ling, JMLR 25(192), 2024, whose value
the paper leaves open for 0 < lambda_b < inf. The whole boundary is a curve with the bias as its parameter. Let w =
exp(b_B - b_A), r = n_A/n_B, and y the ratio p_foreign / (w p_sibling) in a column of the majority. Where S = 0,

    T := y^k_A + k_A - 1 + k_B v,   v := w y,     p_BA = v/T,   p_AB = 1/(k_A + k_B w),
    ||R_S|| = lambda:   T^2 = (r/K)(k_A + k_B w)^2 (k_A + 2 k_B v - k_B v^2)                      one root y > 1
    lambda* = (sqrt(n_A)/N)(k_A + k_B v)/T,     lambda_b = K (n_A p_BA - n_B p_AB)/(N log(1/w)).

w = 1 is a head without bias. A free bias has v = k_A/(sqrt(K(k_B + k_A r)) - k_B), y the root of T = r v (k_A + k_B
w). For r > 1 and k_A >= 2 the map is never monotone: at a fixed bias x = -log w the root lambda* is unique because d
log||R_S|| / d log lambda < 1, its slope in x has the sign of d||R_S||/dx, and that is positive at the free bias (by
Bernoulli's inequality, y^k_A + k_A - 1 >= k_A y) and negative at x = 0 (K^2 y^2 > (k_A + k_B y)(k_A + 2 k_B y - k_B
y^2)). So lambda* falls as a free bias gets a penalty and rises in the end; that it turns once, and that lambda_b grows
along the curve, was found in every problem of a sample (docs/theory/vanish.md).

With nonnegative features (column form) the minority's column sees only the bias: lambda* = (sqrt(n_B)/N) ||e_B -
softmax(b)||, which falls with w. The majority's column then fixes lambda_b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar._lazy import lazy_names
from collapsar.core.problem import FeatureModel
from collapsar.core.types import Vector
from collapsar.theory.roots import roots_between

__getattr__, _ = lazy_names(__name__, {}, left={"collapsar_studies.vanish_shape": "monotonicity"})


@dataclass(frozen=True)
class VanishBoundary:
    """Points of the map. Every array has one entry per penalty of the bias.

    Attributes:
        lambda_b: penalty of the bias.
        lambda_z: lambda*, above which the minority's columns are zero.
        advantage: b_A - b_B at the transition, nats; 0 without bias.
        exact: whether the value is that of the model itself. Always for signed features; for nonnegative ones if no
            two residual columns make an acute angle, otherwise classes would share a direction and vanish later than
            in column form.
    """

    lambda_b: Vector
    lambda_z: Vector
    advantage: Vector
    exact: NDArray[np.bool_]


@dataclass(frozen=True)
class BoundaryCurve:
    """The boundary of many problems at once, with w = exp(b_B - b_A) as its parameter; the arrays broadcast.

    Lambda is in units of sqrt(n_A)/N, counts in units of n_B.

    Attributes:
        k_a: majority classes.
        k_b: minority classes.
        r: n_A/n_B.
    """

    k_a: Vector
    k_b: Vector
    r: Vector

    def point(self, w: Vector, features: FeatureModel) -> tuple[Vector, Vector]:
        """N lambda*/sqrt(n_A), and the pull (n_A p_BA - n_B p_AB)/n_B that is balanced by the penalty of the bias."""
        return self._signed(w) if features == "signed" else self._nonnegative(w)[:2]

    def free(self, features: FeatureModel) -> Vector:
        """The w of a free bias, where the pull is zero."""
        if features == "nonnegative":
            # below 1/r the pull is negative: a majority that the bias alone predicts well is at exactly 1/r
            return roots_between(lambda w: -self.point(w, features)[1], 1 / self.r, np.ones_like(self.r))
        k_a, k_b, r = self.k_a, self.k_b, self.r
        v = k_a / (np.sqrt((k_a + k_b) * (k_b + k_a * r)) - k_b)
        top = (r * v * (k_a + k_b)) ** (1 / k_a) + 1  # there T exceeds what the right side is at y = 1
        y = roots_between(lambda y: r * v * (k_a + k_b * v / y) - (y**k_a + k_a - 1 + k_b * v), np.ones_like(r), top)
        return v / y

    def _signed(self, w: Vector) -> tuple[Vector, Vector]:
        k_a, k_b, r = self.k_a, self.k_b, self.r
        K = k_a + k_b

        def excess(y: Vector) -> Vector:  # concave, positive at y = 1: one root above
            v = w * y
            bend = np.maximum(k_a + 2 * k_b * v - k_b * v**2, 0.0)
            return np.sqrt(r / K * bend) * (k_a + k_b * w) - (y**k_a + k_a - 1 + k_b * v)

        # the root of the parabola in v; and where y^k_A alone exceeds the largest right side
        top = np.minimum((1 + np.sqrt(1 + k_a / k_b)) / w, (K * np.sqrt(r * K)) ** (1 / k_a) + 1)
        y = roots_between(excess, np.ones_like(top), top)
        T = y**k_a + k_a - 1 + k_b * w * y
        return (k_a + k_b * w * y) / T, r * w * y / T - 1 / (k_a + k_b * w)

    def _nonnegative(self, w: Vector) -> tuple[Vector, Vector, NDArray[np.bool_]]:
        """Also whether no two residual columns make an acute angle."""
        k_a, k_b, r = self.k_a, self.k_b, self.r
        g = 1 / (k_a + k_b * w)  # p_AB; a class of B has w g
        q = w * g
        level = np.sqrt(((1 - q) ** 2 + (k_b - 1) * q**2 + k_a * g**2) / r)

        def column(ratio: Vector) -> tuple[Vector, Vector]:
            """p_sibling and p_own on ||e - p|| = level, p_foreign = ratio p_sibling."""
            rest = k_a - 1 + k_b * ratio
            sibling = level / np.sqrt(rest**2 + k_a - 1 + k_b * ratio**2)
            return sibling, 1 - rest * sibling

        def excess(ratio: Vector) -> Vector:  # log p + mu p is the same for siblings and foreigners, up to the bias
            sibling, own = column(ratio)
            mu = np.log(np.maximum(own / sibling, 1e-300)) / (1 - own + sibling)
            return mu * sibling * (1 - ratio) - np.log(ratio / w)

        ratio = roots_between(excess, w, np.ones_like(level))
        sibling, own = column(ratio)
        by_bias_alone = np.sqrt((1 - g) ** 2 + (k_a - 1) * g**2 + k_b * q**2) <= level
        sibling, own = np.where(by_bias_alone, g, sibling), np.where(by_bias_alone, g, own)
        f = np.where(by_bias_alone, q, ratio * sibling)
        angles = (  # products of two residual columns: both from A, both from B, one from each
            np.where(k_a > 1, -2 * sibling + 2 * own * sibling + (k_a - 2) * sibling**2 + k_b * f**2, 0.0),
            np.where(k_b > 1, -2 * q + k_b * q**2 + k_a * g**2, 0.0),
            -g - f + g * (own + (k_a - 1) * sibling) + k_b * f * q,
        )
        return level, r * f - g, np.maximum.reduce(np.broadcast_arrays(*angles)) <= 0


def vanish_boundary(
    k_a: int, k_b: int, n_a: float, n_b: float, lambda_b: ArrayLike, features: FeatureModel = "signed"
) -> VanishBoundary:
    """The map lambda*(lambda_b): where the minority vanishes, for each penalty of the bias.

    Args:
        k_a: majority classes, >= 2 for signed features (the columns of a single majority class vanish together with the
            minority's, at complete collapse).
        k_b: minority classes, >= 1.
        n_a: samples of a majority class, > n_b.
        n_b: samples of a minority class, > 0.
        lambda_b: penalties, >= 0; 0: free bias, inf: no bias.
        features: the model; nonnegative: in column form, see ``exact``.

    Returns:
        One point per penalty, to about 1e-13.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> vanish_boundary(5, 5, 500, 100, [0, 0.02, float("inf")]).lambda_z.round(6)
        array([0.004048, 0.003983, 0.004605])
    """
    curve = _checked(k_a, k_b, n_a, n_b, features)
    price = np.atleast_1d(np.asarray(lambda_b, dtype=np.float64))
    if price.ndim != 1 or not (price >= 0).all():
        raise ValueError(f"`lambda_b` must be a list of numbers >= 0, got {lambda_b!r}")
    N, K = k_a * n_a + k_b * n_b, k_a + k_b
    x_free = -np.log(curve.free(features))

    finite = np.where(price < np.inf, price, 1.0)

    def excess(s: Vector) -> Vector:  # s = 0 free, 1 no bias
        x = x_free * (1 - s)
        return finite * x - curve.point(np.exp(-x), features)[1] * (K * n_b / N)

    inner = roots_between(excess, np.zeros_like(price), np.ones_like(price))
    x = x_free * (1 - np.where(price == 0, 0.0, np.where(price == np.inf, 1.0, inner)))
    w = np.exp(-x)
    exact = np.ones(w.shape, dtype=bool) if features == "signed" else curve._nonnegative(w)[2]
    return VanishBoundary(price, curve.point(w, features)[0] * np.sqrt(n_a) / N, x, exact)


def lowest_vanish(k_a: int, k_b: int, n_a: float, n_b: float) -> tuple[float, float]:
    """The penalty of the bias at which merged minority classes vanish earliest (signed features), and lambda* there.

    Args:
        k_a: >= 2.
        k_b: >= 1.
        n_a: > n_b.
        n_b: > 0.

    Returns:
        lambda_b and lambda*.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> [round(v, 6) for v in lowest_vanish(5, 5, 500, 100)]
        [0.030048, 0.003979]
    """
    from scipy.optimize import minimize_scalar

    curve = _checked(k_a, k_b, n_a, n_b, "signed")
    N, K = k_a * n_a + k_b * n_b, k_a + k_b
    x_free = -np.log(curve.free("signed"))
    # a smooth minimum: places closer than 1e-8 of the range cannot be told apart
    x = np.array(
        minimize_scalar(
            lambda at: float(curve.point(np.exp(-np.array(at)), "signed")[0]),
            bounds=(0.0, float(x_free)),
            method="bounded",
            options={"xatol": 1e-9 * float(x_free)},
        ).x
    )
    level, pull = curve.point(np.exp(-x), "signed")
    return float(pull * K * n_b / (N * x)), float(level * np.sqrt(n_a) / N)


def _checked(k_a: int, k_b: int, n_a: float, n_b: float, features: FeatureModel) -> BoundaryCurve:
    if features not in get_args(FeatureModel):
        raise ValueError(f'`features` must be "signed" or "nonnegative", got {features!r}')
    least = 2 if features == "signed" else 1
    for name, value, low in (("k_a", k_a, least), ("k_b", k_b, 1)):
        if not value >= low or int(value) != value:
            raise ValueError(f"`{name}` must be a whole number >= {low}, got {value!r}")
    if not 0 < n_b < n_a < np.inf:
        raise ValueError(f"`n_a` must be larger than `n_b` > 0 and finite, got {n_a!r} and {n_b!r}; A is the majority")
    return BoundaryCurve(np.array(float(k_a)), np.array(float(k_b)), np.array(n_a / n_b))
