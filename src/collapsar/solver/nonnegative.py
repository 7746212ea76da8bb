"""Nonnegative features, column form: every class that is alive owns one feature direction.

    min_{Z,b}  sum_k { q_k [ lse(u_k) - <y_k, u_k> ] + lambda_Z sqrt(m_k) ||z_k|| }  +  (lambda_b / 2) ||b||^2

It is the exact program for features >= 0 unless classes would share a direction, which the certificate reveals.
Given the bias, the columns separate, and column k enters through its value

    G_k(b) = min_z q_k l_k(z + b) + a_k ||z||,     a_k = lambda_Z sqrt(m_k),

convex with a continuous gradient -g_k, g_k = q_k tau_k delta o (y_k - p_k). So the algorithm is Newton's method on
F(b) = sum_k G_k(b) + (lambda_b / 2)||b||^2, with J unknowns, wrapped around Newton's method on all columns at once.

With H the Hessian of q_k l_k, diagonal minus rank one, and s_k = ||z_k|| / a_k, E = (H^-1 + s I)^-1 is of the same
form: the Hessian of the cross-entropy at tilted probabilities. The Hessian of G_k is H if the column is dead and
E - E g g'E / (g'E g) if it is alive: it gives way along g, as ||g_k|| = a_k. The sum over columns takes two products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.certificate import GAP_FLOOR, Certificate, balance_bias, certify_blocks, dual_on_ray, penalty
from collapsar.solver.columns import Softmax, Stack, best_columns, softmax, stack, tilt, to_blocks, to_columns
from collapsar.solver.objective import Columns, cross_entropy, predict, residual
from collapsar.solver.status import Progress, Result, Status
from collapsar.solver.symmetry import Blocks, Quotient, centred

LONGEST_STEP = 5.0  # of the bias in one Newton step, nats: beyond it the quadratic model of a softmax says nothing


def minimise_nonnegative(
    q: Quotient,
    start: Blocks | None = None,
    *,
    tol: float = 1e-9,
    max_steps: int = 200,
    progress: Progress | None = None,
) -> Result:
    """The optimum of the column form.

    Args:
        q: J clusters, nonnegative features.
        start: a point to start from, for example the optimum at a nearby lambda_Z; the bias matters most.
        tol: relative duality gap to reach.
        max_steps: at most this many Newton steps on the bias; 3 to 10 are usual.
        progress: called after every step with the certificate of the point so far.

    Returns:
        The point, certified for features >= 0. The status is ``SHARED_DIRECTIONS`` if the column form's own duality
        gap closes, to ``tol`` or as far as float64 goes, while the certificate for features >= 0 stays open.

    Example:
        >>> from collapsar.core.problem import Problem
        >>> from collapsar.solver.symmetry import quotient
        >>> q = quotient(Problem("500x5,100x5", lambda_z=0.0045, lambda_b=0.02, features="nonnegative"))
        >>> result = minimise_nonnegative(q)
        >>> result.status.name, bool(result.blocks.alpha[0] > 0), float(result.blocks.alpha[1])
        ('OPTIMAL', True, 0.0)
    """
    columns = stack(q)
    b = np.zeros(q.num_clusters) if start is None or q.lambda_b == np.inf else start.b
    x = np.zeros_like(columns.mult) if start is None else to_columns(q, start)
    state = _settle(q, columns, b, x)
    damping, step, status = 0.0, 0, Status.MAX_STEPS
    blocks = centred(q, to_blocks(q, state.x, state.b))
    own = column_certificate(q, blocks)
    while not own.relative_gap <= tol and step < max_steps:
        improved, damping = (None, 0.0) if q.lambda_b == np.inf else _newton_step(q, columns, state, damping)
        if improved is None:
            status = Status.STALLED
            own = column_certificate(q, blocks)
            break
        step, state, blocks = step + 1, improved, centred(q, to_blocks(q, improved.x, improved.b))
        if progress is not None:
            progress(step, certify_blocks(q, blocks))
        if state.decrement <= tol * max(state.value, GAP_FLOOR):  # otherwise the gap is surely open: not worth it
            own = column_certificate(q, blocks)
    certificate = certify_blocks(q, blocks)
    if certificate.relative_gap <= tol:
        status = Status.OPTIMAL
    elif own.relative_gap <= tol or (status is Status.STALLED and own.gap < 0.1 * certificate.gap):
        status = Status.SHARED_DIRECTIONS
    return Result(blocks, certificate, step, status)


def column_certificate(q: Quotient, blocks: Blocks) -> Certificate:
    """The duality gap of the column form itself: the bound of :func:`certify_blocks` with max_k ||r_k|| as dual norm.

    Its dual value bounds the column form's optimum, which may lie above the optimum for features >= 0.
    """
    primal = cross_entropy(q, blocks) + q.lambda_z * penalty(q, blocks) + q.bias_cost(blocks.b)
    dual = _column_dual(q, predict(q, blocks)[0])
    if q.lambda_b < np.inf and not primal - dual <= 1e-13 * max(primal, GAP_FLOOR):
        # with a free bias the dual's equality holds only at the best bias for this Z; otherwise the bound tightens
        dual = max(dual, _column_dual(q, predict(q, balance_bias(q, blocks))[0]))
    return Certificate(primal, dual)


def _column_dual(q: Quotient, P: Columns) -> float:
    """The best bound on the ray through P: every column of the residual no longer than lambda_Z."""
    R = residual(q, P)
    longest = np.sqrt(np.max(np.sum(R.between**2, axis=0) / q.sizes + R.within**2 * (1 - 1 / q.sizes)))
    return dual_on_ray(q, P, R, float(longest), search=False)


@dataclass(frozen=True)
class _State:
    """A bias with its best columns."""

    b: Vector
    x: Matrix
    soft: Softmax
    length: Vector  # ||z_k||
    value: float  # F(b)
    decrement: float = np.inf  # Newton decrement of the step that led here: an estimate of the gap before it


def _settle(q: Quotient, c: Stack, b: Vector, x: Matrix) -> _State:
    """The best columns for a bias; ``x`` is a guess."""
    w = c.expand(b)
    z = best_columns(c, w, x)
    soft = softmax(c, w + z)
    length = np.sqrt(c.dot(z, z))
    return _State(b, z, soft, length, float(q.sizes @ (soft.loss + c.radius * length)) + q.bias_cost(b))


def _newton_step(q: Quotient, c: Stack, at: _State, damping: float) -> tuple[_State | None, float]:
    """One damped Newton step on F(b), and the damping for the next. None if no step helps any more."""
    gradient, hessian, scale = _bias_model(q, c, at)
    diagonal = np.diag_indices_from(hessian)
    for _ in range(30):
        damped = hessian.copy()
        damped[diagonal] += (damping + 1e-14) * scale
        step: Vector = -np.linalg.solve(damped, gradient).astype(np.float64)
        decrement = -float(gradient @ step)
        if decrement < 0:  # indefinite by rounding
            damping = max(10 * damping, 1e-8)
            continue
        if not decrement > 1e-26 * max(at.value, GAP_FLOOR):
            return None, damping
        found = _search(q, c, at, step, decrement)
        if found is not None:
            return found, (damping / 10 if damping > 1e-10 else 0.0)
        damping = max(10 * damping, 1e-4)
    return None, damping


def _search(q: Quotient, c: Stack, at: _State, step: Vector, decrement: float) -> _State | None:
    """A point along the step with a lower F, whose slope is not about as steep upwards as it was downwards.

    F may be linear, then bend within a narrow range of b while one column is dead; lower values alone let Newton's
    method jump to and fro across that range.
    """
    size = min(1.0, LONGEST_STEP / max(float(np.max(np.abs(step))), 1e-300))
    for _ in range(12):
        new = _settle(q, c, at.b + size * step, at.x)
        slope = float(_gradient(q, c, new) @ step)
        lower = new.value <= at.value - 1e-4 * size * decrement + 4e-16 * at.value
        if (lower and slope <= 0.9 * decrement) or decrement <= 1e-13 * at.value:  # rounding hides the decrease
            return replace(new, decrement=decrement / size)
        size *= min(max(decrement / (decrement + slope), 0.1), 0.7) if slope > 0 else 0.25
    return None


def _gradient(q: Quotient, c: Stack, at: _State) -> Vector:
    return (0.0 if q.lambda_b == np.inf else q.lambda_b) * q.sizes * at.b - _by_cluster(c, at.soft.g) @ q.sizes


def _bias_model(q: Quotient, c: Stack, at: _State) -> tuple[Vector, Matrix, float]:
    """Gradient and Hessian of F at b, and the scale of curvature: the Hessian's, were no column free to give way.

    The cross-entropies' part is summed as a graph Laplacian, so that nothing cancels there. The Hessian may vanish
    (two classes alive: F is linear), the scale does not.
    """
    g = at.soft.g
    diagonal = np.diag_indices(q.num_clusters)
    tilted = tilt(c, at.soft.p, at.length / c.radius)
    mass = _by_cluster(c, tilted.p)
    edges = (mass * (q.sizes * c.share * c.tau**2 * tilted.mass)) @ mass.T
    edges[diagonal] = 0.0
    hessian = -edges
    hessian[diagonal] = edges.sum(axis=1)
    hessian = q.scales[:, None] * hessian * q.scales
    scale = max(float(np.trace(hessian)) / q.num_clusters + q.lambda_b, np.finfo(np.float64).tiny)
    alive = np.flatnonzero(at.length > 0)
    if alive.size:
        some, p, ga = c.take(alive), tilted.p[:, alive], g[:, alive]
        weight = some.share * some.tau**2 * tilted.mass[alive]
        centred = some.scale * ga - some.dot(p, some.scale * ga)
        bend = np.maximum(weight * some.dot(p, centred**2), 1e-100)  # g'E g
        fixed = _by_cluster(some, weight * some.scale * p * centred) * np.sqrt(q.sizes[alive] / bend)
        hessian -= fixed @ fixed.T
    hessian[diagonal] += q.lambda_b * q.sizes
    if q.lambda_b == 0:  # a shift along 1/delta changes nothing: pin it
        shift = 1 / q.scales
        hessian += scale * q.num_clusters / (shift @ shift) * np.outer(shift, shift)
    return _gradient(q, c, at), hessian, scale


def _by_cluster(c: Stack, x: Matrix) -> Matrix:
    """Sums over the logits of each cluster, shape (J, n)."""
    total = c.mult[:-1] * x[:-1]
    total[c.index, np.arange(c.index.size)] += x[-1]
    return total
