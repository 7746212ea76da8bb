"""The barrier problem behind the dual for features >= 0: its unknowns, its domain, its derivatives.

    min  -D(S) - mu ( log det Q + sum log N + sum log S ),     Q = I - (R(S)'R(S) + N) / lambda_Z^2

over stochastic columns S and symmetric N >= 0 with zero diagonal, on the quotient: S_ij, N_ij between clusters, and
nu_j between two classes of cluster j. Entropy alone would keep S inside the simplex, but too weakly for rare classes,
whose share of the loss is below mu for most of the way: hence log S, which also makes the barrier self-concordant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector
from collapsar.solver.objective import Columns, Residual, dual_entropy, residual
from collapsar.solver.symmetry import Quotient
from collapsar.solver.witness import Witness

__all__ = ["Layout", "Model", "Point", "layout_of", "model_at", "point_at"]

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Layout:
    """Which unknown is where. The unknowns: S_ij (others), N_ij for i < j, nu_j for clusters of several classes.

    Attributes:
        q: the problem.
        row, col: logit and sample cluster of every unknown S_ij; each shape (n,).
        upper: row and column of every N_ij.
        several: clusters with at least two classes.
        lift: shape (n, J): lift[v] is the change of column col[v] of R.between per unit of unknown v, at rows row[v]
            and col[v].
        twist: shape (n,): the change of R.within[col[v]].
        bias: shape (J, n): the change of R.bias.
    """

    q: Quotient
    row: Index
    col: Index
    upper: tuple[Index, Index]
    several: Index
    lift: Matrix
    twist: Vector
    bias: Matrix

    @property
    def num_terms(self) -> int:
        """Terms of the barrier: J of log det Q, one per S and N_ij, and two per cluster of several classes."""
        return 2 * self.q.num_clusters + self.row.size + self.upper[0].size + 2 * self.several.size

    def split(self, x: Vector) -> tuple[Vector, Vector, Vector]:
        """S, N and nu."""
        n, m = self.row.size, self.upper[0].size
        return x[:n], x[n : n + m], x[n + m :]

    def witness(self, x: Vector) -> Witness:
        """The unknowns as a point of the dual."""
        J = self.q.num_clusters
        s, pairs, nu = self.split(x)
        other, between, within = np.zeros((J, J)), np.zeros((J, J)), np.zeros(J)
        other[self.row, self.col] = s
        between[self.upper] = pairs * self.q.lambda_z**2
        within[self.several] = nu * self.q.lambda_z**2
        return Witness(Columns(np.sum(self.q.others * other, axis=0), other), between + between.T, within)


def layout_of(q: Quotient) -> Layout:
    """The unknowns of a problem."""
    J, k = q.num_clusters, q.sizes
    col, row = np.nonzero(q.others.T > 0)
    n, f = row.size, q.temperatures * q.share / np.sqrt(q.mass)
    v, off = np.arange(n), row != col
    lift = np.zeros((n, J))
    np.add.at(lift, (v, row), np.where(off, -np.sqrt(k[row] * k[col]) * q.scales[row] * f[col], 0.0))
    np.add.at(lift, (v, col), np.where(off, q.scales[col] * f[col] * k[row], 0.0))
    bias = np.zeros((J, n))
    np.add.at(bias, (col, v), q.scales[col] * f[col] * np.sqrt(q.mass[col]) * q.others[row, col])
    seen = k[col] - (row == col)  # classes of cluster col that see a logit of cluster row as "other"
    np.add.at(bias, (row, v), -q.scales[row] * f[col] * np.sqrt(q.mass[col]) * seen)
    upper = np.triu_indices(J, 1)
    return Layout(q, row, col, upper, np.flatnonzero(k > 1), lift, q.scales[col] * f[col] * k[row], bias)


@dataclass(frozen=True)
class Point:
    """Unknowns inside the barrier's domain, and what hangs on them. Q and N in units of lambda_Z^2."""

    x: Vector
    witness: Witness
    R: Residual
    factor: Matrix  # lower Cholesky factor of Q
    within: Vector  # Q on the contrasts of clusters of several classes
    value: float  # -D(S)
    barrier: float

    @property
    def inverse(self) -> Matrix:
        """Q^-1."""
        root = np.linalg.inv(self.factor)
        return root.T @ root


