"""Every direction alive: the residual is lambda_Z times a rotation, found by Newton's method.

Where Z has full rank its subdifferential is one point, so R = lambda_Z Q with Q Q' = I - u u', u ~ sqrt(k) / delta
(JMLR Lemma 8), and J^2 + 2J unknowns become the J(J-1)/2 angles of Q: R gives the probabilities, their logarithms the
logits and thereby X(Q) = Z M^(1/2) on the clusters, and Q is right where Q'X is symmetric. With two clusters that is
one angle, the t of JMLR (5.16)-(5.51). Within a cluster the residual is known beforehand: lambda_Z while the classes
are apart, what makes their probabilities equal once they merge (theory section 3).

A step is the Newton step of the dual objective along Q exp(Omega). Nothing guards it but the positivity of the
probabilities: where Z lost rank or Newton's method its way, the certificate does not close, and the general algorithm
takes over. Up to FEW clusters a step is a dense solve in the angles, beyond it conjugate gradients on skew-symmetric
matrices, three products an iteration. With three clusters a step is some forty operations on small arrays, so their
overhead is the cost: hence flat arrays of equal shape and ``dot``, which take a third of the time of broadcasts and
``@``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from collapsar.core.types import Matrix, Vector
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.symmetry import Blocks, Quotient, grid

__all__ = ["SOME", "rotation_point"]

Tensor = NDArray[np.float64]

_gesdd, _gesv, _posv = get_lapack_funcs(("gesdd", "gesv", "posv"), dtype=np.float64)

FEW = 12  # clusters up to which a step is one dense solve, for J^6 operations; beyond it is conjugate gradients
SOME = 128  # clusters up to which this is tried first: where rank is lost, the try costs a few percent

_MARGIN = 4.0  # nats: a typical logit margin of a trained classifier, for the start only

_LAST = 1e-5  # radians: Newton's method squares the error, and the gap is the square of the error


class _Model(NamedTuple):
    """What a problem's steps need. Probabilities are flat: J^2 of other classes, then those of the J own classes.

    Attributes:
        base: the probabilities are base - slope * (entries of Q).
        slope: see ``base``.
        to_x: X is to_x * log p, the own classes' part added to the diagonal.
        shift: what logit offsets add to X, flat; None without.
        bias: X loses Q @ bias = sqrt(k) b g', where lambda_b sqrt(k) b = lambda_Z Q g; (J, J), None without.
        bias_root: bias = bias_root bias_root', (J,).
        planes: the directions in which Q may turn, (n, J, J); none with more than FEW clusters.
        fixed: the direction in which Q may not turn, (J,), where the bias is free.
        root: sqrt(k), (J,).
        u: sqrt(k) / delta, (J,): the null vector of Q'.
        g: sqrt(k m), (J,).
    """

    base: Vector
    slope: Vector
    to_x: Vector
    shift: Vector | None
    bias: Matrix | None
    bias_root: Vector
    planes: Tensor
    fixed: Vector | None
    root: Vector
    u: Vector
    g: Vector

    def probabilities(self, Q: Matrix) -> Vector:
        """p(Q), some of which may be negative."""
        return self.base - self.slope * Q.ravel()[_layout(len(Q))[1]]

    def logits(self, p: Vector) -> Matrix:
        """X(p) with the bias still in it, up to a multiple of u in each column, which Q'X does not see."""
        J = self.bias_root.size
        x = self.to_x * np.log(p)
        X = x[: J * J]
        X[:: J + 1] += x[J * J :]
        if self.shift is not None:
            X += self.shift
        return X.reshape(J, J)

    def angles(self, Q: Matrix, p: Vector) -> Matrix | None:
        """The Newton step, the skew-symmetric Omega; None where rounding leaves nothing to solve."""
        J, n = len(Q), len(self.planes)
        X = self.logits(p)
        if self.bias is not None:
            X -= Q.dot(self.bias)
        G = Q.T.dot(X)
        spin = self.planes.reshape(n, J * J)
        bend = self.to_x * self.slope / p
        weight = bend[: J * J]
        weight[:: J + 1] += bend[J * J :]
        turned = self.planes.reshape(n * J, J).dot(Q.T).reshape(n, J * J)  # the transposes of -Q E
        hessian = (turned * weight.reshape(J, J).T.ravel()).dot(turned.T)
        if self.bias is not None:
            moved = self.planes.dot(self.bias_root).dot(Q.T)
            hessian += moved.dot(moved.T)
        # Q exp(Omega) itself bends, by the symmetric part of <Q E_a E_b, X> = -<E_a, E_b G'>
        bent = spin.dot(self.planes.reshape(n * J, J).dot(0.5 * (G + G.T)).reshape(n, J * J).T)
        step, info = _posv(hessian + bent, spin.dot(G.ravel()))[1:]
        if info:  # not concave here: what is concave for sure still points uphill
            step, info = _posv(hessian, spin.dot(G.ravel()))[1:]
        return step.dot(spin).reshape(J, J) if info == 0 else None

    def turn(self, Q: Matrix, p: Vector, forcing: float) -> Matrix | None:
        """The same step by conjugate gradients on skew-symmetric matrices, to a residual of ``forcing``."""
        J = len(Q)
        X = self.logits(p)
        if self.bias is not None:
            X -= Q.dot(self.bias)
        G, r, fixed = Q.T.dot(X), self.bias_root, self.fixed
        S, bend = 0.5 * (G + G.T), self.to_x * self.slope / p
        weight = bend[: J * J]
        weight[:: J + 1] += bend[J * J :]
        weight = weight.reshape(J, J)
        diagonal = (Q * Q).T.dot(weight) + np.maximum(np.diagonal(S), 0.0)
        if self.bias is not None:
            diagonal = diagonal + r * r
        inverse = 1 / (diagonal + diagonal.T)

        def skew(Y: Matrix) -> Vector:
            Y = Y - Y.T
            if fixed is not None:  # this direction stays: both sides without it
                moved = np.multiply.outer(Y.dot(fixed), fixed)
                Y -= moved - moved.T
            return Y.ravel()

        def product(v: Vector, bent: bool) -> Vector:
            E = v.reshape(J, J)
            turned = Q.dot(E)
            Y = Q.T.dot(weight * turned)
            if self.bias is not None:
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


