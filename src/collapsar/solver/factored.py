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

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms
from collapsar.solver.conjugate_gradients import ModelStep, truncated_newton
from collapsar.solver.hessian import LossHessian, loss_hessian
from collapsar.solver.objective import Columns, Residual, predict, residual
from collapsar.solver.symmetry import Quotient

_DESCENT_STEPS = 30  # quasi-Newton: enough to find most of the unknowns that are zero
_NEWTON_STEPS = 12
_APPROACH_STEPS = 300
_ITERATIONS = 300  # of conjugate gradients
_ROUNDING = 1e-14  # relative to the objective
_FRUITLESS = 1e-3  # times tol: a relative gain in a step that counts as none
_SHORTEST = 1e-4  # smallest share of a step that is tried
_SHORTER = 1e-3  # next radius of the trust region, relative to a step of which no part lowered the objective
_DAMPINGS = (0.0, 1e-4, 1e-2)  # of the Hessian, in units of lambda_Z
_LOST = 1e5  # growth of the projected gradient at which Newton's method has lost its way
_AT_REST = 1e-13  # relative size of a projected gradient step that is rounding
_KEPT = 1e-3  # share of the largest entry of a feature on a sphere that must stay


@dataclass(frozen=True)
class _Unknowns:
    """Atoms and bias as one vector: between, common, and, if a cluster has several classes, within and own; then b.

    With ``squares``, shape (J,), the features of every cluster have this sum of squares: the objective is then that of
    the features scaled to it, and the multiplier of the constraint takes the place of the features' price. The classes
    of the cluster ``held`` have equal features.
    """

    q: Quotient
    rows: int
    squares: Vector | None = None
    held: int | None = None

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

    def scaled(self, x: Vector) -> tuple[Vector, Vector | float]:
        """The point with features of the given squares, and what its features were multiplied by."""
        if self.squares is None:
            return x, 1.0
        at, b = self.unpack(x)
        length = np.sqrt(self.squares / np.maximum(at.squares(self.q), np.finfo(np.float64).tiny))
        return self.pack(Atoms(at.between, at.within, length * at.own, length * at.common), b), length

    @cached_property
    def movable(self) -> NDArray[np.bool_]:
        """All but the contrasts of the held cluster."""
        part = np.arange(self.q.num_clusters) == self.held
        atoms = Atoms(*(np.broadcast_to(part & inner, self.none.shape) for inner in (False, True, True, False)))
        return ~self.pack(atoms, np.zeros(part.size)).astype(bool)

    def lower(self, x: Vector) -> Vector:
        """Bounds; features on spheres keep one entry, as a long step would take all of them to zero."""
        bound = np.where(self.nonnegative, 0.0, -np.inf)
        if self.squares is not None:
            common = slice(self.rows * self.q.num_clusters, 2 * self.rows * self.q.num_clusters)
            parts = [common, slice(common.stop + self.rows * self.q.num_clusters, x.size - self.q.num_clusters)]
            for part in parts[: self.parts // 2]:
                features = x[part].reshape(self.rows, -1)
                bound[part] = np.where(features == features.max(axis=0), _KEPT * features, 0.0).ravel()
        return np.where(self.movable, bound, 0.0)

    def typical(self, x: Vector) -> float | Vector:
        """The size beside which an unknown is small: that of all, or of its class's features if that is given."""
        if self.squares is None:
            return float(np.max(np.abs(x)))
        parts = np.tile(np.sqrt(self.squares), self.parts * self.rows)
        return np.concatenate([parts, np.ones(self.q.num_clusters)])

    def hold(self, at: Atoms, R: Residual) -> Vector | float:
        """The price of the features, or what takes its place."""
        return self.q.lambda_z if self.squares is None else at.pull(self.q, R) / self.squares

    def tangent(self, at: Atoms, d: Atoms) -> Atoms:
        """A direction along which the squares stay."""
        if self.squares is None:
            return d
        along = (np.sum(at.mean * d.mean, axis=0) + (self.q.sizes - 1) * np.sum(at.own * d.own, axis=0)) / self.squares
        return Atoms(d.between, d.within, d.own - along * at.own, d.common - along * at.common)

    def cotangent(self, at: Atoms, own: Matrix, mean: Matrix) -> tuple[Matrix, Matrix]:
        """The transpose of :meth:`tangent` on slopes in own and common."""
        if self.squares is None:
            return own, mean
        along = np.sum(at.own * own + at.common * mean, axis=0) / self.squares
        return own - along * (at.mean + (self.q.sizes - 1) * at.own), mean - along * at.mean

    def at(self, x: Vector) -> _Point:
        """The objective at x, its gradient, and what its Hessian is made of."""
        q, contrasts = self.q, self.q.sizes - 1
        y, length = self.scaled(x)
        at, b = self.unpack(y)
        P, loss = predict(q, at.blocks(q, b))
        R, mean = residual(q, P), at.mean
        w, h = at.norms(q)
        value = loss + 0.5 * q.lambda_z * float(w @ w + h @ h)
        if self.squares is not None and not np.all(at.squares(q) > 0):
            value = np.inf  # a class without a feature
        hold = self.hold(at, R)
        mean_slope = length * (hold * mean - at.between @ R.between)
        slopes = [q.lambda_z * at.between - mean @ R.between.T, mean_slope]
        if self.parts == 4:
            inner = contrasts * R.within
            own_slope = mean_slope + length * (hold * contrasts * at.own - at.within * inner)
            slopes += [
                q.lambda_z * contrasts * at.within - at.own * inner,
                np.where(contrasts > 0, own_slope, 0.0),
            ]
        bias_slope = np.zeros(q.num_clusters)
        if q.lambda_b < np.inf:
            value += 0.5 * q.lambda_b * float(q.sizes @ b**2)
            bias_slope = q.sizes * (q.lambda_b * b - R.bias)
        gradient = np.concatenate([*(slope.ravel() for slope in slopes), bias_slope])
        return _Point(self, x, value, gradient, at, P, R)


@dataclass(frozen=True)
class _Point:
    """A point with the objective, its gradient, the predictions P and the residual R."""

    unknowns: _Unknowns
    x: Vector
    value: float
    gradient: Vector
    atoms: Atoms
    P: Columns
    R: Residual

    @cached_property
    def loss(self) -> LossHessian:
        """The loss's second derivative."""
        return loss_hessian(self.unknowns.q, self.P)

    @cached_property
    def diagonal(self) -> Vector:
        """The diagonal of the Hessian without what the residual adds: never below the penalty's."""
        q, at, loss = self.unknowns.q, self.atoms, self.loss
        contrasts, lam = q.sizes - 1, q.lambda_z
        parts = [lam + at.mean**2 @ loss.diagonal.T, lam + at.between**2 @ loss.diagonal]
        if self.unknowns.parts == 4:
            inner = contrasts * loss.within_diagonal
            parts += [
                lam * np.maximum(contrasts, 1.0) + at.own**2 * inner,
                parts[1] + lam * contrasts + at.within**2 * inner,
            ]
        bias = loss.bias_diagonal + (q.lambda_b * q.sizes if q.lambda_b < np.inf else 1.0)
        diagonal = np.concatenate([*(part.ravel() for part in parts), bias])
        return np.where(diagonal > 0, diagonal, 1.0)  # a free bias among saturated predictions has none

    def projected(self) -> float:
        """How far the point moves in a projected gradient step of length 1 / lambda_Z."""
        step = self.gradient / self.unknowns.q.lambda_z
        with np.errstate(over="ignore"):  # in a step that has lost its way
            return float(np.linalg.norm(np.where(self.unknowns.nonnegative, np.minimum(step, self.x), step)))


def descend(
    q: Quotient,
    atoms: Atoms,
    b: Vector,
    report: Callable[[float], None] | None = None,
    tol: float = 0.0,
    squares: Vector | None = None,
    held: int | None = None,
) -> tuple[Atoms, Vector]:
    """Descent from the given factors, with bounds, until rounding stops it: a quasi-Newton method, then Newton's.

    Args:
        q: J clusters.
        atoms: where to start.
        b: the bias to start with.
        report: called with the objective at every iteration; may raise to interrupt.
        tol: the relative gap to reach; steps that gain next to nothing beside it are the last.
        squares: shape (J,), the sum of squares of each cluster's features, if it is given.
        held: a cluster whose classes have equal features, ``own`` and ``within`` zero.
    """
    from scipy.optimize import minimize

    unknowns = _Unknowns(q, len(atoms.own), squares, held)
    x = unknowns.pack(atoms, b)
    scale = unknowns.at(x).value
    lower = unknowns.lower(x)

    def relative(x: Vector) -> tuple[float, Vector]:
        at = unknowns.at(x)
        return at.value / scale, at.gradient / scale

    found = minimize(
        relative,
        x,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower, np.where(unknowns.movable, np.inf, 0.0), strict=True)),
        callback=None if report is None else lambda intermediate_result: report(intermediate_result.fun * scale),
        options={"maxiter": _DESCENT_STEPS, "maxfun": 2 * _DESCENT_STEPS, "ftol": 0.0, "gtol": 1e-13, "maxcor": 10},
    )
    atoms, b = unknowns.unpack(_approach(unknowns, unknowns.scaled(found.x)[0], report, tol))
    return atoms.alive(q), b


