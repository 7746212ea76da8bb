"""The program for features >= 0 in its factors: min over (W, H >= 0, b), by descent and then by Newton's method.

    loss(W'H + b) + (lambda_Z / 2)(||W||^2 + ||H||^2) + (lambda_b / 2)||b||^2

with the orbits of :class:`Atoms` as unknowns. Descent finds the directions that classes share; it stops where rounding
in the objective hides further progress, at an error of 1e-8 or so, and Newton's method on the gradient, with the
unknowns that are held at zero left out, takes over from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from collapsar.solver.conjugate_gradients import ModelStep, truncated_newton
from collapsar.solver.hessian import loss_hessian
from collapsar.solver.objective import predict, residual
from collapsar.solver.symmetry import Blocks, Quotient

__all__ = ["Atoms", "combined", "descend", "newton", "pruned"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_DESCENT_STEPS = 30  # quasi-Newton: enough to find most of the unknowns that are zero
_NEWTON_STEPS = 12
_APPROACH_STEPS = 300
_ITERATIONS = 300  # of conjugate gradients
_ROUNDING = 1e-14  # of the objective
_FRUITLESS = 0.1  # times tol^1.5: a relative gain that is none, 1e-7 for a gap of 1e-4, 1e-10 for 1e-6
_SHORTEST = 1e-4  # of a step that lowers the objective
_SHORTER = 1e-3  # of the trust region's radius where no part of a step did
_DAMPINGS = (0.0, 1e-4, 1e-2)  # of the Hessian, in units of lambda_Z
_LOST = 1e5  # growth of the projected gradient at which Newton's method has lost its way
_AT_REST = 1e-13  # relative size of a projected gradient step: rounding
_PARALLEL = 1e-12  # 1 - cosine of two directions that are one
_TRACE = 1e-4  # relative
_DEAD = 1e-10  # relative size of ||w|| ||h|| below which an atom is none


@dataclass(frozen=True)
class Atoms:
    """r orbits w h'; every array has shape (r, J), in the coordinates of Z M^(1/2).

    Attributes:
        between: components of w along u_j.
        within: contrasts of w in cluster j, over sqrt(k_j - 1).
        own: x >= 0: h has x_j sqrt(k_j) on one class of cluster j; 0 for single classes.
        common: y >= 0: h has y_j / sqrt(k_j) on all classes of cluster j.
    """

    between: Matrix
    within: Matrix
    own: Matrix
    common: Matrix

    @property
    def mean(self) -> Matrix:
        """Components of h along u_j."""
        return self.own + self.common

    def blocks(self, q: Quotient, b: Vector) -> Blocks:
        """The point sum_i w_i h_i' with bias b."""
        S, x = self.between.T @ self.mean, np.sum(self.within * self.own, axis=0)
        return Blocks(x / np.sqrt(q.mass), S / q.weight, b)

    def norms(self, q: Quotient) -> tuple[Vector, Vector]:
        """||w_i|| and ||h_i||, shape (r,)."""
        contrasts = q.sizes - 1
        w = np.sum(self.between**2, axis=1) + self.within**2 @ contrasts
        return np.sqrt(w), np.sqrt(np.sum(self.mean**2, axis=1) + self.own**2 @ contrasts)

    def price(self, q: Quotient) -> float:
        """sum_i ||w_i|| ||h_i||, an upper bound of the gauge."""
        w, h = self.norms(q)
        return float(w @ h)

    def gram(self) -> tuple[Matrix, Vector]:
        """H'H between clusters, (J, J), and on the contrasts within each, (J,)."""
        return self.mean.T @ self.mean, np.sum(self.own**2, axis=0)

    def alive(self, q: Quotient) -> Atoms:
        """Those that are not zero."""
        w, h = self.norms(q)
        keep = w * h > _DEAD * np.max(w * h, initial=0.0)
        return Atoms(self.between[keep], self.within[keep], self.own[keep], self.common[keep])