def rotation_point(q: Quotient, max_steps: int = 12) -> tuple[Blocks, int] | None:
    """The point whose residual is lambda_Z times a rotation.

    Args:
        q: J clusters, few, ``features == "signed"``.
        max_steps: Newton steps at most.

    Returns:
        The point and the steps to it, or None where the method got stuck. Only a certificate can tell whether the
        point is the optimum.
    """
    model, Q = _start(q)
    p = model.probabilities(Q)
    if not min(p.tolist()) > 0:
        return None
    eye, dense = _layout(len(Q))[0], len(Q) <= FEW
    longest, step = (math.inf if len(model.planes) or not dense else 0.0), 0
    while longest > _LAST:
        if step == max_steps:
            return None
        angles = model.angles(Q, p) if dense else model.turn(Q, p, min(0.1, longest))
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
    return _blocks(q, model, Q, p), step


def _start(q: Quotient) -> tuple[_Model, Matrix]:
    """The maps of a problem, and Q in the limit of weak penalties, where all logits are equally large."""
    J, k, apart = q.sizes.size, q.sizes, 1 - q.smoothing
    row, column, eye = grid(J)
    root, root_m = np.sqrt(k), np.sqrt(q.mass)
    u, g = root / q.scales, root * root_m
    # P = Y - lambda_Z diag(1/delta) Q diag(sqrt(m) / (tau q)), per class instead of per cluster
    slope = (q.lambda_z / (root * q.scales))[row] * (root_m / (root * q.temperatures * q.share))[column]
    own_slope = slope[:: J + 1]
    # inside a cluster p_own - p_other = 1 - eps less the residual, which is what makes it 0 where classes merge
    share_within = np.minimum(own_slope, apart / k)
    base = np.full(J * J + J, q.smoothing / q.labels.size)
    base[: J * J : J + 1] += share_within
    base[J * J :] += apart - share_within * (k - 1)
    to_x = u[row] * (g / q.temperatures)[column]
    own_to_x = to_x[:: J + 1] / k
    shift = -to_x * q.offsets[row] if np.count_nonzero(q.offsets) else None
    to_x[:: J + 1] -= own_to_x
    # the margins in I - u u', by what a unit of logit weighs in X ...
    u_hat, g_hat = u / math.sqrt(u.dot(u)), g / math.sqrt(g.dot(g))
    unit = root_m / (q.scales * q.temperatures)
    limit = ((eye - u_hat[row] * u_hat[column]) * unit[column]).reshape(J, J)
    # ... less what the bias takes over, all of it where it is free: there Q g = 0, and Q turns in the other directions
    taken = 1.0
    if q.lambda_b > 0:
        pull = q.lambda_z / q.lambda_b * g.dot(g)
        taken = pull / (_MARGIN * unit.dot(g_hat * g_hat) + pull)
    if taken:
        limit -= (limit.dot(g_hat)[row] * (taken * g_hat)[column]).reshape(J, J)
    A, _, Bt, _ = _gesdd(limit)
    frame = Bt[:-1]
    planes = np.zeros((0, J, J))
    if J <= FEW:
        planes = _planes(J) if q.lambda_b else frame.T @ _planes(J - 1) @ frame
    pull = math.sqrt(q.lambda_z / q.lambda_b) * g if 0 < q.lambda_b < math.inf else None
    model = _Model(
        base,
        np.concatenate([slope, own_slope]),
        np.concatenate([to_x, own_to_x]),
        shift,
        None if pull is None else (pull[row] * pull[column]).reshape(J, J),
        g if pull is None else pull,
        planes,
        None if q.lambda_b else g_hat,
        root,
        u,
        g,
    )
    return model, A[:, :-1].dot(frame)


