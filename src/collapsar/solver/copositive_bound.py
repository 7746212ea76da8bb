"""How long R h can be over unit h >= 0, and the multipliers that prove it: the cone is cut if one set will not do.

At a given residual the relaxation of :mod:`.witness` asks for

    min t   over N >= 0:   R'R + N <= (1 + t) lambda_Z^2 I,

a semidefinite program whose dual is the largest <R'R, X> over doubly nonnegative X of trace one. If t stays positive
but no direction h >= 0 is longer, X is not a sum of hh'. The cases met so far are pentagons: each of five groups of
classes overlaps with two others, and X has rank three. A cut along two that overlap takes it apart, and either half is
the same program in its own coordinates. With up to 60 clusters the program is small: a primal-dual interior-point
method (Helmberg, Rendl, Vanderbei and Wolkowicz, 1996, with the predictor and corrector of Mehrotra, 1992) solves it to
1e-12 in some forty steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag, cho_factor, cho_solve

from collapsar.core.types import Matrix, Vector
from collapsar.solver.interior import largest_step, ratio, symmetric
from collapsar.solver.objective import Columns, Residual, residual
from collapsar.solver.symmetry import Quotient
from collapsar.solver.witness import Cut, Witness, coordinates, sides

_CUTS = 4  # at most this many
_HELPS = 0.5  # share of the excess: a cut that leaves more of it in both halves does not help
_STEPS = 80  # forty are usual
_MIXED = 0.3  # X at the start, off the diagonal
_BEGINNING = 0.1  # scale of the multipliers at the start
_KNOWN = 1e-2  # relative: t is known well enough to cut
_INSIDE = 0.95  # share of the step to the boundary that is taken
_LEAST = 1e-3  # a step leaves at least this share of complementarity


@dataclass(frozen=True)
class _Longest:
    """What the program of a part ends with.

    Attributes:
        t: an upper bound of ||Rh||^2 / lambda_Z^2 - 1 over unit h of the part.
        between, within: the multipliers that prove it, in units of lambda_Z^2.
        X: shape (J, J), near the best doubly nonnegative matrix.
    """

    t: float
    between: Matrix
    within: Vector
    X: Matrix


def copositive_witness(q: Quotient, S: Columns, excess: float) -> Witness:
    """Multipliers that bound by how much R at S is longer than lambda_Z, as tightly as a few cuts can.

    Args:
        q: J clusters, at most 60.
        S: stochastic columns.
        excess: that of ||Rh||^2 over lambda_Z^2, relative: nothing below it is asked for.

    Returns:
        The witness, with the cuts that helped: four at most, and none if the first does not help, mostly because a
        direction h >= 0 is longer by as much.
    """
    J, R, lam2 = q.num_clusters, residual(q, S), q.lambda_z**2
    cuts: tuple[Cut, ...] = ()
    parts: dict[tuple[int, ...], _Longest] = {(): _longest(q, R, np.eye(J), excess)}
    while len(cuts) < _CUTS:
        worst = max(parts, key=lambda side: parts[side].t)
        if parts[worst].t <= excess:
            break
        cut = _pair(coordinates(cuts, worst, J), parts[worst].X)
        finer: dict[tuple[int, ...], _Longest] = {}
        for side in sides((*cuts, cut)):
            above = parts[side[:-1]]
            if above.t <= excess:  # its multipliers serve both halves
                back = np.linalg.inv(coordinates((cut,), side[-1:], J))
                finer[side] = replace(above, between=back.T @ above.between @ back)
            else:
                finer[side] = _longest(q, R, coordinates((*cuts, cut), side, J), excess)
        if min(finer[*worst, half].t for half in (0, 1)) > _HELPS * parts[worst].t:
            break
        cuts, parts = (*cuts, cut), finer
    between = np.array([part.between for part in parts.values()]).reshape(*(2,) * len(cuts), J, J)
    within = np.array([part.within for part in parts.values()]).reshape(*(2,) * len(cuts), J)
    return Witness(S, between * lam2, within * lam2, cuts)


def _pair(A: Matrix, X: Matrix) -> Cut:
    """The cut along the pair that overlaps most, but not wholly, in the part's own coordinates."""
    X = A @ X @ A.T
    size = np.sqrt(np.maximum(X.diagonal(), np.finfo(np.float64).tiny))
    correlation = X / np.outer(size, size)
    i, j = np.unravel_index(np.argmax(np.triu(X * (1 - correlation), 1)), X.shape)
    return Cut(int(i), int(j), float(size[i] / size[j]))


