"""The dual of the program for features >= 0 by an interior point: its witness, and factors from the shape of H'H.

For few clusters, where descent on the factors may end short of the last digits. The optimal C = H'H is the multiplier
of the matrix inequality in the dual of :mod:`.witness`. Both are found by following the centres of the
barrier problem (:mod:`collapsar.solver.barrier`) for mu -> 0, where

    C = (2 mu / lambda_Z) Q^-1,     Q = I - (R'R + N) / lambda_Z^2,

by Newton's method, with a tangent step at every decrease of mu. About 1.5 J^2 unknowns, dense: J up to a few dozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms
from collapsar.solver.barrier import Layout, Point, layout_of, model_at, point_at
from collapsar.solver.certificate import dual_norm
from collapsar.solver.objective import Columns, Residual, residual, target
from collapsar.solver.symmetry import Quotient
from collapsar.solver.witness import Witness

__all__ = ["Centre", "central_path", "factorised"]


_INSIDE = 1 - 1e-14  # strictly inside, whatever the last digit of a norm
SHRINK = 0.05  # of mu in one tangent step
CENTRED = 0.5  # Newton decrement at which the tangent is worth following
WELL_CENTRED = 1e-7  # the same for the last point: what it leaves of the barrier function, its square, is rounding
MAX_CENTRING = 100  # steps: a guard against rounding that never settles


@dataclass(frozen=True)
class Centre:
    """A point of the central path.

    Attributes:
        witness: the dual point.
        mu: barrier parameter.
        gap: mu times the number of barrier terms: the duality gap of the relaxation at an exact centre, nats.
        R: the residual at the witness.
        C: H'H between clusters, shape (J, J).
        gamma: H'H on the contrasts within each cluster, shape (J,), 0 for single classes.
        b: the bias, shape (J,).
        decrement: squared Newton decrement in units of mu; small: close to the centre.
        num_steps: Newton steps so far.
    """

    witness: Witness
    mu: float
    gap: float
    R: Residual
    C: Matrix
    gamma: Vector
    b: Vector
    decrement: float
    num_steps: int


@dataclass(frozen=True)
class _Newton:
    """Newton's direction towards the centre of ``aim`` with the barrier's curvature at mu: fixed + aim * moving.

    The bias is the multiplier of sum_k q_k tau_k delta o (y_k - s_k) = lambda_b b.
    """

    fixed: Vector
    moving: Vector
    fixed_bias: Vector
    moving_bias: Vector
    hessian: Matrix
    spread: Matrix

    def step(self, aim: float) -> Vector:
        return self.fixed + aim * self.moving

    def bias(self, aim: float) -> Vector:
        return self.fixed_bias + aim * self.moving_bias

    def decrement(self, q: Quotient, step: Vector) -> float:
        """The squared Newton decrement, as a sum of squares."""
        bend = self.spread.T @ step
        bias = float(q.sizes @ bend**2) / q.lambda_b if 0 < q.lambda_b < np.inf else 0.0
        return float(step @ self.hessian @ step) + bias


def _newton(layout: Layout, at: Point, mu: float) -> _Newton:
    q, model = layout.q, model_at(layout, at)
    hessian = model.hessian + mu * model.barrier_hessian
    scale = 1 / np.sqrt(np.diag(hessian))
    spread = np.zeros((at.x.size, q.num_clusters))
    spread[: layout.row.size] = layout.bias.T
    right = np.column_stack([model.gradient, model.barrier_gradient, spread])
    # Cholesky, not LU: its error respects the grading of the barrier's Hessian over ten orders of magnitude
    factor = scipy.linalg.cho_factor(hessian * scale * scale[:, None], lower=True, overwrite_a=True)
    answer = scale[:, None] * scipy.linalg.cho_solve(factor, scale[:, None] * right)
    fixed, moving, coupling = -answer[:, 0], -answer[:, 1], answer[:, 2:]
    if q.lambda_b == np.inf:
        none = np.zeros(q.num_clusters)
        return _Newton(fixed, moving, none, none, hessian, spread)
    schur = spread.T @ coupling + np.diag(q.lambda_b / q.sizes)
    shift = q.sizes / q.scales
    if q.lambda_b == 0:  # the equations of a free bias are dependent: (k / delta)' bias = 0
        schur += np.trace(schur) / (shift @ shift) * np.outer(shift, shift)
    c = np.linalg.solve(schur, np.column_stack([at.R.bias + spread.T @ fixed, spread.T @ moving]))
    fixed, moving = fixed - coupling @ c[:, 0], moving - coupling @ c[:, 1]
    return _Newton(fixed, moving, c[:, 0] / q.sizes, c[:, 1] / q.sizes, hessian, spread)


# --- the path --------------------------------------------------------------------------------------------------------


def central_path(q: Quotient, P: Columns, primal: float, goal: float) -> Iterator[Centre]:
    """Centres of decreasing mu, the last one centred well.

    Args:
        q: J clusters.
        P: stochastic columns, for example the softmax at the best column form; with a free bias they balance.
        primal: an upper bound of the optimum, nats: its distance from the bound at the first point sets the first mu.
        goal: the gap of the relaxation to reach, nats.

    Yields:
        A centre for every mu. It ends early where float64 allows no further step.
    """
    layout = layout_of(q)
    at = _start(layout, P)
    if at is None:
        return
    mu, num_steps = max(primal + at.value, goal) / layout.num_terms, 0
    while True:
        last = mu * layout.num_terms <= 1.3 * goal  # else the last steps only creep
        centred = _centring(layout, at, mu, WELL_CENTRED if last else CENTRED)
        if centred is None:
            return
        at, newton, decrement, used = centred
        num_steps += used + 1
        yield _centre(layout, at, mu, newton.bias(mu), decrement, num_steps)
        if last or decrement > 1:
            return
        aim = max(SHRINK * mu, 0.999 * goal / layout.num_terms)
        t, at = _advance(layout, at, newton.step(aim))
        mu += t * (aim - mu)


def _centring(layout: Layout, at: Point, mu: float, enough: float) -> tuple[Point, _Newton, float, int] | None:
    """Newton's method to a decrement of ``enough``, or as near as rounding allows: the point and the next direction."""
    found, before = None, np.inf
    for used in range(MAX_CENTRING):
        try:
            newton = _newton(layout, at, mu)
        except np.linalg.LinAlgError:
            return found
        step = newton.step(mu)
        decrement = newton.decrement(layout.q, step) / mu
        found = at, newton, decrement, used
        if 0.5 * before < decrement < 1e-2:  # rounding
            return found
        before = decrement
        nearer = None if decrement <= enough else _descend(layout, at, step, mu, decrement)
        if nearer is None:
            return found
        at = nearer
    return found