def approach(q: Quotient, atoms: Atoms, b: Vector, tol: float = 0.0) -> tuple[Atoms, Vector]:
    """The second half of :func:`descend` alone: for factors that are already the minimum of a nearby problem."""
    unknowns = _Unknowns(q, len(atoms.own))
    atoms, b = unknowns.unpack(_approach(unknowns, unknowns.pack(atoms, b), None, tol, patience=1))
    return atoms.alive(q), b


def newton(
    q: Quotient, atoms: Atoms, b: Vector, squares: Vector | None = None, held: int | None = None
) -> tuple[Atoms, Vector]:
    """Newton's method on the gradient of the free unknowns, for factors that descent has brought near a minimum.

    The unknowns at zero change with every step, and H'H may have many nonnegative factors, along which nothing changes:
    so the gradient may grow before it vanishes. The best point is kept, and if the method loses its way it starts
    again from there, with a damped Hessian.
    """
    unknowns = _Unknowns(q, len(atoms.own), squares, held)
    bounded, best = unknowns.nonnegative, unknowns.at(unknowns.scaled(unknowns.pack(atoms, b))[0])
    rest = _AT_REST * float(np.linalg.norm(best.x))
    least = best.projected()
    for damping in _DAMPINGS:
        at, start = best, least
        for _ in range(_NEWTON_STEPS):
            if least <= rest:
                break
            # a primal-dual active set: lambda_Z is the curvature of the penalty
            free = ~(bounded & (at.x < at.gradient / q.lambda_z)) & ((at.x != 0) | (at.gradient != 0))
            free &= unknowns.movable
            step = _newton_direction(at, free, damping=damping * q.lambda_z)
            x = np.where(free, at.x, 0.0)
            x[free] += step.v
            at = unknowns.at(unknowns.scaled(np.where(bounded, np.maximum(x, 0.0), x))[0])
            norm = at.projected()
            if norm < least:
                best, least = at, norm
            elif not norm <= _LOST * max(start, least):  # true of NaN too
                break
    return unknowns.unpack(best.x)


