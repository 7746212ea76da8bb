"""Features of unit length: min loss + (c/2)||W||^2 + bias penalty over W, b and ||h_k|| = 1, on the quotient.

The program is convex in (Z, b) (docs/theory/normalized.md); its factors are found by Newton's method on the spheres.
With as many directions as clusters every second-order point is the optimum, and the certificate of
:mod:`.normalized_certificate` says of any point how far it is.

Coordinates: E = W on the cluster directions, F = H there, both (J, J); v and u their contrasts inside clusters,

    X = E'F,    y = v u / sqrt(k - 1),    ||F_j||^2 + u_j^2 = k_j,    ||W||^2 = ||E||^2 + ||v||^2.

The factors may be turned by any rotation of the J directions. With F symmetric, as at the start, direction i belongs to
cluster i, E F is nearly diagonal, and the diagonal of the second derivative is a good preconditioner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.certificate import GAP_FLOOR
from collapsar.solver.conjugate_gradients import ModelStep, next_radius, truncated_newton
from collapsar.solver.hessian import LossHessian, loss_hessian
from collapsar.solver.objective import Columns, Residual, logit_differences, predict, residual
from collapsar.solver.sphere_directions import BalancedFactors, balanced_factors, directions, held
from collapsar.solver.symmetry import Blocks, Quotient

_NOISE = 1e-15  # relative rounding of the objective
_LEAST = 1e-12  # nats that W may cost at least
_NEAR = 0.1  # nats: logits that move less give the change of the loss to its own digits
_BALANCED = 1e-3  # decrement from which on factors are near enough to balance for its preconditioner
_ENOUGH = 1e-2  # with many clusters a step need not be better than this: the certificate is of second order
PATIENCE = 3  # times that directions are added before none is dropped any more
DENSE = 4  # clusters up to which all of the second derivative costs less than conjugate gradients
_NULL = 1e-12  # relative eigenvalue of turning the directions
_SMALL = 64  # clusters up to which float64 costs nothing in the conjugate gradients


@dataclass(frozen=True)
class NormalizedQuotient:
    """The program per cluster.

    Attributes:
        q: the clusters, every mass 1, with row penalties taken into the scales.
        price: c, penalty of W for features of unit length.
        gain: where the length is priced, sqrt(lambda_w lambda_gain), the factor of gamma(Z) in place of ``price``; None
            where it is given.
    """

    q: Quotient
    price: float
    gain: float | None = None

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias."""
        return self.q.lambda_b < np.inf

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
        """Along a step, back on the spheres."""
        dE, dF, dv, du, db = step
        F, u = self.F + length * dF, self.u + length * du
        scale = np.sqrt(q.sizes / (np.sum(F**2, axis=0) + u**2))
        return Spheres(self.E + length * dE, F * scale, self.v + length * dv, u * scale, self.b + length * db)


@dataclass(frozen=True)
class SpherePoint:
    """Factors with what follows from them: objective, softmax, residual, and nu, the multipliers of the spheres."""

    x: Spheres
    value: float
    P: Columns
    R: Residual
    nu: Vector


def sphere_point(n: NormalizedQuotient, x: Spheres) -> SpherePoint:
    """The point at these factors."""
    q = n.q
    P, loss = predict(q, x.blocks(q))
    R = residual(q, P)
    nu = (np.sum(x.F * (x.E @ R.between), axis=0) + x.u * R.within * x.v) / q.sizes
    return SpherePoint(x, loss + 0.5 * n.price * x.weight_norm() + q.bias_cost(x.b), P, R, nu)


def sphere_start(n: NormalizedQuotient) -> Spheres:
    """The simplex, with the head of the best length."""
    q = n.q
    J, K = q.num_clusters, q.num_classes
    root = np.sqrt(q.sizes)
    F, u = np.eye(J) - np.outer(root, root) / K, np.sqrt(q.sizes - 1)
    scale = root / np.maximum(np.sqrt(np.sum(F**2, axis=0) + u**2), 1e-300)
    F, u = (F * scale, u * scale) if K > 1 else (np.ones((1, 1)), u)

    def value(x: Spheres) -> float:
        return predict(q, x.blocks(q))[1] + 0.5 * n.price * x.weight_norm()

    # far from balance a softmax is flat: offsets are met by the bias where there is one
    b = np.zeros(J) if not n.has_bias or np.ptp(q.offsets) == 0 else (np.mean(q.offsets) - q.offsets) / q.scales
    sizes = (
        np.geomspace(0.3, 10.0, 4) if J <= 4 else np.geomspace(0.1, 30.0, 8)
    )  # of few, a look costs as much as a step
    return min((Spheres(s * F, F, s * u, u, b) for s in sizes), key=value)