def _start(layout: Layout, P: Columns) -> Point | None:
    """A point well inside the domain on the way from the targets to P, with N a little above the simple choice."""
    q, Y = layout.q, target(layout.q)
    R = residual(q, P)
    t = 0.9 * min(1.0, q.lambda_z / dual_norm(q, R))
    other = np.maximum(Y.other + t * (P.other - Y.other), 1e-20)
    gram = (t / q.lambda_z) ** 2 * (R.between.T @ R.between)
    inner = (np.diag(gram) - (t / q.lambda_z * R.within) ** 2) / q.sizes
    margin = 0.05 / q.num_classes
    pairs = np.maximum(-gram[layout.upper], 0.0) + margin
    nu = np.maximum(-inner, 0.0)[layout.several] + margin
    return point_at(layout, np.concatenate([other[layout.row, layout.col], pairs, nu]))


def _descend(layout: Layout, at: Point, step: Vector, mu: float, decrement: float) -> Point | None:
    """A step along which the barrier problem decreases; None where rounding allows none.

    Far from the centre it stops well before the boundary: there Newton's method would crawl along it.
    """
    merit = at.value + mu * at.barrier
    t = _longest(at.x, step)
    for _ in range(40):
        new = point_at(layout, at.x + t * step)
        if new is not None and (decrement < 1 or point_at(layout, at.x + 1.3 * t * step) is not None):
            allowed = merit - 1e-4 * t * mu * decrement + 1e-14 * abs(merit)
            if new.value + mu * new.barrier <= allowed:
                return new
        t /= 2
    return None


def _advance(layout: Layout, at: Point, step: Vector) -> tuple[float, Point]:
    """Along the tangent of the path, most of the way to the boundary."""
    t = _longest(at.x, step)
    for _ in range(60):
        new = point_at(layout, at.x + t * step)
        if new is not None:  # keep away from the boundary, where Newton's method would take long to come back from
            back = point_at(layout, at.x + 0.9 * t * step)
            if back is not None:
                return 0.9 * t, back
        t *= 0.7
    return 0.0, at