def _approach(
    unknowns: _Unknowns, x: Vector, report: Callable[[float], None] | None, tol: float, patience: int = 3
) -> Vector:
    """Projected Newton steps in a trust region, until ``patience`` in a row gain next to nothing beside ``tol``.

    Unknowns that their own curvature takes below zero are held there; the others move along the truncated Newton step,
    projected, as far as the objective falls.
    """
    bounded, idle, least_gain = unknowns.nonnegative, 0, max(_ROUNDING, _FRUITLESS * tol)
    at = unknowns.at(x)
    radius = 0.1 * float(np.linalg.norm(x * np.sqrt(at.diagonal)))
    for _ in range(_APPROACH_STEPS):
        x, gradient = at.x, at.gradient
        least = at.projected() / max(float(np.linalg.norm(x)), np.finfo(np.float64).tiny)
        near = min(least, 1e-3) * unknowns.typical(x)
        free = ~(bounded & (gradient > 0) & (x <= np.minimum(near, gradient / at.diagonal))) & unknowns.movable
        step = _newton_direction(at, free, radius=radius, forcing=min(0.1, np.sqrt(least)))
        start, move, length = np.where(free, x, 0.0), np.zeros_like(x), 1.0
        move[free] = step.v
        while length > _SHORTEST:
            trial = start + length * move
            new = unknowns.at(unknowns.scaled(np.where(bounded, np.maximum(trial, 0.0), trial))[0])
            fall, expected = at.value - new.value, -length * (step.slope + 0.5 * length * step.curvature)
            if fall >= 1e-3 * expected:
                break
            length *= 0.3
        else:  # what is projected away outweighs the step: a shorter one is closer to the gradient
            radius, idle = _SHORTER * step.norm, idle + 1
            if idle >= patience:
                break
            continue
        if length < 1:
            radius = length * step.norm
        elif fall > 0.7 * expected:
            radius = max(radius, 3 * step.norm)
        at = new
        if report is not None:
            report(at.value)
        idle = idle + 1 if fall <= least_gain * at.value else 0
        if idle >= patience:
            break
    return at.x


