"""Features of unit length: min loss + (c/2)||W||^2 + bias penalty over W, b and ||h_k|| = 1, on the quotient.

The program is convex in (Z, b) (docs/theory/normalized.md); its factors are found by Newton's method
(:mod:`.sphere_newton`). With as many directions as clusters every second-order point is the optimum, and the
certificate of :mod:`.normalized_certificate` says of any point how far off it is.

Coordinates: E = W on the cluster directions, F = H there, both (J, J); v and u their contrasts inside clusters,

    X = E'F,    y = v u / sqrt(k - 1),    ||F_j||^2 + u_j^2 = k_j,    ||W||^2 = ||E||^2 + ||v||^2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import get_lapack_funcs

from collapsar.core.types import Matrix, Vector
from collapsar.solver.certificate import GAP_FLOOR
from collapsar.solver.objective import Columns, Residual, logit_differences, predict, residual
from collapsar.solver.symmetry import Blocks, Quotient

(_gesdd,) = get_lapack_funcs(("gesdd",), dtype=np.float64)

NOISE = 1e-15  # relative rounding of the objective
_SHORTEST = 1e-150  # of W
_LEAST_HELD = 1e-9  # of the largest multiplier: less would drown the other units of a step
_LEAST = 1e-12  # nats: W is taken to cost at least this
_NEAR = 0.1  # nats: logits that move less give the change of the loss to its own digits


@dataclass(frozen=True)
class NormalizedQuotient:
    """The program per cluster.

    Attributes:
        q: the clusters, every mass 1, with row penalties taken into the scales.
        price: c, penalty of W for features of unit length.
        gain: if the length is priced, sqrt(lambda_w lambda_gain), the factor of gamma(Z) in place of ``price``; None
            if it is given.
    """

    q: Quotient
    price: float
    gain: float | None = None

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias."""
        return self.q.lambda_b < np.inf

    def cost(self, weight: float) -> float:
        """What a head with ||W||^2 = ``weight`` costs."""
        return 0.5 * self.price * weight if self.gain is None else self.gain * float(np.sqrt(weight))

    def price_at(self, weight: float) -> float:
        """Twice the derivative of :meth:`cost`."""
        return self.price if self.gain is None else self.gain / max(float(np.sqrt(weight)), _SHORTEST)

    def lagrangian(self, y: Vector) -> Quotient:
        """The Lagrangian at multipliers y / price, but for sum(y) / (2 price): a program with a feature penalty."""
        return replace(self.q, mass=y, lambda_z=1.0)


@dataclass(frozen=True)
class Spheres:
    """Factors on the quotient: E, F of shape (r, J), r <= J directions; v, u, b of shape (J,). See the module."""

    E: Matrix
    F: Matrix
    v: Vector
    u: Vector
    b: Vector

    def blocks(self, q: Quotient) -> Blocks:
        """Z and b per cluster."""
        return Blocks(self.v * self.u / np.maximum(q.sizes - 1, 1.0), (self.E.T @ self.F) / q.weight, self.b)

    def weight_norm(self) -> float:
        """||W||^2."""
        return float(np.sum(self.E**2) + np.sum(self.v**2))

    def moved(self, q: Quotient, step: tuple[Matrix, Matrix, Vector, Vector, Vector], length: float) -> Spheres:
        """The factors moved along a step and put back on the spheres."""
        dE, dF, dv, du, db = step
        F, u = self.F + length * dF, self.u + length * du
        scale = np.sqrt(q.sizes / (np.sum(F**2, axis=0) + u**2))
        return Spheres(self.E + length * dE, F * scale, self.v + length * dv, u * scale, self.b + length * db)