def _longest(x: Vector, step: Vector) -> float:
    """The largest t <= 1 that keeps x + t step positive, less a twentieth."""
    falling = step < 0
    return min(1.0, 0.95 * float(np.min(-x[falling] / step[falling], initial=np.inf)))


def _centre(layout: Layout, at: Point, mu: float, b: Vector, decrement: float, num_steps: int) -> Centre:
    q = layout.q
    gamma = np.zeros(q.num_clusters)
    gamma[layout.several] = 2 * mu / q.lambda_z / ((q.sizes[layout.several] - 1) * at.within)
    C = 2 * mu / q.lambda_z * at.inverse
    return Centre(at.witness, mu, mu * layout.num_terms, at.R, C, gamma, b, decrement, num_steps)


# --- factors ---------------------------------------------------------------------------------------------------------


def factorised(q: Quotient, centre: Centre) -> Atoms:
    """H >= 0 with the Gram C of the centre; W = H R' / lambda_Z."""
    C, gamma = _clean(q, centre)
    root = np.sqrt(np.maximum(np.diag(C), np.finfo(np.float64).tiny))
    C, gamma = C / np.outer(root, root), gamma / root**2
    values, vectors = np.linalg.eigh(C)
    begin = np.maximum((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T, 0.01 * (C > 0))
    own, common, misfit = _gram_descent(q, C, gamma, begin)
    if misfit > 1e-10:  # J atoms do not do, or got stuck: twice as many, none like another
        begin = np.vstack([begin, begin]) * (1 + 0.3 * np.cos(np.arange(2 * begin.size))).reshape(-1, C.shape[1])
        own, common, _ = _gram_descent(q, C, gamma, begin / np.sqrt(2))
    own, common, R = own * root, common * root, centre.R
    return Atoms((own + common) @ R.between.T / q.lambda_z, own * R.within / q.lambda_z, own, common)


def _gram_descent(q: Quotient, C: Matrix, gamma: Vector, begin: Matrix) -> tuple[Matrix, Matrix, float]:
    """Mixtures with the Gram C whose own parts have the Gram's diagonal gamma, and the misfit; from means ``begin``."""
    from scipy.optimize import minimize

    several = q.sizes > 1
    own = np.zeros_like(begin)
    largest = np.argmax(begin, axis=0), np.arange(begin.shape[1])
    own[largest] = np.minimum(np.sqrt(gamma), begin[largest])

    def misfit(x: Vector) -> tuple[float, Vector]:
        own, common = x[: begin.size].reshape(begin.shape), x[begin.size :].reshape(begin.shape)
        mean = own + common
        error = mean.T @ mean - C
        inner = np.where(several, np.sum(own**2, axis=0) - gamma, 0.0)
        slope = 2 * mean @ error
        value = 0.5 * float(np.sum(error**2)) + 5 * float(np.sum(inner**2))
        return value, np.stack([np.where(several, slope + 20 * own * inner, 0.0), slope]).ravel()

    found = minimize(
        misfit,
        np.stack([own, begin - own]).ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * begin.size),
        options={"maxiter": 5000, "maxfun": 10_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 40},
    )
    own, common = (part.reshape(begin.shape) for part in np.split(found.x, 2))
    return np.where(several, own, 0.0), common + np.where(several, 0.0, own), float(found.fun)


def _clean(q: Quotient, centre: Centre) -> tuple[Matrix, Vector]:
    """C and gamma with zeros where the barrier leaves a trace.

    Of two complementary numbers without units, like a correlation and N_ij / lambda_Z^2, the smaller one is zero at the
    optimum. A class or a contrast is dropped where it is no larger than 30 times the trace of a clearly dead one.
    """
    C, gamma, size = centre.C.copy(), centre.gamma.copy(), np.diag(centre.C)
    trace, lam2 = 2 * centre.mu / q.lambda_z, q.lambda_z**2
    root = np.sqrt(size)
    dead = size < 30 * trace
    C[(C / np.outer(root, root) < centre.witness.between / lam2) | dead | dead[:, None]] = 0.0
    gamma = np.where((size - gamma) / size < centre.witness.within / lam2, size, np.minimum(gamma, size))
    return C, np.where(dead | ((q.sizes - 1) * gamma < 30 * trace), 0.0, gamma)