def combined(q: Quotient, atoms: Atoms) -> Atoms:
    """The same point with one atom for every direction: atoms whose h are parallel are added up."""
    _, h = atoms.norms(q)
    keep = h > 0
    if not keep.any():
        return Atoms(*(part[keep] for part in (atoms.between, atoms.within, atoms.own, atoms.common)))
    h, parts = h[keep], [part[keep] for part in (atoms.between, atoms.within, atoms.own, atoms.common)]
    unit = np.hstack(
        [(parts[2] + parts[3]) / h[:, None], parts[2] * np.sqrt(np.maximum(q.sizes - 1, 0.0)) / h[:, None]]
    )
    first = np.argmax(unit @ unit.T > 1 - _PARALLEL, axis=1)
    rows = np.unique(first)
    member = (first == rows[:, None]) * h  # w h' = (w |h|) (h / |h|)'
    w = [member @ part for part in parts[:2]]
    size = np.sqrt(np.sqrt(np.sum(w[0] ** 2, axis=1) + w[1] ** 2 @ (q.sizes - 1)))
    size = np.where(size > 0, size, 1.0)[:, None]
    return Atoms(w[0] / size, w[1] / size, *(size * part[rows] / h[rows, None] for part in parts[2:]))


def pruned(atoms: Atoms) -> Atoms:
    """The atoms without parts of h that are a trace of the largest."""
    least = _TRACE * np.max(atoms.mean, axis=1, initial=0.0, keepdims=True)
    own = np.where(atoms.own > least, atoms.own, 0.0)
    within = np.where(own > 0, atoms.within, 0.0)
    return Atoms(atoms.between, within, own, np.where(atoms.common > least, atoms.common, 0.0))


@dataclass(frozen=True)
class _Unknowns:
    """Atoms and bias as one vector: between, common, and where a cluster has several classes within and own; then b."""

    q: Quotient
    rows: int

    @cached_property
    def parts(self) -> int:
        return 4 if np.any(self.q.sizes > 1) else 2

    def pack(self, atoms: Atoms, b: Vector) -> Vector:
        parts = (atoms.between, atoms.common, atoms.within, atoms.own)[: self.parts]
        return np.concatenate([*(part.ravel() for part in parts), b])

    def unpack(self, x: Vector) -> tuple[Atoms, Vector]:
        J = self.q.num_clusters
        parts = x[: x.size - J].reshape(self.parts, self.rows, J)
        between, common, within, own = parts if self.parts == 4 else (*parts, self.none, self.none)
        return Atoms(between, within, own, common), x[x.size - J :]

    @cached_property
    def none(self) -> Matrix:
        return np.zeros((self.rows, self.q.num_clusters))

    @property
    def nonnegative(self) -> NDArray[np.bool_]:
        part = self.rows * self.q.num_clusters
        flags = np.repeat([False, True, False, True][: self.parts], part)
        return np.concatenate([flags, np.zeros(self.q.num_clusters, dtype=bool)])

    def objective(self, x: Vector) -> tuple[float, Vector]:
        """Value and gradient."""
        q, contrasts = self.q, self.q.sizes - 1
        at, b = self.unpack(x)
        P, loss = predict(q, at.blocks(q, b))
        R = residual(q, P)
        w, h = at.norms(q)
        value = loss + 0.5 * q.lambda_z * float(w @ w + h @ h)
        mean_slope = q.lambda_z * at.mean - at.between @ R.between
        slopes = [q.lambda_z * at.between - at.mean @ R.between.T, mean_slope]
        if self.parts == 4:
            inner = contrasts * R.within
            own_slope = mean_slope + q.lambda_z * contrasts * at.own - at.within * inner
            slopes += [
                q.lambda_z * contrasts * at.within - at.own * inner,
                np.where(contrasts > 0, own_slope, 0.0),
            ]
        bias_slope = np.zeros(q.num_clusters)
        if q.lambda_b < np.inf:
            value += 0.5 * q.lambda_b * float(q.sizes @ b**2)
            bias_slope = q.sizes * (q.lambda_b * b - R.bias)
        return value, np.concatenate([*(slope.ravel() for slope in slopes), bias_slope])


