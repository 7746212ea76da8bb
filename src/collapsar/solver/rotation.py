"""Every direction alive: the residual is lambda_Z times a rotation, found by Newton's method.

Where Z has full rank, its subdifferential is one point, so R = lambda_Z Q with Q Q' = I - u u', u ~ sqrt(k) / delta
(JMLR Lemma 8), and J^2 + 2J unknowns become the J(J-1)/2 angles of Q: R gives the probabilities, their logarithms the
logits and thus X(Q) = Z M^(1/2) on the clusters, and Q is right when Q'X is symmetric. With two clusters that is
one angle, the t of JMLR (5.16)-(5.51). Within a cluster the residual is known beforehand: lambda_Z while the classes
are apart, whatever makes their probabilities equal once they merge (theory section 3).

A step is the Newton step of the dual objective along Q exp(Omega). Nothing guards it but the positivity of the
probabilities: if Z has lost rank or Newton's method its way, :mod:`.contraction` takes over. Up to FEW
clusters a step is a dense solve in the angles, beyond that conjugate gradients on skew-symmetric matrices, with three
products per iteration. With three clusters a step is some forty operations on small arrays, so their
overhead is the cost: hence flat arrays of equal shape and ``dot``, which take a third of the time of broadcasts and
``@``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from collapsar.core.types import Matrix, Vector
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.dual_model import DualModel, dual_model
from collapsar.solver.symmetry import Blocks, Quotient, grid

Tensor = NDArray[np.float64]

_gesdd, _gesv, _posv = get_lapack_funcs(("gesdd", "gesv", "posv"), dtype=np.float64)

FEW = 12  # clusters up to which a step is one dense solve, at J^6 operations; beyond, conjugate gradients
SPARSE = 8  # clusters above which a dense step leaves out the products that are zero, most of them
SOME = 128  # clusters up to which this is tried first: where rank is lost, the attempt costs a few percent

_MARGIN = 4.0  # nats: a typical logit margin of a trained classifier, for the start only

_DEAD = -0.03  # of its largest entry: below it the diagonal of Q'X does not come back; at a threshold it undershoots 0

_ALIVE = 1e-9  # of the largest: a direction of a neighbour's optimum that is weaker does not say where to start

_LAST = 1e-5  # radians: Newton's method squares the error, and the gap is the square of the error
_LEFT = 1e-8  # radians left of a step by conjugate gradients; from a near start the first may be short and rough


def _angles(model: DualModel, planes: Tensor, Q: Matrix, p: Vector, G: Matrix) -> Matrix | None:
    """The Newton step, the skew-symmetric Omega, at G = Q'X; None if rounding leaves nothing to solve."""
    J, n = len(Q), len(planes)
    spin, stacked = planes.reshape(n, J * J), planes.reshape(n * J, J)
    hessian = _curvature_in_pairs if J > SPARSE and model.fixed is None else _curvature_in_planes
    moved = None if model.bias is None else stacked.dot(model.bias_root).reshape(n, J).dot(Q.T)
    # Q exp(Omega) itself bends, by the symmetric part of <Q E_a E_b, X> = -<E_a, E_b G'>
    for bent in (0.5 * (G + G.T), None):  # not concave here: what is concave for sure still points uphill
        form = hessian(planes, Q, model.curvature(p), bent)
        if moved is not None:
            form += moved.dot(moved.T)
        step, info = _posv(form, spin.dot(G.ravel()))[1:]
        if info == 0:
            return step.dot(spin).reshape(J, J)
    return None


def _curvature_in_planes(planes: Tensor, Q: Matrix, weight: Matrix, bent: Matrix | None) -> Matrix:
    """<Q E_a, weight o Q E_b> + <E_a, E_b bent>, (n, n)."""
    J, n = len(Q), len(planes)
    spin, stacked = planes.reshape(n, J * J), planes.reshape(n * J, J)
    turned = stacked.dot(Q.T).reshape(n, J * J)  # the transposes of -Q E
    hessian = (turned * weight.T.ravel()).dot(turned.T)
    return hessian if bent is None else hessian + spin.dot(stacked.dot(bent).reshape(n, J * J).T)


def _curvature_in_pairs(planes: Tensor, Q: Matrix, weight: Matrix, bent: Matrix | None) -> Matrix:
    """The same in the planes of all pairs of axes: E_a and E_b meet, if at all, in one column or in two."""
    J, n = len(Q), len(planes)
    forms = (weight.T[:, None, :] * Q.T).reshape(J * J, J).dot(Q).reshape(J, J, J)
    place, source, sign = _meeting(J)
    found: Any = np.bincount(place, sign * (forms if bent is None else forms + bent).ravel()[source], n * n)
    return found.reshape(n, n)


def _turn(model: DualModel, Q: Matrix, p: Vector, G: Matrix, forcing: float) -> Matrix | None:
    """The same step by conjugate gradients on skew-symmetric matrices, to a residual of ``forcing``."""
    J, r, fixed = len(Q), model.bias_root, model.fixed
    S, weight = 0.5 * (G + G.T), model.curvature(p)
    diagonal = (Q * Q).T.dot(weight) + np.maximum(np.diagonal(S), 0.0)
    if model.bias is not None:
        diagonal = diagonal + r * r
    inverse = 1 / (diagonal + diagonal.T)

    def skew(Y: Matrix) -> Vector:
        Y = Y - Y.T
        if fixed is not None:  # this direction stays fixed: leave it out on both sides
            moved = np.multiply.outer(Y.dot(fixed), fixed)
            Y -= moved - moved.T
        return Y.ravel()

    def product(v: Vector, bent: bool) -> Vector:
        E = v.reshape(J, J)
        turned = Q.dot(E)
        Y = Q.T.dot(weight * turned)
        if model.bias is not None:
            Y += np.multiply.outer(Q.T.dot(turned.dot(r)), r)
        return skew(Y + E.dot(S) if bent else Y)

    for bent in (True, False):
        step = truncated_newton(
            lambda v, bent=bent: product(v, bent),
            lambda v: skew(inverse * v.reshape(J, J)),
            -skew(G),
            radius=math.inf,
            forcing=forcing,
        )
        if step.slope < 0:
            return step.v.reshape(J, J)
    return None