@dataclass(frozen=True)
class _System:
    """Gradient, second derivative and its diagonal at a point; arrays in the precision of the conjugate gradients."""

    n: NormalizedQuotient
    p: SpherePoint
    loss: LossHessian
    width: Vector
    E: Matrix
    F: Matrix
    R: Matrix
    nu: Vector
    stiff: tuple[Matrix, Matrix, Vector, Vector, Vector]
    gradient: Vector
    inward: tuple[Matrix, Vector]
    balanced: BalancedFactors | None = None

    def split(self, flat: Vector) -> tuple[Matrix, Matrix, Vector, Vector, Vector]:
        J, shape = self.width.size, self.E.shape
        n = self.E.size
        E, F, rest = flat[:n].reshape(shape), flat[n : 2 * n].reshape(shape), flat[2 * n :]
        return E, F, rest[:J], rest[J : 2 * J], rest[2 * J :]

    def apply(self, flat: Vector) -> Vector:
        n, x, within = self.n, self.p.x, self.p.R.within
        dE, dF, dv, du, db = self.split(flat)
        hX, hy, hb = self.loss.apply(dE.T @ self.F + self.E.T @ dF, (dv * x.u + x.v * du) / self.width, db)
        hX = hX.astype(flat.dtype, copy=False)
        hE = self.F @ hX.T - dF @ self.R.T + dE * flat.dtype.type(n.price)
        hF = self.E @ hX - dE @ self.R + dF * self.nu
        hv = hy * x.u / self.width - within * du + n.price * dv
        hu = hy * x.v / self.width - within * dv + self.p.nu * du
        hb = hb + n.q.bias_weight * db if n.has_bias else np.zeros_like(hb)
        return _joined(flat.dtype, hE, *self._tangent(hF, hv, hu), hb)

    def precondition(self, flat: Vector) -> Vector:
        E, F, v, u, b = self.split(flat)
        balanced = self.balanced
        if balanced is not None:
            E, F = balanced.without_turn(E, F)
        F, v, u = self._tangent(F, v, u)  # rounding is not
        E, F = (E / self.stiff[0], F / self.stiff[1]) if balanced is None else balanced.solve(E, F)
        F, v, u = self._tangent(F, v / self.stiff[2], u / self.stiff[3])
        if balanced is not None:
            E, F = balanced.without_turn(E, F)
        q = self.n.q
        b = q.without_shift(q.without_shift(b) / self.stiff[4]) if self.n.has_bias else np.zeros_like(b)
        return _joined(flat.dtype, E, F, v, u, b)

    def _tangent(self, F: Matrix, v: Vector, u: Vector) -> tuple[Matrix, Vector, Vector]:
        Fk, uk = self.inward
        along = (Fk * F).sum(axis=0) + uk * u
        return F - self.F * along.astype(F.dtype, copy=False), v, u - self.p.x.u * along


def _joined(dtype: Any, *parts: Any) -> Vector:
    return np.concatenate([part.ravel() for part in parts], dtype=dtype, casting="same_kind")


def _system(n: NormalizedQuotient, p: SpherePoint) -> _System:
    q, x, R, c = n.q, p.x, p.R, n.price
    loss = loss_hessian(q, p.P)
    width, D = np.sqrt(np.maximum(q.sizes - 1, 1.0)), loss.diagonal
    hold = held(n, p)
    work: Any = np.float32 if q.num_clusters > _SMALL else np.float64
    stiff = (
        (c + x.F**2 @ D.T).astype(work),
        (hold + x.E**2 @ D).astype(work),
        c + loss.within_diagonal * (x.u / width) ** 2,
        hold + loss.within_diagonal * (x.v / width) ** 2,
        np.maximum(loss.bias_diagonal + q.bias_weight, 1e-300),
    )
    gradient = _joined(
        np.float64,
        c * x.E - x.F @ R.between.T,
        x.F * p.nu - x.E @ R.between,
        c * x.v - R.within * x.u,
        x.u * p.nu - R.within * x.v,
        q.bias_weight * x.b - q.sizes * R.bias if n.has_bias else np.zeros_like(x.b),
    )
    E, F, between, nu = (part.astype(work) for part in (x.E, x.F, R.between, p.nu))
    inward = (x.F / q.sizes).astype(work), x.u / q.sizes
    return _System(n, p, loss.astype(work), width, E, F, between, nu, stiff, gradient, inward)


