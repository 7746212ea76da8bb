"""Directions of features on spheres: dropping those that die, adding those that are missed, and their preconditioner.

At the optimum R diag(nu)^(-1/2) / sqrt(c) has singular value one on the directions in use and less on all others, so it
tells which directions of a start with all of them will die. Left to themselves they die slowly, and the conjugate
gradients spend most of their time on them. Dropping one too many does no harm: its singular value passes one, and it is
added again.

In units in which both factors cost one, E = Q S^(1/2) A' and F = Q S^(1/2) B' near the optimum. With the loss taken as
diagonal in the bases (A, B), the second derivative falls apart into pairs of directions, of four unknowns where both
are in use and two where one is: that is the preconditioner. Turning the directions, which changes nothing, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector
from collapsar.solver.spheres import NOISE, SpherePoint, gained, size_of, sphere_point

PATIENCE = 3  # times that directions are added before none is dropped any more
_SETTLED = 1e-2  # decrement below which the residual says which directions die
_LATE = 1e-4  # and below which one can be missed
_DOUBT = 3.0  # a singular value is known to this many times the root of the decrement
_FLAT = 1e-2  # the least curvature that a pair is taken to have, in units of the factors' own price
_DEAD = 0.99  # a direction out of use counts as no nearer to use than this
_MISSED = 10.0  # and beyond this many a direction is known to be missed
_ROUNDING = 1e-10


@dataclass(frozen=True)
class _Directions:
    """What the residual says of directions; factors' rows, None where there is nothing to do.

    Attributes:
        kept: E and F without the directions that are dying.
        missed: rows along which the objective falls although no factor has them.
    """

    kept: tuple[Matrix, Matrix] | None
    missed: tuple[Matrix, Matrix] | None


def _directions(p: SpherePoint, decrement: float) -> _Directions:
    """Which directions die and which are missed, as far as can be told at this ``decrement``."""
    if decrement > _SETTLED:
        return _Directions(None, None)
    U, sigma, Vt = p.spectrum
    rank = int(np.sum(sigma >= 1 - _DOUBT * np.sqrt(decrement)))
    missed = int(np.sum(sigma > 1 + _MISSED * np.sqrt(decrement) + _ROUNDING)) if decrement <= _LATE else 0
    kept = None
    if 0 < rank < p.x.E.shape[0]:
        Q = np.linalg.qr(p.x.E @ U[:, :rank])[0]
        kept = Q.T @ p.x.E, Q.T @ p.x.F
    return _Directions(kept, (U[:, :missed].T, Vt[:missed] * np.sqrt(p.price / p.hold)) if missed else None)


def settle_directions(p: SpherePoint, decrement: float, times_added: int) -> tuple[SpherePoint, bool]:
    """The point without directions that die, if that costs no more than is left to gain, and with those it misses.

    Directions that were added several times are not dropped again: one near its threshold would come and go for ever.

    Returns:
        The point, and whether directions were added.
    """
    n, found = p.n, _directions(p, decrement)
    zero = (0 * p.x.v, 0 * p.x.u, 0 * p.x.b)
    if found.kept is not None and times_added < PATIENCE:
        E, F = found.kept
        new = sphere_point(n, replace(p.x, E=E, F=F).moved(n.q, (0 * E, 0 * F, *zero), 0.0))
        p = new if gained(p, new) >= -max(decrement, 1e-15) * size_of(p) else p
    if found.missed is None:
        return p, False
    E, F = found.missed
    unit = float(np.max(np.sqrt(np.sum(F**2, axis=0) / n.q.sizes)))  # at most as long as a feature
    E, F = E / unit, F / unit
    wide = replace(p.x, E=np.vstack([p.x.E, 0 * E]), F=np.vstack([p.x.F, 0 * F]))
    step = (np.vstack([0 * p.x.E, E]), np.vstack([0 * p.x.F, F]), *zero)
    tried = [sphere_point(n, wide.moved(n.q, step, length)) for length in np.geomspace(1e-4, 1.0, 9)]
    gains = [gained(p, one) for one in tried]
    best = int(np.argmax(gains))
    if not gains[best] > 0:  # too little to be seen: Newton's method follows the slope from the nearest
        room = wide.E.shape[0] <= n.q.num_clusters and gains[0] >= -10 * NOISE * size_of(p)
        return (tried[0], True) if room else (p, False)
    return tried[best], True


@dataclass(frozen=True)
class BalancedFactors:
    """The preconditioner as it is applied; r directions in use, J clusters.

    Attributes:
        A, B: bases of logits and of classes, (J, J), the directions in use first.
        Q: turns the factors' directions into those of the bases, (r, r).
        root: sqrt(c) and sqrt(nu), the latter of shape (J,).
        mixed: three (r, J - r) arrays: the inverse of the pairs of a direction in use with one that is not.
        pairs: their places i < j, and the inverses of the 4 x 4 systems of (e_ij, e_ji, f_ij, f_ji).
        own: the inverse of the 2 x 2 systems on the diagonal, two (r,) arrays.
        turn: eigenvectors and eigenvalues of EE' + FF'.
        E, F: the factors.
    """

    A: Matrix
    B: Matrix
    Q: Matrix
    root: tuple[Any, Vector]
    mixed: tuple[Matrix, Matrix, Matrix]
    pairs: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]
    own: tuple[Vector, Vector]
    turn: tuple[Matrix, Vector]
    E: Matrix
    F: Matrix

    def astype(self, dtype: Any) -> Self:
        """The same in another precision."""

        def cast(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(cast(part) for part in value)
            return value if np.issubdtype(np.asarray(value).dtype, np.integer) else np.asarray(value, dtype=dtype)

        return type(self)(**{name: cast(value) for name, value in vars(self).items()})

    def without_turn(self, E: Matrix, F: Matrix) -> tuple[Matrix, Matrix]:
        """A direction less its part along (T E, T F), T antisymmetric."""
        V, size = self.turn
        S = E @ self.E.T + F @ self.F.T
        T = V @ ((V.T @ (S - S.T) @ V) / (size[:, None] + size)) @ V.T
        return E - T @ self.E, F - T @ self.F

    def solve(self, E: Matrix, F: Matrix) -> tuple[Matrix, Matrix]:
        """The inverse applied to a direction without a turn."""
        r = self.Q.shape[0]
        ge, gf = self.Q.T @ (E / self.root[0]) @ self.A, self.Q.T @ (F / self.root[1]) @ self.B
        e, f = np.empty_like(ge), np.empty_like(gf)
        first, second, cross = self.mixed
        e[:, r:] = first * ge[:, r:] + cross * gf[:, r:]
        f[:, r:] = cross * ge[:, r:] + second * gf[:, r:]
        i, j, inverse = self.pairs
        solved = np.einsum("nab,nb->na", inverse, np.stack([ge[i, j], ge[j, i], gf[i, j], gf[j, i]], axis=1))
        e[i, j], e[j, i], f[i, j], f[j, i] = solved.T
        on = np.arange(r)
        h, g = self.own
        e[on, on], f[on, on] = h * ge[on, on] + g * gf[on, on], g * ge[on, on] + h * gf[on, on]
        return self.Q @ e @ self.A.T / self.root[0], self.Q @ f @ self.B.T / self.root[1]


def balanced_factors(p: SpherePoint, diagonal: Matrix) -> BalancedFactors:
    """The preconditioner at a point whose factors have fewer directions than clusters.

    Args:
        p: the point.
        diagonal: that of the second derivative of the loss in X, shape (J, J).
    """
    x, c, nu = p.x, p.price, p.hold
    r = x.E.shape[0]
    E, F = x.E * np.sqrt(c), x.F * np.sqrt(nu)
    (left, upper), (right, lower) = np.linalg.qr(E.T, mode="complete"), np.linalg.qr(F.T, mode="complete")
    a, sigma, bt = np.linalg.svd(upper[:r] @ lower[:r].T)
    u, rho, vt = np.linalg.svd(left[:, r:].T @ (p.R.between / np.sqrt(c * nu)) @ right[:, r:])
    A, B = np.hstack([left[:, :r] @ a, left[:, r:] @ u]), np.hstack([right[:, :r] @ bt.T, right[:, r:] @ vt.T])
    turn, _, turned = np.linalg.svd(E @ A[:, :r] + F @ B[:, :r])
    d = (A**2).T @ (diagonal / (c * nu)) @ B**2
    rho = np.minimum(rho, _DEAD)
    first, second = 1 + d[r:, :r].T * sigma[:, None], 1 + d[:r, r:] * sigma[:, None]
    determinant = first * second - rho**2
    own = np.diag(d)[:r] * sigma
    eigenvalues, eigenvectors = np.linalg.eigh(x.E @ x.E.T + x.F @ x.F.T)
    return BalancedFactors(
        A,
        B,
        turn @ turned,
        (np.sqrt(c), np.sqrt(nu)),
        (second / determinant, first / determinant, rho / determinant),
        (*np.triu_indices(r, 1), _pair_inverses(d[:r, :r], np.sqrt(sigma))),
        ((1 + own) / np.maximum(4 * own, _FLAT), (1 - own) / np.maximum(4 * own, _FLAT)),
        (eigenvectors, np.maximum(eigenvalues, 1e-12 * float(eigenvalues[-1]))),
        x.E,
        x.F,
    )


def _pair_inverses(d: Matrix, root: Vector) -> NDArray[np.float64]:
    """Per pair i < j in use, the inverse on (e_ij, e_ji, f_ij, f_ji) but for the turn, its eigenvector of value zero.

    The loss sees M_ij = e_ji root_j + root_i f_ij and M_ji = e_ij root_i + root_j f_ji.
    """
    i, j = np.triu_indices(root.size, 1)
    none = np.zeros(i.size)
    seen = (
        (d[i, j], np.stack([none, root[j], root[i], none], axis=1)),
        (d[j, i], np.stack([root[i], none, none, root[j]], axis=1)),
    )
    price = np.eye(4) - np.eye(4)[[2, 3, 0, 1]]
    system = price + sum(weight[:, None, None] * m[:, :, None] * m[:, None, :] for weight, m in seen)
    values, vectors = np.linalg.eigh(system)
    inverse = np.zeros_like(values)
    inverse[:, 1:] = 1 / np.maximum(values[:, 1:], _FLAT)
    return np.einsum("nab,nb,ncb->nac", vectors, inverse, vectors)