def descend(
    q: Quotient, atoms: Atoms, b: Vector, report: Callable[[float], None] | None = None, tol: float = 0.0
) -> tuple[Atoms, Vector]:
    """Descent from the given factors, with bounds, until rounding stops it: a quasi-Newton method, then Newton's.

    Args:
        q: J clusters.
        atoms: where to start.
        b: the bias to start with.
        report: called with the objective at every iteration; may raise to interrupt.
        tol: the relative gap to reach; steps that gain next to nothing beside it are the last.
    """
    from scipy.optimize import minimize

    unknowns = _Unknowns(q, len(atoms.own))
    x = unknowns.pack(atoms, b)
    scale = unknowns.objective(x)[0]
    lower = np.where(unknowns.nonnegative, 0.0, -np.inf)
    found = minimize(
        lambda x: tuple(part / scale for part in unknowns.objective(x)),
        x,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower, np.full(x.size, np.inf), strict=True)),
        callback=None if report is None else lambda intermediate_result: report(intermediate_result.fun * scale),
        options={"maxiter": _DESCENT_STEPS, "maxfun": 2 * _DESCENT_STEPS, "ftol": 0.0, "gtol": 1e-13, "maxcor": 10},
    )
    atoms, b = unknowns.unpack(_approach(unknowns, found.x, report, max(_ROUNDING, _FRUITLESS * tol**1.5)))
    return atoms.alive(q), b


def newton(q: Quotient, atoms: Atoms, b: Vector) -> tuple[Atoms, Vector]:
    """Newton's method on the gradient of the free unknowns, for factors that descent has brought near a minimum.

    The unknowns at zero change with every step, and H'H may have many nonnegative factors, along which nothing changes:
    so the gradient may grow before it vanishes. The best point is kept, and where the method loses its way it starts
    again from there, with a damped Hessian.
    """
    unknowns = _Unknowns(q, len(atoms.own))
    bounded, best = unknowns.nonnegative, unknowns.pack(atoms, b)
    rest = _AT_REST * float(np.linalg.norm(best))
    least = _projected(q, best, unknowns.objective(best)[1], bounded)
    for damping in _DAMPINGS:
        x, start = best, least
        for _ in range(_NEWTON_STEPS):
            if least <= rest:
                break
            gradient = unknowns.objective(x)[1]
            # a primal-dual active set: lambda_Z is the curvature of the penalty
            free = ~(bounded & (x < gradient / q.lambda_z)) & ((x != 0) | (gradient != 0))
            step = _newton_direction(unknowns, x, free, gradient, damping=damping * q.lambda_z)
            x = np.where(free, x, 0.0)
            x[free] += step.v
            x = np.where(bounded, np.maximum(x, 0.0), x)
            norm = _projected(q, x, unknowns.objective(x)[1], bounded)
            if norm < least:
                best, least = x, norm
            elif norm > _LOST * max(start, least):
                break
    return unknowns.unpack(best)


def _approach(unknowns: _Unknowns, x: Vector, report: Callable[[float], None] | None, least_gain: float) -> Vector:
    """Projected Newton steps in a trust region, until three in a row gain less than ``least_gain``, relative.

    Unknowns that their own curvature takes below zero are held there; the others move along the truncated Newton step,
    projected, as far as the objective falls.
    """
    bounded, idle = unknowns.nonnegative, 0
    value, gradient = unknowns.objective(x)
    radius = 0.1 * float(np.linalg.norm(x * np.sqrt(_diagonal(unknowns, x))))
    for _ in range(_APPROACH_STEPS):
        least = _projected(unknowns.q, x, gradient, bounded) / max(float(np.linalg.norm(x)), np.finfo(np.float64).tiny)
        near = min(least, 1e-3) * float(np.max(np.abs(x)))
        free = ~(bounded & (gradient > 0) & (x <= np.minimum(near, gradient / _diagonal(unknowns, x))))
        step = _newton_direction(unknowns, x, free, gradient, radius=radius, forcing=min(0.1, np.sqrt(least)))
        start, move, length = np.where(free, x, 0.0), np.zeros_like(x), 1.0
        move[free] = step.v
        while length > _SHORTEST:
            trial = start + length * move
            trial = np.where(bounded, np.maximum(trial, 0.0), trial)
            new_value, new_gradient = unknowns.objective(trial)
            fall, expected = value - new_value, -length * (step.slope + 0.5 * length * step.curvature)
            if fall >= 1e-3 * expected:
                break
            length *= 0.3
        else:  # what is projected away outweighs the step: a shorter one is closer to the gradient
            radius, idle = _SHORTER * step.norm, idle + 1
            if idle > 2:
                break
            continue
        if length < 1:
            radius = length * step.norm
        elif fall > 0.7 * expected:
            radius = max(radius, 3 * step.norm)
        x, value, gradient = trial, new_value, new_gradient
        if report is not None:
            report(value)
        idle = idle + 1 if fall <= least_gain * value else 0
        if idle > 2:
            break
    return x