def _blocks(q: Quotient, model: _Model, Q: Matrix, p: Vector) -> Blocks:
    """The point with these probabilities, its bias, and columns that sum to zero against 1/delta."""
    J, k = q.sizes.size, q.sizes
    row, column, _ = grid(J)
    root, u, g = model.root, model.u, model.g
    X = model.logits(p)
    surplus = u.dot(X) / u.dot(u)
    if q.lambda_b == 0:
        b = (X - np.multiply.outer(u, surplus)).dot(g) / (root * g.dot(g))  # X g = 0 without it
    elif q.lambda_b < math.inf:
        b = Q.dot(g) / root * (q.lambda_z / q.lambda_b)
        b -= (root * u).dot(b) / u.dot(u) * (u / root)  # a low price of b makes much of a rounding in Q'u = 0
    else:
        b = np.zeros(J)
    C = (X.ravel() - u[row] * surplus[column]) / (root[row] * g[column]) - b[row]
    other, own = p[: J * J : J + 1], p[J * J :]
    # merged or alone: no contrast
    apart = (k > 1) & (q.share * q.temperatures * q.scales * (1 - q.smoothing) > q.lambda_z * np.sqrt(q.mass))
    alpha = np.log(own / other) / (q.temperatures * q.scales) * apart
    return Blocks(alpha, C.reshape(J, J), b)


@lru_cache(maxsize=FEW)
def _layout(J: int) -> tuple[Matrix, NDArray[np.intp]]:
    """I, and where Q.ravel() has the entry of each probability: all of Q, then its diagonal for the own classes."""
    return np.eye(J), np.concatenate([np.arange(J * J), np.arange(0, J * J, J + 1)])


@lru_cache(maxsize=FEW)
def _planes(J: int) -> Tensor:
    """e_i e_j' - e_j e_i' for all i < j, (n, J, J)."""
    i, j = np.triu_indices(J, 1)
    n = np.arange(i.size)
    E = np.zeros((n.size, J, J))
    E[n, i, j] = 1.0
    E[n, j, i] = -1.0
    return E