def _newton_direction(
    at: _Point,
    free: NDArray[np.bool_],
    *,
    damping: float = 0.0,
    radius: float = np.inf,
    forcing: float = 1e-3,
) -> ModelStep:
    """The truncated Newton step of the free unknowns."""
    inverse = 1 / at.diagonal[free]
    return truncated_newton(
        _curvature(at, free, damping),
        lambda v: inverse * v,
        at.gradient[free],
        radius=radius,
        forcing=forcing,
        max_iterations=_ITERATIONS,
        indefinite=radius < np.inf,
    )


def _curvature(point: _Point, free: NDArray[np.bool_], damping: float) -> Callable[[Vector], Vector]:
    """The damped Hessian on the free unknowns: the loss's, between the factors, and what the residual adds."""
    unknowns, at, R, loss = point.unknowns, point.atoms, point.R, point.loss
    q, J, parts = unknowns.q, unknowns.q.num_clusters, unknowns.parts
    contrasts, width = q.sizes - 1, np.sqrt(q.sizes - 1)
    mean, inner, lam, hold = at.mean, contrasts * R.within, q.lambda_z, unknowns.hold(at, R)
    bias_price = q.lambda_b * q.sizes if q.lambda_b < np.inf else None
    move, out, dy = np.zeros_like(point.x), np.zeros_like(point.x), np.zeros(J)
    (moved, db), (slope, bias_slope) = unknowns.unpack(move), (out[:-J].reshape(parts, -1, J), out[-J:])

    def apply(v: Vector) -> Vector:
        nonlocal dy
        move[free] = v
        d = unknowns.tangent(at, moved)
        d_mean = d.mean if parts == 4 else d.common
        dX = d.between.T @ mean + at.between.T @ d_mean
        if parts == 4:
            dy = width * np.sum(d.within * at.own + at.within * d.own, axis=0)
        gX, gy, gb = loss.apply(dX, dy, db)
        slope[0] = lam * d.between - d_mean @ R.between.T + mean @ gX.T
        mean_slope = own_slope = hold * d_mean - d.between @ R.between + at.between @ gX
        if parts == 4:
            bent = width * gy
            slope[2] = lam * contrasts * d.within - d.own * inner + at.own * bent
            own_slope = mean_slope + hold * contrasts * d.own - d.within * inner + at.within * bent
        own_slope, slope[1] = unknowns.cotangent(at, own_slope, mean_slope)
        if parts == 4:
            slope[3] = np.where(contrasts > 0, own_slope, 0.0)
        if bias_price is not None:
            bias_slope[:] = gb + bias_price * db
        return out[free] + damping * v

    return apply
