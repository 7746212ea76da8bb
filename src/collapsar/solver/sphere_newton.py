"""Newton's method on the spheres of :mod:`.spheres`: dense steps for a few clusters, conjugate gradients for many.

The factors may be turned by any rotation of the J directions. With F symmetric, as at the start, direction i belongs to
cluster i, E F is nearly diagonal, and the diagonal of the second derivative is a good preconditioner.

The second derivative is made convex: what may bend it downwards is R between the factors, which at the optimum has no
singular value above one in units of sqrt(c) and sqrt(nu). So larger ones are replaced by their inverses, and every step
goes downhill; at the optimum nothing is replaced, and Newton's method squares the error. With many clusters it is left
as it is: conjugate gradients end where it bends downwards, and more of them would cost more than they gain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs

from collapsar.core.types import Matrix, Vector
from collapsar.solver.conjugate_gradients import ModelStep, next_radius, truncated_newton
from collapsar.solver.hessian import LossHessian, loss_hessian
from collapsar.solver.sphere_directions import BalancedFactors, balanced_factors
from collapsar.solver.spheres import NOISE, SpherePoint, gained, size_of, sphere_point

(_posv,) = get_lapack_funcs(("posv",), dtype=np.float64)

DENSE = 10  # clusters up to which all of the second derivative costs less than conjugate gradients
_SMALL = 64  # clusters up to which float64 costs nothing in the conjugate gradients, and steps are better made convex
_BALANCED = 1e-3  # decrement below which factors are near enough to balance for its preconditioner
_ENOUGH = 1e-2  # with many clusters a step need not be better than this: the certificate is of second order
_NULL = 1e-11  # curvature given to turning the directions, which has none
_LEAST_LEFT = 1e-9  # of the curvature along W, where its price bends the other way


@dataclass(frozen=True)
class _System:
    """Gradient, convex second derivative and its diagonal; arrays in the precision of the conjugate gradients.

    Attributes:
        head: for a priced length, W over its length: along it the price is linear; None if the length is given.
    """

    p: SpherePoint
    loss: LossHessian
    width: Vector
    E: Matrix
    F: Matrix
    R: Matrix
    within: Vector
    nu: Vector
    stiff: tuple[Matrix, Matrix, Vector, Vector, Vector]
    gradient: Vector
    inward: tuple[Matrix, Vector]
    head: Vector | None
    balanced: BalancedFactors | None = None

    def split(self, flat: Vector) -> tuple[Matrix, Matrix, Vector, Vector, Vector]:
        J, shape = self.width.size, self.E.shape
        n = self.E.size
        E, F, rest = flat[:n].reshape(shape), flat[n : 2 * n].reshape(shape), flat[2 * n :]
        return E, F, rest[:J], rest[J : 2 * J], rest[2 * J :]

    def apply(self, flat: Vector) -> Vector:
        n, x, within, c, nu = self.p.n, self.p.x, self.within, self.p.price, self.nu
        dE, dF, dv, du, db = self.split(flat)
        hX, hy, hb = self.loss.apply(dE.T @ self.F + self.E.T @ dF, (dv * x.u + x.v * du) / self.width, db)
        hX = hX.astype(flat.dtype, copy=False)
        hE = self.F @ hX.T - dF @ self.R.T + dE * flat.dtype.type(c)
        hF = self.E @ hX - dE @ self.R + dF * nu.astype(flat.dtype, copy=False)
        hv = hy * x.u / self.width - within * du + c * dv
        hu = hy * x.v / self.width - within * dv + nu * du
        hb = hb + n.q.bias_weight * db if n.has_bias else np.zeros_like(hb)
        out = _joined(flat.dtype, hE, *self._tangent(hF, hv, hu), hb)
        return out if self.head is None else out - flat.dtype.type(c * (self.head @ flat)) * self.head

    def precondition(self, flat: Vector) -> Vector:
        E, F, v, u, b = self.split(flat)
        balanced = self.balanced
        if balanced is not None:
            E, F = balanced.without_turn(E, F)
        F, v, u = self._tangent(F, v, u)  # rounding is not tangent
        E, F = (E / self.stiff[0], F / self.stiff[1]) if balanced is None else balanced.solve(E, F)
        F, v, u = self._tangent(F, v / self.stiff[2], u / self.stiff[3])
        if balanced is not None:
            E, F = balanced.without_turn(E, F)
        n, q = self.p.n, self.p.n.q
        b = q.without_shift(q.without_shift(b) / self.stiff[4]) if n.has_bias else np.zeros_like(b)
        return _joined(flat.dtype, E, F, v, u, b)

    def _tangent(self, F: Matrix, v: Vector, u: Vector) -> tuple[Matrix, Vector, Vector]:
        Fk, uk = self.inward
        along = (Fk * F).sum(axis=0) + uk * u
        return F - self.F * along.astype(F.dtype, copy=False), v, u - self.p.x.u * along


def _joined(dtype: Any, *parts: Any) -> Vector:
    return np.concatenate([part.ravel() for part in parts], dtype=dtype, casting="same_kind")


def _system(p: SpherePoint) -> _System:
    n, q, x, R, c, hold = p.n, p.n.q, p.x, p.R, p.price, p.hold
    loss = loss_hessian(q, p.P)
    width, D = np.sqrt(np.maximum(q.sizes - 1, 1.0)), loss.diagonal
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
    between, within, nu = R.between, R.within, p.nu
    if q.num_clusters <= _SMALL:
        U, sigma, Vt = p.spectrum
        between = (U * np.minimum(sigma, 1 / np.maximum(sigma, 1e-300))) @ Vt * np.sqrt(c * hold)
        within, nu = np.minimum(within, c * hold / np.maximum(within, 1e-300)), hold
    E, F, between = (part.astype(work) for part in (x.E, x.F, between))
    inward = (x.F / q.sizes).astype(work), x.u / q.sizes
    head = None
    if n.gain is not None:
        head = _joined(work, (c / n.gain) * x.E, 0 * x.F, (c / n.gain) * x.v, 0 * x.u, 0 * x.b)
    return _System(p, loss.astype(work), width, E, F, between, within, nu, stiff, gradient, inward, head)


def newton_step(p: SpherePoint, radius: float) -> tuple[SpherePoint, float, float]:
    """One step of Newton's method in a trust region.

    Returns:
        The new point, the next radius, and the decrement <g, P^-1 g> before the step relative to the objective: about
        twice what is left to gain. A point that no step improves is returned as it was.
    """
    s, size, J = _system(p), size_of(p), p.n.q.num_clusters
    if J <= DENSE:
        move = _dense_step(s)
        return *_moved(s, move, 1.0, radius), -move.slope / size
    work = s.E.dtype
    # in units in which single precision cannot underflow
    unit = float(np.max(np.abs(s.gradient))) or 1.0
    g = (s.gradient / unit).astype(work)
    decrement = own = abs(float(g.astype(np.float64) @ s.precondition(g).astype(np.float64))) * unit * unit / size
    forcing = max(min(0.1, decrement**0.4), 1e-4 if work == np.float32 else 1e-6)
    if decrement <= _BALANCED and s.E.shape[0] < J:
        s = replace(s, balanced=balanced_factors(p, s.loss.diagonal).astype(work))
        own = abs(float(g.astype(np.float64) @ s.precondition(g).astype(np.float64))) * unit * unit / size
        forcing = max(forcing, _ENOUGH)
    # the region is kept in units of the diagonal preconditioner
    ratio = np.sqrt(own / decrement) if own > decrement > 0 else 1.0
    radius = radius * ratio
    move = truncated_newton(s.apply, s.precondition, g, radius=radius / unit, forcing=forcing, indefinite=True)
    new, radius = _moved(s, move, unit, radius)
    return new, radius / ratio, decrement


def _moved(s: _System, move: ModelStep, unit: float, radius: float) -> tuple[SpherePoint, float]:
    """The point after a step in units of ``unit``, shortened until it does as the model says; and the next radius."""
    p, size = s.p, size_of(s.p)
    parts = s.split(move.v.astype(np.float64) * unit)
    slope, curvature, norm = move.slope * unit * unit, move.curvature * unit * unit, move.norm * unit
    # logits are resolved to the digits of the bias, which decay does not make small
    noise = 10 * NOISE * size + NOISE * float(np.max(np.abs(p.x.b)))
    length, agreement, new = 1.0, 0.0, p
    while length > 1e-10:
        predicted = -(slope + 0.5 * length * curvature) * length
        new = sphere_point(p.n, p.x.moved(p.n.q, parts, length))
        agreement = (gained(p, new) + noise) / (predicted + noise)
        if agreement > 1e-4:
            break
        length /= 2
    else:
        return p, radius
    return new, next_radius(radius, norm, length, agreement)


def _dense_step(s: _System) -> ModelStep:
    """The Newton step for a few clusters, in units in which the diagonal is about one.

    It leaves out the spheres' normals and the shift of a free bias. The loss's part is A' diag(p) A - B'B per sample,
    with A the logits' differences from the own class's and B their mean.
    """
    n, x, J, loss, c = s.p.n, s.p.x, s.width.size, s.loss, s.p.price
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
    H[iE[:, :, None], iF[:, None, :]] -= s.R
    H[iF[:, None, :], iE[:, :, None]] -= s.R
    H[iv, iu] -= s.within
    H[iu, iv] -= s.within
    H[places, places] += _joined(np.float64, c + 0 * x.E, 0 * x.F + s.nu, c + 0 * x.v, s.nu, n.q.bias_weight)
    scale = 1 / np.sqrt(_joined(np.float64, *s.stiff))
    H *= scale * scale[:, None]
    normals = np.zeros((J + (n.q.lambda_b == 0), N))
    normals[on, iF], normals[on, iu] = x.F, x.u
    if n.q.lambda_b == 0:
        normals[J, ib] = 1 / n.q.scales
    normals *= scale
    normals /= np.sqrt((normals**2).sum(axis=1))[:, None]
    across, slope = H @ normals.T, scale * s.gradient
    H -= across @ normals
    H -= normals.T @ (across.T - (normals @ across + np.eye(len(normals))) @ normals)  # one along the normals
    slope -= (normals @ slope) @ normals
    if not n.has_bias:
        H[ib], H[:, ib], slope[ib] = 0.0, 0.0, 0.0
        H[ib, ib] = 1.0
    H[places, places] += _NULL
    if s.head is None:
        step = _posv(H, -slope)[1]
    else:  # as steep along W as convexity allows
        along = np.sqrt(c) * scale * s.head
        step, less = _posv(H, -np.stack([slope, along], axis=1))[1].T
        left = 1 + along @ less
        if left > _LEAST_LEFT:
            step = step - (along @ step) / left * less
            H -= np.outer(along, along)
    return ModelStep(scale * step, float(slope @ step), float(step @ H @ step), float(np.sqrt(step @ step)))