def newton_step(n: NormalizedQuotient, p: SpherePoint, radius: float) -> tuple[SpherePoint, float, float]:
    """One step of Newton's method in a trust region.

    Returns:
        The new point, the next radius, and the decrement <g, P^-1 g> before the step relative to the objective: about
        twice what is left to gain. A point that no step improves comes back as it was.
    """
    s, size = _system(n, p), _size(n, p)
    if n.q.num_clusters <= DENSE:
        move = _dense_step(s)
        return *_moved(n, p, s, move, 1.0, radius), -move.slope / size
    work = s.E.dtype
    # in units in which single precision cannot underflow
    unit = float(np.max(np.abs(s.gradient))) or 1.0
    g = (s.gradient / unit).astype(work)
    decrement = own = float(g.astype(np.float64) @ s.precondition(g).astype(np.float64)) * unit * unit / size
    forcing = max(min(0.1, decrement**0.4), 1e-4 if work == np.float32 else 1e-6)
    if decrement <= _BALANCED and s.E.shape[0] < n.q.num_clusters:
        s = replace(s, balanced=balanced_factors(n, p, s.loss.diagonal).astype(work))
        own = float(g.astype(np.float64) @ s.precondition(g).astype(np.float64)) * unit * unit / size
        forcing = max(forcing, _ENOUGH)
    # the region is kept in units of the diagonal preconditioner
    ratio = np.sqrt(own / decrement) if own > decrement > 0 else 1.0
    radius = radius * ratio
    most = min(500, 2 * g.size)  # a few clusters have few unknowns: beyond is rounding
    move = truncated_newton(
        s.apply, s.precondition, g, radius=radius / unit, forcing=forcing, max_iterations=most, indefinite=True
    )
    new, radius = _moved(n, p, s, move, unit, radius)
    return new, radius / ratio, decrement


def _moved(
    n: NormalizedQuotient, p: SpherePoint, s: _System, move: ModelStep, unit: float, radius: float
) -> tuple[SpherePoint, float]:
    """The point after a step in units of ``unit``, shortened until it does as the model says; and the next radius."""
    size = _size(n, p)
    parts = s.split(move.v.astype(np.float64) * unit)
    slope, curvature, norm = move.slope * unit * unit, move.curvature * unit * unit, move.norm * unit
    # logits move to the digits of the bias, which decay does not make small
    noise = 10 * _NOISE * size + _NOISE * float(np.max(np.abs(p.x.b)))
    length, agreement, new = 1.0, 0.0, p
    while length > 1e-10:
        predicted = -(slope + 0.5 * length * curvature) * length
        new = sphere_point(n, p.x.moved(n.q, parts, length))
        agreement = (_gained(n, p, new) + noise) / (predicted + noise)
        if agreement > 1e-4:
            break
        length /= 2
    else:
        return p, radius
    return new, next_radius(radius, norm, length, agreement)


def _size(n: NormalizedQuotient, p: SpherePoint) -> float:
    """What the objective is measured in: itself, or the price of W where decay leaves features little to gain."""
    price = n.price * p.x.weight_norm()
    return max(min(max(abs(p.value), GAP_FLOOR), price), _LEAST)


def _gained(n: NormalizedQuotient, p: SpherePoint, new: SpherePoint) -> float:
    """By how much the objective falls from a point to a near one, to the digits of the difference."""
    q, x, y = n.q, p.x, new.x
    old, far = x.blocks(q), y.blocks(q)
    moved = logit_differences(q, Blocks(far.alpha - old.alpha, far.C - old.C, far.b - old.b))
    if not float(np.max(np.abs(moved))) < _NEAR:
        return p.value - new.value
    loss = np.log1p(np.sum(q.others * p.P.other * np.expm1(moved), axis=0))
    if q.smoothing:
        loss -= q.smoothing / q.num_classes * np.sum(q.others * moved, axis=0)
    rise = float((q.sizes * q.share) @ loss)
    rise += 0.5 * n.price * (y.weight_norm() - x.weight_norm())
    return -rise - 0.5 * float(q.bias_weight @ ((y.b - x.b) * (y.b + x.b)))