def _longest(q: Quotient, R: Residual, A: Matrix, excess: float) -> _Longest:
    """The program of one part, solved until t is below ``excess`` or known.

    With one more coordinate for the contrasts of each cluster of several classes, all is one matrix: nu_j E_j has
    k_j - 1 at u_j and -1 there.
    """
    J, lam2, several = q.num_clusters, q.lambda_z**2, np.flatnonzero(q.sizes > 1)
    contrasts = (q.sizes - 1.0)[several]
    on = np.eye(J + several.size)
    i, j = np.triu_indices(J, 1)
    A = _blocks(A, np.eye(several.size))
    root, extra = np.sqrt(contrasts)[:, None] * on[several], on[J:]
    program = _Program(
        _blocks(R.between.T @ R.between / lam2 - np.eye(J), np.diag(R.within[several] ** 2 / lam2 - 1)),
        np.vstack([A[i], (root + extra) / np.sqrt(2)]),
        np.vstack([A[j], (root - extra) / np.sqrt(2)]),
    )
    back = np.linalg.inv(A[:J, :J])
    X = back @ (np.eye(J) + _MIXED) @ back.T
    X, x, t = program.solved(_blocks(X, np.diag(contrasts * X.diagonal()[several] / 2)), excess)
    N, nu = np.zeros((J, J)), np.zeros(J)
    N[i, j], nu[several] = x[: i.size], x[i.size :]
    return _Longest(t, N + N.T, nu, X[:J, :J])


class _Step(NamedTuple):
    """A step of the multipliers X of S and y of x >= 0, and of t, x and S = t I - G - sum_p x_p E_p."""

    X: Matrix
    y: Vector
    t: float
    x: Vector
    S: Matrix


@dataclass(frozen=True)
class _Program:
    """min t over x >= 0 with t I - G - sum_p x_p E_p positive semidefinite, E_p = u_p v_p' + v_p u_p'.

    Attributes:
        G: symmetric.
        U, V: one u_p or v_p per row.
    """

    G: Matrix
    U: Matrix
    V: Matrix

    def weighted(self, x: Vector) -> Matrix:
        """sum_p x_p E_p."""
        half = (self.U * x[:, None]).T @ self.V
        return half + half.T

    def along(self, X: Matrix) -> Vector:
        """<E_p, X>."""
        return 2 * np.sum((self.U @ X) * self.V, axis=1)

    def solved(self, X: Matrix, enough: float) -> tuple[Matrix, Vector, float]:
        """X, x and t, with t below ``enough`` or known.

        Args:
            X: positive definite, with <E_p, X> > 0 for every p.
            enough: the value of t that suffices.
        """
        on = np.eye(len(self.G))
        X = X / np.trace(X)
        y = self.along(X)
        x = np.minimum(_BEGINNING / (len(X) * y), 1.0)
        t = 1 + float(np.linalg.eigvalsh(self.G + self.weighted(x))[-1])
        for _ in range(_STEPS):
            S = symmetric(t * on - self.G - self.weighted(x))
            gap = float(np.sum(X * S) + x @ y)
            if t <= enough or gap <= _KNOWN * abs(t):
                break
            try:
                towards = self._newton(X, y, x, S)
                ahead = towards(np.zeros_like(X), np.zeros_like(y))
                a, d = _lengths(X, y, x, S, ahead)
                after = float(np.sum((X + a * ahead.X) * (S + d * ahead.S)) + (x + d * ahead.x) @ (y + a * ahead.y))
                mu = gap / (len(X) + x.size) * float(np.clip((after / gap) ** 2, _LEAST, 1.0))
                step = towards(mu * on - ahead.X @ ahead.S, mu - ahead.x * ahead.y)
                a, d = _lengths(X, y, x, S, step)
            except np.linalg.LinAlgError:  # this is as far as float64 goes
                break
            a, d = min(1.0, _INSIDE * a), min(1.0, _INSIDE * d)
            X, y, x, t = symmetric(X + a * step.X), y + a * step.y, x + d * step.x, t + d * step.t
        return X, x, t

    def _newton(self, X: Matrix, y: Vector, x: Vector, S: Matrix) -> Callable[[Matrix, Vector], _Step]:
        """The step with X S = M and x y = m to first order, <E_p, X> = y_p and tr X = 1."""
        on, U, V = np.eye(len(S)), self.U, self.V
        inverse: Matrix = symmetric(np.asarray(np.linalg.inv(S), dtype=np.float64))
        UX, VX, US, VS = U @ X, V @ X, U @ inverse, V @ inverse
        H = (VX @ U.T) * (US @ V.T) + (VX @ V.T) * (US @ U.T) + (UX @ U.T) * (VS @ V.T) + (UX @ V.T) * (VS @ U.T)
        H = symmetric(H)
        H[np.diag_indices_from(H)] += y / x
        XS = symmetric(X @ inverse)
        g, factor = self.along(XS), cho_factor(H)
        Hg = cho_solve(factor, g)

        def towards(M: Matrix, m: Vector) -> _Step:
            ends, y_ends = symmetric(M @ inverse), m / x
            free = cho_solve(factor, y_ends - self.along(ends))
            dt = float(1 - np.trace(ends) - g @ free) / float(g @ Hg - np.trace(XS))
            dx = free + Hg * dt
            dS = dt * on - self.weighted(dx)
            return _Step(ends - X - symmetric(X @ dS @ inverse), y_ends - y - y / x * dx, dt, dx, dS)

        return towards


def _lengths(X: Matrix, y: Vector, x: Vector, S: Matrix, step: _Step) -> tuple[float, float]:
    """How far the multipliers and the variables may go, at most 1."""
    ahead = min(1.0, largest_step(X, step.X), ratio(y, step.y))
    return ahead, min(1.0, largest_step(S, step.S), ratio(x, step.x))


def _blocks(one: Matrix, other: Matrix) -> Matrix:
    return np.asarray(block_diag(one, other), dtype=np.float64)