def _newton_direction(
    unknowns: _Unknowns,
    x: Vector,
    free: NDArray[np.bool_],
    gradient: Vector,
    *,
    damping: float = 0.0,
    radius: float = np.inf,
    forcing: float = 1e-3,
) -> ModelStep:
    """The truncated Newton step of the free unknowns."""
    curve, inverse = _curvature(unknowns, x, free, damping), 1 / _diagonal(unknowns, x)[free]
    return truncated_newton(
        curve,
        lambda v: inverse * v,
        gradient[free],
        radius=radius,
        forcing=forcing,
        max_iterations=_ITERATIONS,
        indefinite=radius < np.inf,
    )


def _curvature(unknowns: _Unknowns, x: Vector, free: NDArray[np.bool_], damping: float) -> Callable[[Vector], Vector]:
    """The damped Hessian on the free unknowns: the loss's, between the factors, and what the residual adds."""
    q, J = unknowns.q, unknowns.q.num_clusters
    at, b = unknowns.unpack(x)
    P, _ = predict(q, at.blocks(q, b))
    R, loss = residual(q, P), loss_hessian(q, P)
    contrasts, width = q.sizes - 1, np.sqrt(q.sizes - 1)
    mean, inner, lam = at.mean, contrasts * R.within, q.lambda_z
    biased = q.lambda_b < np.inf

    def apply(v: Vector) -> Vector:
        move = np.zeros_like(x)
        move[free] = v
        d, db = unknowns.unpack(move)
        several = unknowns.parts == 4
        d_mean = d.mean if several else d.common
        dX = d.between.T @ mean + at.between.T @ d_mean
        dy = width * np.sum(d.within * at.own + at.within * d.own, axis=0) if several else np.zeros(J)
        gX, gy, gb = loss.apply(dX, dy, db)
        mean_slope = lam * d_mean - d.between @ R.between + at.between @ gX
        slopes = [lam * d.between - d_mean @ R.between.T + mean @ gX.T, mean_slope]
        if several:
            bent = width * gy
            own_slope = mean_slope + lam * contrasts * d.own - d.within * inner + at.within * bent
            slopes += [
                lam * contrasts * d.within - d.own * inner + at.own * bent,
                np.where(contrasts > 0, own_slope, 0.0),
            ]
        bias = gb + q.lambda_b * q.sizes * db if biased else np.zeros(J)
        return np.concatenate([*(slope.ravel() for slope in slopes), bias])[free] + damping * v

    return apply


def _diagonal(unknowns: _Unknowns, x: Vector) -> Vector:
    """The diagonal of the Hessian without what the residual adds: never below the penalty's."""
    q = unknowns.q
    at, b = unknowns.unpack(x)
    loss = loss_hessian(q, predict(q, at.blocks(q, b))[0])
    contrasts, lam = q.sizes - 1, q.lambda_z
    parts = [lam + at.mean**2 @ loss.diagonal.T, lam + at.between**2 @ loss.diagonal]
    if unknowns.parts == 4:
        inner = contrasts * loss.within_diagonal
        parts += [
            lam * np.maximum(contrasts, 1.0) + at.own**2 * inner,
            parts[1] + lam * contrasts + at.within**2 * inner,
        ]
    bias = loss.bias_diagonal + (q.lambda_b * q.sizes if q.lambda_b < np.inf else 1.0)
    diagonal = np.concatenate([*(part.ravel() for part in parts), bias])
    return np.where(diagonal > 0, diagonal, 1.0)  # a free bias among saturated predictions has none


def _projected(q: Quotient, x: Vector, gradient: Vector, bounded: NDArray[np.bool_]) -> float:
    """How far the point moves in a projected gradient step of length 1 / lambda_Z."""
    step = gradient / q.lambda_z
    return float(np.linalg.norm(np.where(bounded, np.minimum(step, x), step)))