def _dense_step(s: _System) -> ModelStep:
    """Newton's step of a few clusters from the eigenvalues of the second derivative, by their size.

    In units in which its diagonal is about one; without the spheres' normals and the shift of a free bias. The loss's
    part is A' diag(p) A - B'B per sample, A the logits' differences to the own class and B their mean.
    """
    n, p, x, J, loss, c = s.n, s.p, s.p.x, s.width.size, s.loss, s.n.price
    N, on = s.gradient.size, np.arange(J)
    places: Any = np.arange(N)
    split: Any = s.split(places)
    iE, iF, iv, iu, ib = split
    A, contrast = np.zeros((J, J, N)), np.zeros((J, N))
    A[on[:, None], on, iE[:, :, None]] = x.F[:, None, :]
    A[on[:, None], on, iF[:, None, :]] = x.E[:, :, None]
    A *= loss.to_logit[:, :, None]
    contrast[on, iv], contrast[on, iu] = loss.to_contrast * x.u / s.width, loss.to_contrast * x.v / s.width
    A[on, :, ib] += n.q.scales[:, None]
    own = A[on, on] + contrast * loss.rest[:, None]
    A[on, on] -= contrast / n.q.sizes[:, None]
    A -= own
    mean, flat = np.einsum("ij,ijn->jn", loss.mass, A), A.reshape(J * J, N)
    H = flat.T @ ((loss.mass * loss.column_weight).reshape(-1, 1) * flat) - (mean.T * loss.column_weight) @ mean
    H[iE[:, :, None], iF[:, None, :]] -= p.R.between
    H[iF[:, None, :], iE[:, :, None]] -= p.R.between
    H[iv, iu] -= p.R.within
    H[iu, iv] -= p.R.within
    H[places, places] += _joined(np.float64, c + 0 * x.E, 0 * x.F + p.nu, c + 0 * x.v, p.nu, n.q.bias_weight)
    scale = 1 / np.sqrt(_joined(np.float64, *s.stiff))
    normals = np.zeros((J + 1, N))
    normals[on, iF], normals[on, iu] = x.F * scale[iF], x.u * scale[iu]
    normals[J, ib] = (n.q.lambda_b == 0) / n.q.scales / scale[ib]
    normals /= np.maximum(np.linalg.norm(normals, axis=1), 1e-300)[:, None]
    P = np.eye(N) - normals.T @ normals
    if not n.has_bias:
        P[ib, ib] = 0.0
    values, vectors = np.linalg.eigh(P @ (H * scale * scale[:, None]) @ P)
    slope = vectors.T @ (P @ (scale * s.gradient))
    curvature = np.abs(values)
    step = -np.where(curvature > _NULL * curvature.max(), slope / np.maximum(curvature, 1e-300), 0.0)
    return ModelStep(
        scale * (vectors @ step), float(slope @ step), float(values @ step**2), float(np.sqrt(step @ step))
    )


def settle_directions(
    n: NormalizedQuotient, p: SpherePoint, decrement: float, times_added: int
) -> tuple[SpherePoint, bool]:
    """The point without directions that die, where that costs no more than is left to gain, and with those it misses.

    Directions that were added several times are not dropped again: one near its threshold would come and go for ever.

    Returns:
        The point, and whether directions were added.
    """
    found = directions(n, p, decrement)
    zero = (0 * p.x.v, 0 * p.x.u, 0 * p.x.b)
    if found.kept is not None and times_added < PATIENCE:
        E, F = found.kept
        new = sphere_point(n, replace(p.x, E=E, F=F).moved(n.q, (0 * E, 0 * F, *zero), 0.0))
        p = new if _gained(n, p, new) >= -max(decrement, 1e-15) * _size(n, p) else p
    if found.missed is None:
        return p, False
    E, F = found.missed
    unit = float(np.max(np.sqrt(np.sum(F**2, axis=0) / n.q.sizes)))  # at most as long as a feature
    E, F = E / unit, F / unit
    wide = replace(p.x, E=np.vstack([p.x.E, 0 * E]), F=np.vstack([p.x.F, 0 * F]))
    step = (np.vstack([0 * p.x.E, E]), np.vstack([0 * p.x.F, F]), *zero)
    tried = [sphere_point(n, wide.moved(n.q, step, length)) for length in np.geomspace(1e-4, 1.0, 9)]
    gains = [_gained(n, p, one) for one in tried]
    best = int(np.argmax(gains))
    if not gains[best] > 0:  # too little to be seen: Newton's method follows the slope from the nearest
        room = wide.E.shape[0] <= n.q.num_clusters and gains[0] >= -10 * _NOISE * _size(n, p)
        return (tried[0], True) if room else (p, False)
    return tried[best], True