def rotation_point(q: Quotient, max_steps: int = 12, near: Blocks | None = None) -> tuple[Blocks, int] | None:
    """The point whose residual is lambda_Z times a rotation.

    Args:
        q: J clusters, few, ``features == "signed"``.
        max_steps: at most this many Newton steps.
        near: the optimum of a similar problem, to start from if its directions are all alive.

    Returns:
        The point and the number of steps, or None if the method got stuck. Only a certificate can tell whether the
        point is the optimum.
    """
    model = dual_model(q)
    found = None if near is None else _followed(q, model, _carried(q, model, near), max_steps)
    return found or _followed(q, model, _weak(q, model), max_steps)


def _followed(q: Quotient, model: DualModel, guess: Matrix, max_steps: int) -> tuple[Blocks, int] | None:
    """The same by Newton's method from a guess of X."""
    A, size, Bt, _ = _gesdd(guess)
    if not np.all(size[:-1] > _ALIVE * size[0]):
        return None
    frame = Bt[:-1]  # Q is zero in one direction on either side
    Q, J = A[:, :-1].dot(frame), len(A)
    planes = np.zeros((0, J, J))
    if J <= FEW:
        planes = _planes(J) if q.lambda_b else frame.T @ _planes(J - 1) @ frame
    p = model.probabilities(Q)
    if not min(p.tolist()) > 0:
        return None
    eye, dense = np.eye(J), J <= FEW
    longest, forcing, step = (math.inf if len(planes) or not dense else 0.0), 0.0, 0
    while longest > _LAST or forcing * longest > _LEFT:
        if step == max_steps:
            return None
        G = Q.T.dot(model.gradient(Q, p))
        inner = G if model.fixed is None else G - np.multiply.outer(G.dot(model.fixed), model.fixed)
        parts = inner.ravel()[:: len(G) + 1].tolist()
        if step and min(parts) < _DEAD * max(parts):
            return None  # Q'X is not on its way to a positive matrix: rank is lost
        forcing = 0.0 if dense else min(0.1, longest)
        angles = _angles(model, planes, Q, p, G) if dense else _turn(model, Q, p, G, forcing)
        if angles is None:
            return None
        longest, step = float(np.abs(angles).max()), step + 1
        half = 0.5 * angles
        for _ in range(20):  # Cayley's transform of the step, as far as the probabilities allow
            turned = Q.dot(_gesv(eye - half, eye + half)[2])
            p = model.probabilities(turned)
            if min(p.tolist()) > 0:
                break
            half *= 0.5
        else:
            return None
        Q = turned
    return model.blocks(q, Q, p), step


def _weak(q: Quotient, model: DualModel) -> Matrix:
    """X in the limit of weak penalties, where all logits are equally large."""
    J = q.sizes.size
    row, column, eye = grid(J)
    root_m, u, g = np.sqrt(q.mass), model.u, model.g
    # the margins in I - u u', by what a unit of logit weighs in X ...
    u_hat, g_hat = u / math.sqrt(u.dot(u)), g / math.sqrt(g.dot(g))
    unit = root_m / (q.scales * q.temperatures)
    limit = ((eye - u_hat[row] * u_hat[column]) * unit[column]).reshape(J, J)
    # ... less what the bias takes over, all of it if it is free: then Q g = 0, and Q turns in the other directions
    taken = 1.0
    if q.lambda_b > 0:
        pull = q.lambda_z / q.lambda_b * g.dot(g)
        taken = pull / (_MARGIN * unit.dot(g_hat * g_hat) + pull)
    if taken:
        limit -= (limit.dot(g_hat)[row] * (taken * g_hat)[column]).reshape(J, J)
    return limit


def _carried(q: Quotient, model: DualModel, near: Blocks) -> Matrix:
    """X of another problem's optimum, made to fit Q'u = 0 in this one, and Q g = 0 if the bias is free."""
    u_hat, g_hat = model.u / math.sqrt(model.u.dot(model.u)), model.g / math.sqrt(model.g.dot(model.g))
    X = q.weight * near.C
    X -= np.multiply.outer(u_hat, u_hat.dot(X))
    return X if q.lambda_b else X - np.multiply.outer(X.dot(g_hat), g_hat)


@lru_cache(maxsize=FEW)
def _meeting(J: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Vector]:
    """Where planes meet: places in the (n, n) matrix, entries of the forms (J, J, J), and the signs of these.

    E_a = e_i e_j' - e_j e_i' takes e_j to e_i and e_i to -e_j.
    """
    i, j = np.triu_indices(J, 1)
    n = np.arange(i.size)
    plane, start, end = np.concatenate([n, n]), np.concatenate([j, i]), np.concatenate([i, j])
    sign = np.repeat([1.0, -1.0], i.size)
    a, b = np.nonzero(start[:, None] == start)
    return plane[a] * i.size + plane[b], (start[a] * J + end[a]) * J + end[b], sign[a] * sign[b]


@lru_cache(maxsize=FEW)
def _planes(J: int) -> Tensor:
    """e_i e_j' - e_j e_i' for all i < j, (n, J, J)."""
    i, j = np.triu_indices(J, 1)
    n = np.arange(i.size)
    E = np.zeros((n.size, J, J))
    E[n, i, j] = 1.0
    E[n, j, i] = -1.0
    return E