def point_at(layout: Layout, x: Vector) -> Point | None:
    """The barrier problem at x; None outside its domain."""
    q, lam2 = layout.q, layout.q.lambda_z**2
    if not x.min() > 0:
        return None
    witness = layout.witness(x)
    R = residual(q, witness.S)
    Q = np.eye(q.num_clusters) - (R.between.T @ R.between + witness.between) / lam2
    Q -= np.diag((q.sizes - 1) * witness.within / lam2)
    within = (1 - (R.within**2 - witness.within) / lam2)[layout.several]
    if not (witness.S.miss.max() < 1 and within.min(initial=1.0) > 0):
        return None
    try:
        factor: Matrix = np.asarray(np.linalg.cholesky(Q), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    logs = (np.diag(factor), np.diag(factor), within, 1 - witness.S.miss, x)
    barrier = -sum(float(np.sum(np.log(part))) for part in logs)
    free = q.lambda_b in (0, np.inf)
    value = (0.0 if free else float(q.sizes @ R.bias**2) / (2 * q.lambda_b)) - dual_entropy(q, witness.S)
    return Point(x, witness, R, factor, within, value, barrier)


@dataclass(frozen=True)
class Model:
    """Gradients and Hessians of -D without the bias term, and of the barrier."""

    gradient: Vector
    hessian: Matrix
    barrier_gradient: Vector
    barrier_hessian: Matrix


def model_at(layout: Layout, at: Point) -> Model:
    """The derivatives at a point."""
    q, row, col, n = layout.q, layout.row, layout.col, layout.row.size
    share, mult, own = q.sizes * q.share, q.others[row, col], 1 - at.witness.S.miss
    s = at.x[:n]
    gradient, hessian = np.zeros_like(at.x), np.zeros((at.x.size, at.x.size))
    gradient[:n] = share[col] * mult * (np.log(s) - np.log(own[col]) - (q.offsets[row] - q.offsets[col]))
    for j in range(q.num_clusters):
        block = np.flatnonzero(col == j)
        hessian[np.ix_(block, block)] = share[j] / own[j] * np.outer(mult[block], mult[block])
    hessian[np.arange(n), np.arange(n)] += share[col] * mult / s
    first, second = _barrier(layout, at, at.inverse)
    return Model(gradient, hessian, first, second)


def _barrier(layout: Layout, at: Point, inverse: Matrix) -> tuple[Vector, Matrix]:
    """Gradient and Hessian of the barrier.

    Unknown v changes Q by -(a_v e_c' + e_c a_v') with c the cluster where[v], so that <Q^-1, dQ_v> and
    <Q^-1 dQ_v Q^-1, dQ_w> are products of a Q^-1 a', Q^-1 and a Q^-1.
    """
    q, lam2, n, J = layout.q, layout.q.lambda_z**2, layout.row.size, layout.q.num_clusters
    i, j = layout.upper
    several, m = layout.several, i.size
    a = np.vstack([layout.lift @ at.R.between / lam2, np.eye(J)[i], np.diag((q.sizes - 1) / 2)[several]])
    where = np.concatenate([layout.col, j, several])
    turned = a @ inverse
    across = turned[:, where]
    gradient = 2 * turned[np.arange(a.shape[0]), where]
    hessian = 2 * ((turned @ a.T) * inverse[np.ix_(where, where)] + across * across.T)
    # Q is quadratic in S
    hessian[:n, :n] += 2 / lam2 * inverse[np.ix_(layout.col, layout.col)] * (layout.lift @ layout.lift.T)
    for count, cluster in enumerate(several):  # q = 1 - rho^2 + nu on the contrasts
        block = np.append(np.flatnonzero(layout.col == cluster), n + m + count)
        twist = np.append(layout.twist[block[:-1]], 0.0)
        change = -2 * at.R.within[cluster] / lam2 * twist
        change[-1] = 1.0
        slack = at.within[count]
        gradient[block] -= change / slack
        hessian[np.ix_(block, block)] += np.outer(change, change) / slack**2 + 2 / lam2 / slack * np.outer(twist, twist)
    mult, own = q.others[layout.row, layout.col], 1 - at.witness.S.miss
    for c in range(J):
        block = np.flatnonzero(layout.col == c)
        gradient[block] += mult[block] / own[c]
        hessian[np.ix_(block, block)] += np.outer(mult[block], mult[block]) / own[c] ** 2
    gradient -= 1 / at.x
    hessian[np.diag_indices_from(hessian)] += 1 / at.x**2
    return gradient, hessian