@dataclass(frozen=True)
class SpherePoint:
    """Factors with what follows from them: objective, softmax, residual, and nu, the multipliers of the spheres."""

    n: NormalizedQuotient
    x: Spheres
    value: float
    P: Columns
    R: Residual
    nu: Vector

    @cached_property
    def price(self) -> float:
        """The price c: if the length is priced, that at which ||W||^2 costs as much at the margin."""
        return self.n.price_at(self.x.weight_norm())

    @cached_property
    def hold(self) -> Vector:
        """The multipliers, or half of what they are at least at the optimum, where price nu >= ||r||^2."""
        q = self.n.q
        squares = np.sum(self.R.between**2, axis=0) + (q.sizes - 1) * self.R.within**2
        found = np.maximum(self.nu, squares / (2 * q.sizes * self.price))  # zero where a smoothed target is met
        return np.maximum(found, max(_LEAST_HELD * float(np.max(found)), 1e-300))

    @cached_property
    def spectrum(self) -> tuple[Matrix, Vector, Matrix]:
        """R diag(hold)^(-1/2) / sqrt(c) as U, sigma, V'."""
        return _gesdd(self.R.between / np.sqrt(self.price * self.hold))[:3]


def sphere_point(n: NormalizedQuotient, x: Spheres) -> SpherePoint:
    """The point at these factors."""
    q = n.q
    P, loss = predict(q, x.blocks(q))
    R = residual(q, P)
    nu = (np.sum(x.F * (x.E @ R.between), axis=0) + x.u * R.within * x.v) / q.sizes
    return SpherePoint(n, x, loss + n.cost(x.weight_norm()) + q.bias_cost(x.b), P, R, nu)


def sphere_start(n: NormalizedQuotient) -> Spheres:
    """The simplex, with the head of the best length."""
    q = n.q
    J, K = q.num_clusters, q.num_classes
    root = np.sqrt(q.sizes)
    F, u = np.eye(J) - np.outer(root, root) / K, np.sqrt(q.sizes - 1)
    scale = root / np.maximum(np.sqrt(np.sum(F**2, axis=0) + u**2), 1e-300)
    F, u = (F * scale, u * scale) if K > 1 else (np.ones((1, 1)), u)

    def value(x: Spheres) -> float:
        return predict(q, x.blocks(q))[1] + n.cost(x.weight_norm())

    # far from balance a softmax is flat: offsets are met by the bias where there is one
    b = np.zeros(J) if not n.has_bias or np.ptp(q.offsets) == 0 else (np.mean(q.offsets) - q.offsets) / q.scales
    sizes = (
        np.geomspace(0.3, 10.0, 4) if J <= 4 else np.geomspace(0.1, 30.0, 8)
    )  # with few clusters a look costs as much as a step
    return min((Spheres(s * F, F, s * u, u, b) for s in sizes), key=value)


def size_of(p: SpherePoint) -> float:
    """What the objective is measured in: itself, or the price of W where decay leaves features little to gain."""
    return max(min(max(abs(p.value), GAP_FLOOR), p.price * p.x.weight_norm()), _LEAST)


def gained(p: SpherePoint, new: SpherePoint) -> float:
    """By how much the objective falls from a point to a nearby one, to the digits of the difference."""
    n, q, x, y = p.n, p.n.q, p.x, new.x
    old, far = x.blocks(q), y.blocks(q)
    moved = logit_differences(q, Blocks(far.alpha - old.alpha, far.C - old.C, far.b - old.b))
    if not float(np.max(np.abs(moved))) < _NEAR:
        return p.value - new.value
    loss = np.log1p(np.sum(q.others * p.P.other * np.expm1(moved), axis=0))
    if q.smoothing:
        loss -= q.smoothing / q.num_classes * np.sum(q.others * moved, axis=0)
    rise = float((q.sizes * q.share) @ loss)
    price = n.price if n.gain is None else 2 / (1 / p.price + 1 / new.price)
    rise += 0.5 * price * (y.weight_norm() - x.weight_norm())
    return -rise - 0.5 * float(q.bias_weight @ ((y.b - x.b) * (y.b + x.b)))
